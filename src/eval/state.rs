//! The evaluation's state as a checkpoint, as a hash, and back; and the weights that come out of it.
//!
//! Tensors: those of the network (see [`crate::train::state`]). No random generator is saved: streams are addressed by step.

use super::{Evaluation, Tests};
use crate::comm::Communicator;
use crate::error::{Error, Result};
use crate::net::params::Named;
use crate::train;
use crate::train::checkpoint::Checkpoint;
use crate::train::state::{self, State, gather_running, hash_weights, tensors_of, weights_are_finite};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::hash::Hasher;
use std::path::Path;
use tch::Tensor;
use xxhash_rust::xxh3::Xxh3;

/// Version of what follows; another one is refused.
const VERSION: u32 = 1;

/// What stands beside the tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct EvaluationMeta {
    version: u32,
    step: u64,
    replicas: usize,
    tests: Tests,
    /// What the caller wants back.
    extra: serde_json::Value,
}

impl State for Evaluation {
    fn to_checkpoint(
        &self,
        comm: &dyn Communicator,
        extra: Option<serde_json::Value>,
    ) -> Result<Option<Checkpoint>> {
        let all = gather_running(&self.net.params, self.replicas.len(), comm)?;
        let Some(extra) = extra else { return Ok(None) };
        let meta = EvaluationMeta {
            version: VERSION,
            step: self.step,
            replicas: all.size()[0] as usize,
            tests: self.tests,
            extra,
        };
        let meta =
            serde_json::to_value(meta).map_err(|error| train::Error::CheckpointState(error.to_string()))?;
        Ok(Some(Checkpoint { tensors: tensors_of(&self.net.params, &all), meta }))
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let wrong = |what: String| Error::from(train::Error::CheckpointState(what));
        let meta: EvaluationMeta =
            serde_json::from_value(checkpoint.meta.clone()).map_err(|error| wrong(error.to_string()))?;
        if meta.version != VERSION {
            return Err(wrong(format!("version {}, expected {VERSION}", meta.version)));
        }
        let expected = self.config.evaluate.replicas as usize;
        if meta.replicas != expected {
            return Err(wrong(format!("{} replicas, expected {expected}", meta.replicas)));
        }
        state::restore(&mut self.net.params, checkpoint, self.replicas.clone())?;
        (self.step, self.tests) = (meta.step, meta.tests);
        Ok(())
    }

    fn check_finite(&self) -> Result<()> {
        match weights_are_finite(&self.net.params) {
            true => Ok(()),
            false => Err(train::Error::StateNotFinite { step: self.step, what: "weights" }.into()),
        }
    }

    /// Step, weights.
    fn compare_ranks(&self, comm: &dyn Communicator) -> Result<()> {
        if comm.size() == 1 {
            return Ok(());
        }
        let mut hasher = Xxh3::new();
        hasher.write_u64(self.step);
        hash_weights(&self.net.params, &mut hasher)?;
        state::compare_ranks(self.step, hasher.finish(), comm)
    }
}

/// Reads weights from a safetensors file, under the published names: one that `export` or a run made, or the
/// `state.safetensors` of a checkpoint.
pub fn read_weights(path: &Path) -> Result<Named> {
    std::fs::metadata(path).map_err(Error::io("read", path))?;
    let tensors = Tensor::read_safetensors(path)
        .map_err(|error| train::Error::WeightsFile { path: path.into(), why: error.to_string() })?;
    let of_checkpoint = tensors.iter().any(|(name, _)| name.starts_with("weights/"));
    let own = |name: String| match of_checkpoint {
        true => name.strip_prefix("weights/").map(str::to_string),
        false => Some(name),
    };
    Ok(tensors.into_iter().filter_map(|(name, tensor)| Some((own(name)?, tensor))).collect())
}

/// Writes weights as safetensors, whole or not at all. One rank calls it.
pub fn write_weights(path: &Path, weights: &Named) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let tensors: Vec<(&String, &Tensor)> = weights.iter().collect();
    Tensor::write_safetensors(&tensors, &temporary)
        .map_err(|error| train::Error::WeightsFile { path: path.into(), why: error.to_string() })?;
    // On the disk before it has the name.
    let synced = File::open(&temporary).and_then(|file| file.sync_all());
    synced.and_then(|()| std::fs::rename(&temporary, path)).map_err(Error::io("write", path))
}
