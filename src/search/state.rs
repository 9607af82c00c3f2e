//! The search's state as a checkpoint, as a hash, and back.
//!
//! Tensors: `weights/NAME` under the published names (with the running statistics averaged over all replicas, as a test
//! would use them), `momentum/NAME`, `running/R` (every replica's own statistics, flat, in the order of their names),
//! `eta`, `eta.mean`, `eta.square`. No random generator is saved: streams are addressed by step (see `random`).

use super::{Search, supernet};
use crate::checkpoint::Checkpoint;
use crate::comm::Communicator;
use crate::error::{Error, Result};
use crate::net::params::Named;
use crate::space::Mask;
use serde::{Deserialize, Serialize};
use std::hash::Hasher;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Version of what follows; another one is refused.
const VERSION: u32 = 1;

/// What stands beside the tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Meta {
    version: u32,
    step: u64,
    stage: usize,
    adam_steps: u64,
    k: i64,
    masks: Vec<Mask>,
    replicas: usize,
    /// What the caller wants back.
    extra: serde_json::Value,
}

impl Search {
    /// The state after the steps done, for the rank that writes it, which gives an `extra` (it comes back as `meta["extra"]`); `None`
    /// for the others. Collective: the running statistics of all replicas are gathered.
    pub fn to_checkpoint(
        &self,
        comm: &dyn Communicator,
        extra: Option<impl Serialize>,
    ) -> Result<Option<Checkpoint>> {
        let running: Vec<Named> =
            (0..self.replicas.len()).map(|local| self.net.params.export_running(local)).collect();
        let mine = Tensor::stack(&running.iter().map(flat).collect::<Vec<_>>(), 0);
        let gathered = comm.all_gather(&bytes_of(&mine)?)?;
        let Some(extra) = extra else { return Ok(None) };
        let json = |value: serde_json::Result<serde_json::Value>| {
            value.map_err(|error| Error::CheckpointState(error.to_string()))
        };
        let extra = json(serde_json::to_value(extra))?;
        let all: Vec<Tensor> = gathered
            .iter()
            .map(|bytes| Tensor::f_from_data_size(bytes, &mine.size(), mine.kind()).map_err(Error::from))
            .collect::<Result<_>>()?;
        let all = Tensor::cat(&all, 0);

        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        let host = |tensor: &Tensor| tensor.to_device(Device::Cpu);
        for (name, tensor) in self.net.params.export(|bucket| &bucket.weights) {
            tensors.push((format!("weights/{name}"), host(&tensor)));
        }
        for (name, tensor) in unflat(&all.mean_dim(0, false, None::<Kind>), &running[0]) {
            tensors.push((format!("weights/{name}"), tensor));
        }
        for (name, tensor) in self.net.params.export(|bucket| &bucket.momentum) {
            tensors.push((format!("momentum/{name}"), host(&tensor)));
        }
        for replica in 0..all.size()[0] {
            tensors.push((format!("running/{replica}"), all.get(replica)));
        }
        tensors.push(("eta".into(), host(&self.eta)));
        tensors.push(("eta.mean".into(), host(&self.adam.mean)));
        tensors.push(("eta.square".into(), host(&self.adam.square)));
        let meta = Meta {
            version: VERSION,
            step: self.step,
            stage: self.stage,
            adam_steps: self.adam.steps,
            k: self.net.shape().k,
            masks: self.net.shape().masks.clone(),
            replicas: all.size()[0] as usize,
            extra,
        };
        Ok(Some(Checkpoint { tensors, meta: json(serde_json::to_value(meta))? }))
    }

    /// Puts this search where `checkpoint` was. Local.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let wrong = |what: String| Error::CheckpointState(what);
        let meta: Meta =
            serde_json::from_value(checkpoint.meta.clone()).map_err(|error| wrong(error.to_string()))?;
        if meta.version != VERSION {
            return Err(wrong(format!("version {}, expected {VERSION}", meta.version)));
        }
        self.check_meta(&meta).map_err(wrong)?;
        let group = |prefix: &str| -> Named {
            let tensors = checkpoint.tensors.iter();
            tensors
                .filter_map(|(name, tensor)| {
                    Some((name.strip_prefix(prefix)?.to_string(), tensor.shallow_clone()))
                })
                .collect()
        };
        let (kind, device) = (self.net.params.kind(), self.net.params.device());
        let mut net = supernet(&self.config, meta.k, meta.masks, self.replicas.len(), kind, device);
        net.params.import(&group("weights/"), |bucket| &bucket.weights)?;
        net.params.import(&group("momentum/"), |bucket| &bucket.momentum)?;
        for (local, replica) in self.replicas.clone().enumerate() {
            let like = net.params.export_running(local);
            let flat = checkpoint.tensor(&format!("running/{replica}"))?;
            let expected: i64 = like.values().map(|tensor| tensor.numel() as i64).sum();
            if flat.size() != [expected] {
                return Err(wrong(format!(
                    "running/{replica} has shape {:?}, expected [{expected}]",
                    flat.size()
                )));
            }
            net.params.import_running(local, &unflat(flat, &like))?;
        }
        self.net = net;
        for (name, tensor) in
            [("eta", &mut self.eta), ("eta.mean", &mut self.adam.mean), ("eta.square", &mut self.adam.square)]
        {
            let saved = checkpoint.tensor(name)?;
            if saved.size() != tensor.size() {
                return Err(wrong(format!(
                    "{name} has shape {:?}, expected {:?}",
                    saved.size(),
                    tensor.size()
                )));
            }
            tensor.copy_(saved);
        }
        (self.step, self.stage, self.adam.steps) = (meta.step, meta.stage, meta.adam_steps);
        Ok(())
    }

    /// Whether the numbers of a checkpoint are ones that this search can come to. The files have checksums; this keeps
    /// one that was made with other code, or by hand, from being gone on with.
    fn check_meta(&self, meta: &Meta) -> Result<(), String> {
        let search = &self.config.search;
        let Some(stage) = search.stages.get(meta.stage).filter(|_| meta.replicas == search.replicas as usize)
        else {
            return Err(format!(
                "{} replicas in stage number {} from 0, expected {} replicas and one of {} stages",
                meta.replicas,
                meta.stage,
                search.replicas,
                search.stages.len()
            ));
        };
        let steps = self.timeline.steps_of(meta.stage);
        if !(steps.start..=steps.end).contains(&meta.step) || meta.adam_steps > meta.step {
            return Err(format!(
                "step {} with {} architecture steps, expected a step in {}..={} of this stage",
                meta.step, meta.adam_steps, steps.start, steps.end
            ));
        }
        let space = self.config.model.space;
        let (edges, operations) = (space.num_edges(), space.operations().len());
        let row = |row: &Vec<bool>| {
            row.len() == operations && row.iter().filter(|kept| **kept).count() == stage.ops_kept
        };
        let table = |mask: &Mask| mask.0.len() == edges && mask.0.iter().all(row);
        if meta.k != stage.k || meta.masks.len() != space.tables().len() || !meta.masks.iter().all(table) {
            return Err(format!(
                "k {} and masks of {} tables, expected k {} and {} tables of {edges} edges that keep {} of \
                 {operations} operations",
                meta.k,
                meta.masks.len(),
                stage.k,
                space.tables().len(),
                stage.ops_kept
            ));
        }
        Ok(())
    }

    /// Refuses a state that no run can go on from. Local; equal on all ranks. Reads one number per bucket.
    pub fn check_finite(&self) -> Result<()> {
        let finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) != 0;
        let weights = self.net.params.buckets.iter().all(|bucket| finite(&bucket.weights));
        let what = match (weights, finite(&self.eta)) {
            (true, true) => return Ok(()),
            (false, _) => "weights",
            (true, false) => "eta",
        };
        Err(Error::StateNotFinite { step: self.step, what })
    }

    /// Compares what must be equal on all ranks (step, masks, eta, weights); a difference is an error that names the
    /// ranks. Collective.
    pub fn compare_ranks(&self, comm: &dyn Communicator) -> Result<()> {
        if comm.size() == 1 {
            return Ok(());
        }
        let hashes = comm.all_gather(&self.hash()?.to_le_bytes())?;
        let common = most_common(&hashes);
        let other: Vec<usize> = (0..hashes.len()).filter(|&rank| hashes[rank] != *common).collect();
        if other.is_empty() {
            return Ok(());
        }
        Err(Error::StateDiffers { step: self.step, ranks: other, of: comm.size() })
    }

    fn hash(&self) -> Result<u64> {
        let mut hasher = Xxh3::new();
        hasher.write_u64(self.step);
        for mask in &self.net.shape().masks {
            mask.0.iter().flatten().for_each(|&kept| hasher.write_u8(u8::from(kept)));
        }
        hasher.write(&bytes_of(&self.eta)?);
        for bucket in &self.net.params.buckets {
            hasher.write_u64(xxh3_64(&bytes_of(&bucket.weights)?));
        }
        Ok(hasher.finish())
    }
}

/// What most ranks have; of equals the lowest rank's.
fn most_common(hashes: &[Vec<u8>]) -> &Vec<u8> {
    let count = |hash: &Vec<u8>| hashes.iter().filter(|other| *other == hash).count();
    let mut best = &hashes[0];
    for hash in hashes {
        if count(hash) > count(best) {
            best = hash;
        }
    }
    best
}

/// All tensors one after another, in the order of their names.
fn flat(named: &Named) -> Tensor {
    Tensor::cat(&named.values().map(|tensor| tensor.reshape([-1])).collect::<Vec<_>>(), 0)
}

/// The reverse of `flat`: names and shapes of `like`.
fn unflat(flat: &Tensor, like: &Named) -> Named {
    let mut offset = 0;
    like.iter()
        .map(|(name, tensor)| {
            let length = tensor.numel() as i64;
            let part = flat.narrow(0, offset, length).reshape(tensor.size());
            offset += length;
            (name.clone(), part)
        })
        .collect()
}

/// The bytes of a tensor, from any device.
fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.to_device(Device::Cpu).contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_odd_rank_is_the_one_named() {
        let [a, b] = [vec![1], vec![2]];
        assert_eq!(most_common(&[a.clone(), b.clone(), b.clone()]), &b);
        assert_eq!(most_common(&[a.clone(), b.clone()]), &a);
    }
}
