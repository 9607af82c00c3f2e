//! Which samples a step takes: a function of seed and step only, independent of ranks and threads.

use crate::data::error::{Error, Result};
use crate::random::{Purpose, stream};
use rand::seq::SliceRandom;
use std::ops::Range;
use std::path::Path;

/// The order of the samples of one stream over the whole run.
///
/// Each epoch is a new permutation of the set; a step takes the next `num_replicas * batch` samples of it, replica by
/// replica. An incomplete last step of an epoch is dropped.
#[derive(Clone, Debug)]
pub struct SampleOrder {
    /// Number of samples of the set.
    pub num_samples: usize,
    /// Number of replicas of the run.
    pub num_replicas: usize,
    /// Samples per replica and step.
    pub batch: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Which stream: weights 0, architecture 1.
    pub stream: u64,
}

impl SampleOrder {
    /// Checks the values. Errors: a value of 0, or a set (in the folder `set`) smaller than one step.
    pub fn check(&self, set: &Path) -> Result<()> {
        if self.num_replicas == 0 || self.batch == 0 {
            let (replicas, batch) = (self.num_replicas, self.batch);
            return Err(Error::LoaderSpec(format!(
                "expected at least 1 replica and 1 image per batch, found {replicas} and {batch}"
            )));
        }
        if self.steps_per_epoch() == 0 {
            return Err(Error::SetTooSmall {
                set: set.to_path_buf(),
                images: self.num_samples,
                global_batch: self.global_batch(),
                num_replicas: self.num_replicas,
                batch: self.batch,
            });
        }
        Ok(())
    }

    /// Returns the number of samples of one step over all replicas.
    pub fn global_batch(&self) -> usize {
        self.num_replicas * self.batch
    }

    /// Returns the number of complete steps in the set.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.num_samples / self.global_batch()) as u64
    }

    /// Returns the epoch of a step, counted over the whole run.
    pub fn epoch_of(&self, step: u64) -> u64 {
        step / self.steps_per_epoch()
    }

    /// Returns the samples of `epoch` in order: 4 bytes each.
    pub fn permutation(&self, epoch: u64) -> Vec<u32> {
        let mut samples: Vec<u32> = (0..self.num_samples as u32).collect();
        samples.shuffle(&mut stream(self.seed, Purpose::Order, &[self.stream, epoch]));
        samples
    }

    /// Returns the positions in the epoch's permutation that `replica` takes at `step`.
    pub fn positions(&self, step: u64, replica: usize) -> Range<usize> {
        let step_in_epoch = (step % self.steps_per_epoch()) as usize;
        let start = step_in_epoch * self.global_batch() + replica * self.batch;
        start..start + self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> SampleOrder {
        SampleOrder { num_samples: 103, num_replicas: 4, batch: 5, seed: 1, stream: 0 }
    }

    #[test]
    fn an_epoch_serves_every_position_once_and_epochs_differ() {
        let order = order();
        assert_eq!(order.steps_per_epoch(), 5);
        let mut seen = Vec::new();
        for step in 10..15 {
            assert_eq!(order.epoch_of(step), 2);
            for replica in 0..4 {
                seen.extend(order.positions(step, replica));
            }
        }
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        let mut sorted = order.permutation(2);
        assert_ne!(sorted, order.permutation(3));
        assert_ne!(sorted, SampleOrder { stream: 1, ..order.clone() }.permutation(2));
        assert_ne!(sorted, SampleOrder { seed: 2, ..order.clone() }.permutation(2));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..103).collect::<Vec<_>>());
    }

    #[test]
    fn invalid_orders_are_rejected() {
        let set = Path::new("shards");
        assert!(order().check(set).is_ok());
        let small = SampleOrder { num_samples: 19, ..order() }.check(set).unwrap_err().to_string();
        assert!(small.starts_with("shards: the set has 19 images, but one global batch needs 20"), "{small}");
        assert!(SampleOrder { batch: 0, ..order() }.check(set).is_err());
    }
}
