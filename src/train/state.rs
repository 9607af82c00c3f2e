//! Saves, restores and hashes the state of a network, for searches and evaluations.
//!
//! Tensors: `weights/NAME` under the published names (including the running statistics averaged over all replicas, as
//! tests use them), `momentum/NAME`, `running/R` (flat statistics of replica R, in the order of their names).

use crate::comm::Communicator;
use crate::error::{Error, Result};
use crate::net::params::{Named, Params};
use crate::train::checkpoint::Checkpoint;
use crate::train::error::Error as TrainError;
use std::hash::Hasher;
use std::ops::Range;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// State that the steps of a training change.
pub trait State {
    /// Returns the state as a checkpoint on the rank that passes `extra` (stored as `meta["extra"]`), `None` on the
    /// others. Collective: gathers the running statistics of all replicas.
    fn to_checkpoint(
        &self,
        comm: &dyn Communicator,
        extra: Option<serde_json::Value>,
    ) -> Result<Option<Checkpoint>>;

    /// Restores the state of `checkpoint`. Local.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()>;

    /// Returns an error if the state contains NaN or infinity. Local; equal on all ranks. Reads one number per bucket.
    fn check_finite(&self) -> Result<()>;

    /// Compares the state across ranks; the error names ranks that differ. Collective.
    fn compare_ranks(&self, comm: &dyn Communicator) -> Result<()>;
}

/// Gathers the running statistics of all replicas, [R, S] on the host. The first `num_local` replicas of `params` are
/// those of this rank. Collective.
pub fn gather_running(params: &Params, num_local: usize, comm: &dyn Communicator) -> Result<Tensor> {
    let running: Vec<Tensor> = (0..num_local).map(|local| flatten(&params.export_running(local))).collect();
    let mine = Tensor::stack(&running, 0);
    let all: Vec<Tensor> = (comm.all_gather(&bytes_of(&mine)?)?.iter())
        .map(|bytes| Tensor::f_from_data_size(bytes, &mine.size(), mine.kind()).map_err(Error::from))
        .collect::<Result<_>>()?;
    Ok(Tensor::cat(&all, 0))
}

/// Averages the running statistics over the replicas of `all` (see [`gather_running`]), as tests use them, under the
/// published names.
pub fn averaged_running(params: &Params, all: &Tensor) -> Named {
    unflatten(&all.mean_dim(0, false, None::<Kind>), &params.export_running(0))
}

/// Returns the tensors of a checkpoint, on the host. Local.
pub fn tensors_of(params: &Params, all_running: &Tensor) -> Vec<(String, Tensor)> {
    let host = |tensor: &Tensor| tensor.to_device(Device::Cpu);
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (name, tensor) in params.export(|bucket| &bucket.weights) {
        tensors.push((format!("weights/{name}"), host(&tensor)));
    }
    for (name, tensor) in averaged_running(params, all_running) {
        tensors.push((format!("weights/{name}"), tensor));
    }
    for (name, tensor) in params.export(|bucket| &bucket.momentum) {
        tensors.push((format!("momentum/{name}"), host(&tensor)));
    }
    for replica in 0..all_running.size()[0] {
        tensors.push((format!("running/{replica}"), all_running.get(replica)));
    }
    tensors
}

/// Restores weights, momentum and the statistics of `replicas`, those of this rank. Local.
pub fn restore(params: &mut Params, checkpoint: &Checkpoint, replicas: Range<usize>) -> Result<()> {
    params.import(&group(checkpoint, "weights/"), |bucket| &bucket.weights)?;
    params.import(&group(checkpoint, "momentum/"), |bucket| &bucket.momentum)?;
    for (local, replica) in replicas.enumerate() {
        let like = params.export_running(local);
        let flat = checkpoint.tensor(&format!("running/{replica}"))?;
        let expected: i64 = like.values().map(|tensor| tensor.numel() as i64).sum();
        if flat.size() != [expected] {
            return Err(TrainError::CheckpointState(format!(
                "running/{replica}: expected shape [{expected}], found {:?}",
                flat.size()
            ))
            .into());
        }
        params.import_running(local, &unflatten(flat, &like))?;
    }
    Ok(())
}

/// Returns the tensors whose names begin with `prefix`, without the prefix.
pub fn group(checkpoint: &Checkpoint, prefix: &str) -> Named {
    let tensors = checkpoint.tensors.iter();
    tensors
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor.shallow_clone())))
        .collect()
}

/// Returns whether all weights are finite. Reads one number per bucket.
pub fn weights_are_finite(params: &Params) -> bool {
    params.buckets.iter().all(|bucket| is_finite(&bucket.weights))
}

/// Returns whether all elements of a tensor are finite.
pub fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) != 0
}

/// Hashes the weights.
pub fn hash_weights(params: &Params, hasher: &mut Xxh3) -> Result<()> {
    for bucket in &params.buckets {
        hasher.write_u64(xxh3_64(&bytes_of(&bucket.weights)?));
    }
    Ok(())
}

/// Compares the hash of the state after `step` steps across ranks; the error names ranks that differ. Collective.
pub fn compare_ranks(step: u64, hash: u64, comm: &dyn Communicator) -> Result<()> {
    let hashes = comm.all_gather(&hash.to_le_bytes())?;
    let common = most_common(&hashes);
    let other: Vec<usize> = (0..hashes.len()).filter(|&rank| hashes[rank] != *common).collect();
    if other.is_empty() {
        return Ok(());
    }
    Err(TrainError::StateDiffers { step, ranks: other, of: comm.size() }.into())
}

/// Returns the most frequent hash; in a tie, that of the lowest rank.
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

/// Concatenates all tensors, flattened, in the order of their names.
fn flatten(named: &Named) -> Tensor {
    Tensor::cat(&named.values().map(|tensor| tensor.reshape([-1])).collect::<Vec<_>>(), 0)
}

/// Inverse of [`flatten`], with the names and shapes of `like`.
fn unflatten(flat: &Tensor, like: &Named) -> Named {
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

/// Copies the bytes of a tensor from any device.
pub fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.to_device(Device::Cpu).contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_wins_and_ties_go_to_the_lowest_rank() {
        let [a, b] = [vec![1], vec![2]];
        assert_eq!(most_common(&[a.clone(), b.clone(), b.clone()]), &b);
        assert_eq!(most_common(&[a.clone(), b.clone()]), &a);
    }
}
