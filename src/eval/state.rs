//! Saves, restores and hashes the state of an evaluation; reads and writes weights.
//!
//! Tensors: those of the network (see [`crate::train::state`]). No random generator is saved: streams are indexed by
//! step.

use super::{Evaluation, Tests};
use crate::comm::Communicator;
use crate::data::ShardSet;
use crate::error::{Error, Result};
use crate::files;
use crate::net::params::Named;
use crate::process::phase::{Phase, begin};
use crate::train;
use crate::train::checkpoint::{CLASSES, Checkpoint, to_safetensors};
use crate::train::state::{self, State, gather_running, hash_weights, tensors_of, weights_are_finite};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::hash::Hasher;
use std::io::Read;
use std::path::Path;
use tch::Tensor;
use xxhash_rust::xxh3::Xxh3;

/// Version of the metadata; other versions are refused.
const VERSION: u32 = 1;

/// Checkpoint metadata.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct EvaluationMeta {
    version: u32,
    step: u64,
    replicas: usize,
    tests: Tests,
    /// Data of the caller.
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
            return Err(wrong(format!("expected version {VERSION}, found {}", meta.version)));
        }
        let expected = self.config.evaluate.replicas as usize;
        if meta.replicas != expected {
            return Err(wrong(format!("expected {expected} replicas, found {}", meta.replicas)));
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

    /// Compares step and weights.
    fn compare_ranks(&self, comm: &dyn Communicator) -> Result<()> {
        if comm.size() == 1 {
            return Ok(());
        }
        begin(Phase::Comparison)?;
        let mut hasher = Xxh3::new();
        hasher.write_u64(self.step);
        hash_weights(&self.net.params, &mut hasher)?;
        state::compare_ranks(self.step, hasher.finish(), comm)
    }
}

/// Reads weights under the published names from a safetensors file: one written by `export` or a run, or the
/// `state.safetensors` of a checkpoint.
pub fn read_weights(path: &Path) -> Result<Named> {
    std::fs::metadata(path).map_err(files::io("read", path))?;
    let tensors = Tensor::read_safetensors(path)
        .map_err(|error| train::Error::WeightsFile { path: path.into(), why: error.to_string() })?;
    let of_checkpoint = tensors.iter().any(|(name, _)| name.starts_with("weights/"));
    let own = |name: String| match of_checkpoint {
        true => name.strip_prefix("weights/").map(str::to_string),
        false => Some(name),
    };
    Ok(tensors.into_iter().filter_map(|(name, tensor)| Some((own(name)?, tensor))).collect())
}

/// Reads the class names from a weights file, in the order of the outputs; `None` for files of older versions and other
/// programs. Errors: the file cannot be read.
pub fn read_classes(path: &Path) -> Result<Option<Vec<String>>> {
    let wrong = |why: String| train::Error::WeightsFile { path: path.into(), why };
    let mut file = File::open(path).map_err(files::io("read", path))?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|error| wrong(error.to_string()))?;
    let mut header = Vec::new(); // not preallocated, because a corrupt length could be huge
    file.take(u64::from_le_bytes(length)).read_to_end(&mut header).map_err(files::io("read", path))?;
    let header: serde_json::Value =
        serde_json::from_slice(&header).map_err(|error| wrong(error.to_string()))?;
    match header.pointer("/__metadata__").and_then(|metadata| metadata.get(CLASSES)?.as_str()) {
        Some(text) => {
            Ok(Some(serde_json::from_str(text).map_err(|error| wrong(format!("class names: {error}")))?))
        }
        None => Ok(None),
    }
}

/// Checks that weights trained on `classes` can be tested on `set`: every output must stand for the same class.
pub fn check_classes(weights: &Path, classes: &[String], set: &ShardSet) -> Result<()> {
    let found = set.classes();
    if classes == found {
        return Ok(());
    }
    let label = (0..classes.len().max(found.len())).find(|&label| classes.get(label) != found.get(label));
    let label = label.expect("the lists differ");
    let name = |classes: &[String]| classes.get(label).map_or("nothing".into(), |name| format!("\"{name}\""));
    Err(train::Error::ClassesDiffer {
        weights: weights.into(),
        set: set.dir().into(),
        label,
        expected: name(classes),
        found: name(found),
    }
    .into())
}

/// Writes weights as safetensors, with the class names if known, atomically. Called by one rank.
pub fn write_weights(path: &Path, weights: &Named, classes: Option<&[String]>) -> Result<()> {
    Ok(files::write(path, &weights_file(weights, classes)?)?)
}

/// Returns the content of the file of [`write_weights`].
pub fn weights_file(weights: &Named, classes: Option<&[String]>) -> Result<Vec<u8>> {
    let tensors: Vec<(String, Tensor)> =
        weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    to_safetensors(&tensors, classes)
}
