//! Saves, restores and hashes the state of a search.
//!
//! Tensors: those of the network (see [`crate::train::state`]), and the architecture parameters with the moments of their
//! optimiser, such as `eta`, `eta.mean`, `eta.square`. No random generator is saved: streams are indexed by step (see
//! `random`).

use super::Search;
use super::stage::supernet;
use crate::comm::Communicator;
use crate::error::{Error, Result};
use crate::process::phase::{Phase, begin};
use crate::space::Mask;
use crate::train;
use crate::train::checkpoint::Checkpoint;
use crate::train::state::{
    self, State, bytes_of, gather_running, hash_weights, tensors_of, weights_are_finite,
};
use serde::{Deserialize, Serialize};
use std::hash::Hasher;
use xxhash_rust::xxh3::Xxh3;

/// Version of the metadata; other versions are refused.
const VERSION: u32 = 1;

/// Checkpoint metadata.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SearchMeta {
    version: u32,
    step: u64,
    stage: usize,
    adam_steps: u64,
    k: i64,
    masks: Vec<Mask>,
    replicas: usize,
    /// Data of the caller.
    extra: serde_json::Value,
}

impl State for Search {
    fn to_checkpoint(
        &self,
        comm: &dyn Communicator,
        extra: Option<serde_json::Value>,
    ) -> Result<Option<Checkpoint>> {
        let all = gather_running(&self.net.params, self.replicas.len(), comm)?;
        let Some(extra) = extra else { return Ok(None) };
        let mut tensors = tensors_of(&self.net.params, &all);
        tensors.extend(self.architecture.tensors());
        let meta = SearchMeta {
            version: VERSION,
            step: self.step,
            stage: self.stage,
            adam_steps: self.architecture.steps(),
            k: self.net.shape().k,
            masks: self.net.shape().masks.clone(),
            replicas: all.size()[0] as usize,
            extra,
        };
        let meta =
            serde_json::to_value(meta).map_err(|error| train::Error::CheckpointState(error.to_string()))?;
        Ok(Some(Checkpoint { tensors, meta }))
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let wrong = |what: String| Error::from(train::Error::CheckpointState(what));
        let meta: SearchMeta =
            serde_json::from_value(checkpoint.meta.clone()).map_err(|error| wrong(error.to_string()))?;
        if meta.version != VERSION {
            return Err(wrong(format!("expected version {VERSION}, found {}", meta.version)));
        }
        self.check_meta(&meta).map_err(wrong)?;
        let device = self.net.params.device();
        let mut net = supernet(&self.config, meta.k, meta.masks, self.replicas.len(), device);
        state::restore(&mut net.params, checkpoint, self.replicas.clone())?;
        self.net = net;
        for (name, tensor) in self.architecture.tensors_mut() {
            let saved = checkpoint.tensor(&name)?;
            if saved.size() != tensor.size() {
                return Err(wrong(format!(
                    "{name}: expected shape {:?}, found {:?}",
                    tensor.size(),
                    saved.size()
                )));
            }
            tensor.copy_(saved);
        }
        (self.step, self.stage) = (meta.step, meta.stage);
        self.architecture.set_steps(meta.adam_steps);
        Ok(())
    }

    fn check_finite(&self) -> Result<()> {
        let what = match weights_are_finite(&self.net.params) {
            true => self.architecture.not_finite(),
            false => Some("weights"),
        };
        what.map_or(Ok(()), |what| Err(train::Error::StateNotFinite { step: self.step, what }.into()))
    }

    /// Compares step, masks, architecture parameters and weights.
    fn compare_ranks(&self, comm: &dyn Communicator) -> Result<()> {
        if comm.size() == 1 {
            return Ok(());
        }
        begin(Phase::Comparison)?;
        state::compare_ranks(self.step, self.hash()?, comm)
    }
}

impl Search {
    /// Checks that the metadata of a checkpoint is possible in this search. The files have checksums; this refuses
    /// checkpoints of other code and manually edited ones.
    fn check_meta(&self, meta: &SearchMeta) -> Result<(), String> {
        let search = &self.config.search;
        let Some(stage) = search.stages.get(meta.stage).filter(|_| meta.replicas == search.replicas as usize)
        else {
            return Err(format!(
                "expected {} replicas and a stage index below {}, found {} replicas and stage index {}",
                search.replicas,
                search.stages.len(),
                meta.replicas,
                meta.stage
            ));
        };
        let steps = self.timeline.steps_of(meta.stage);
        if !(steps.start..=steps.end).contains(&meta.step) || meta.adam_steps > meta.step {
            return Err(format!(
                "expected a step in {}..={} with at most as many architecture steps, found step {} with {}",
                steps.start, steps.end, meta.step, meta.adam_steps
            ));
        }
        let model = &self.config.model;
        let whole = self.config.masks().map_err(|error| error.to_string())?;
        let kept = |row: &Vec<bool>| row.iter().filter(|kept| **kept).count();
        let row = |(row, whole): (&Vec<bool>, &Vec<bool>)| {
            row.len() == whole.len() && kept(row) == kept(whole).min(stage.ops_kept)
        };
        let table = |(mask, whole): (&Mask, &Mask)| {
            mask.0.len() == whole.0.len() && mask.0.iter().zip(&whole.0).all(row)
        };
        let fits = meta.masks.len() == whole.len() && meta.masks.iter().zip(&whole).all(table);
        if meta.k != stage.k || !fits {
            return Err(format!(
                "expected k {} and {} masks of {} edges that keep {} of {} operations, found k {} and {} masks",
                stage.k,
                whole.len(),
                model.space.num_edges(),
                stage.ops_kept,
                self.config.operations().len(),
                meta.k,
                meta.masks.len()
            ));
        }
        Ok(())
    }

    fn hash(&self) -> Result<u64> {
        let mut hasher = Xxh3::new();
        hasher.write_u64(self.step);
        for mask in &self.net.shape().masks {
            mask.0.iter().flatten().for_each(|&kept| hasher.write_u8(u8::from(kept)));
        }
        for value in self.architecture.values() {
            hasher.write(&bytes_of(value)?);
        }
        hash_weights(&self.net.params, &mut hasher)?;
        Ok(hasher.finish())
    }
}
