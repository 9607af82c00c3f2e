//! Which samples a step takes: a function of the seed and the step alone, whatever ranks and threads there are.

use crate::data::error::{Error, Result};
use crate::random::{Purpose, stream};
use rand::seq::SliceRandom;
use std::ops::Range;
use std::path::Path;

/// The order of the samples of one stream over the whole run.
///
/// Each epoch is a new permutation of the set; a step takes the next `num_replicas * batch` of it, replica by replica.
/// What does not fill a last step of an epoch is left for the next permutation.
#[derive(Clone, Debug)]
pub struct SampleOrder {
    /// Samples of the set.
    pub num_samples: usize,
    /// Replicas of the run.
    pub num_replicas: usize,
    /// Samples of one replica in one step.
    pub batch: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Which stream: weights 0, architecture 1.
    pub stream: u64,
}

impl SampleOrder {
    /// Errors: nothing to serve, or a set (in the folder `set`) smaller than one step.
    pub fn check(&self, set: &Path) -> Result<()> {
        if self.num_replicas == 0 || self.batch == 0 {
            let (replicas, batch) = (self.num_replicas, self.batch);
            return Err(Error::LoaderSpec(format!("{replicas} replicas of batch {batch}; at least 1 each")));
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

    /// Samples of one step over all replicas.
    pub fn global_batch(&self) -> usize {
        self.num_replicas * self.batch
    }

    /// Whole steps in the set.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.num_samples / self.global_batch()) as u64
    }

    /// Epoch of a step, counted over the whole run.
    pub fn epoch_of(&self, step: u64) -> u64 {
        step / self.steps_per_epoch()
    }

    /// The samples of `epoch` in order: 4 bytes each.
    pub fn permutation(&self, epoch: u64) -> Vec<u32> {
        let mut samples: Vec<u32> = (0..self.num_samples as u32).collect();
        samples.shuffle(&mut stream(self.seed, Purpose::Order, &[self.stream, epoch]));
        samples
    }

    /// Positions in the epoch's permutation that `replica` takes at `step`.
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
    fn impossible_orders_are_refused() {
        let set = Path::new("shards");
        assert!(order().check(set).is_ok());
        let small = SampleOrder { num_samples: 19, ..order() }.check(set).unwrap_err().to_string();
        assert!(small.starts_with("shards: the set has 19 images, one global batch needs 20"), "{small}");
        assert!(SampleOrder { batch: 0, ..order() }.check(set).is_err());
    }
}
