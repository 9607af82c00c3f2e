//! Tally of losses and correct predictions, kept on the device until they are read back.

use crate::comm::{Communicator, ReduceWait};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Statistics of one step: means over all its images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Cross entropy of the weight step.
    pub loss: f64,
    /// Top-1 accuracy of the weight step.
    pub top1: f64,
    /// Top-5 accuracy of the weight step.
    pub top5: f64,
    /// Cross entropy of the architecture step, 0 without one.
    pub architecture_loss: f64,
    /// Top-1 accuracy of the architecture step.
    pub architecture_top1: f64,
    /// Number of replaced images in both batches on all ranks.
    pub skipped: f64,
}

impl Measures {
    /// Adds the statistics of another step.
    pub fn add(&mut self, other: &Measures) {
        self.loss += other.loss;
        self.top1 += other.top1;
        self.top5 += other.top5;
        self.architecture_loss += other.architecture_loss;
        self.architecture_top1 += other.architecture_top1;
        self.skipped += other.skipped;
    }
}

/// Outcome of one step on this rank.
#[derive(Default)]
pub struct StepOutcome {
    /// Loss, top-1, top-5 of the weight batch of each local replica, on the device.
    pub weights: Vec<Tensor>,
    /// The same for the architecture batches; empty without an architecture step.
    pub architecture: Vec<Tensor>,
    /// Number of images that could not be decoded and were replaced.
    pub num_skipped: usize,
    /// Shard, record, file name and reason for each of them.
    pub replaced: Vec<String>,
    /// Time waiting for images, milliseconds.
    pub data_wait_ms: f64,
    /// Waits for other ranks, one per `finish`.
    pub reduce_waits: Vec<ReduceWait>,
}

/// Runs `f` and adds its milliseconds to `total_ms`.
pub fn timed<T>(total_ms: &mut f64, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = f();
    *total_ms += start.elapsed().as_secs_f64() * 1e3;
    result
}

/// Returns loss, top-1 and top-5 of one batch, as `[3]` in float64 on the device.
pub fn measure(logits: &Tensor, labels: &Tensor, loss: &Tensor) -> Tensor {
    let classes = logits.size()[1];
    let (_, best) = logits.detach().topk(classes.min(5), 1, true, true);
    let correct = best.eq_tensor(&labels.unsqueeze(1)).to_kind(Kind::Double);
    let top1 = correct.narrow(1, 0, 1).mean(Kind::Double);
    let top5 = correct.sum_dim_intlist(1, false, Kind::Double).mean(Kind::Double);
    Tensor::stack(&[loss.detach().to_kind(Kind::Double), top1, top5], 0)
}

/// Statistics of steps that have not been read back.
#[derive(Default)]
pub struct Tally {
    /// `[5]` per step, on the device: mean over the replicas of this rank.
    waiting: Vec<Tensor>,
    /// Replaced images per step.
    skipped: Vec<f64>,
}

impl Tally {
    /// Adds the statistics of one step without reading them back.
    pub fn add(&mut self, outcome: &StepOutcome) {
        let mean = |batches: &[Tensor]| Tensor::stack(batches, 0).mean_dim(0, false, Kind::Double);
        let weights = mean(&outcome.weights);
        let architecture = match outcome.architecture.as_slice() {
            [] => weights.zeros_like(),
            batches => mean(batches),
        };
        self.waiting.push(Tensor::cat(&[weights, architecture.narrow(0, 0, 2)], 0));
        self.skipped.push(outcome.num_skipped as f64);
    }

    /// Reads back the statistics of all waiting steps, averaged over the ranks, oldest first. Collective.
    pub fn take(&mut self, comm: &dyn Communicator) -> Result<Vec<Measures>> {
        if self.waiting.is_empty() {
            return Ok(Vec::new());
        }
        let rows = Tensor::stack(&std::mem::take(&mut self.waiting), 0);
        let skipped = Tensor::from_slice(&std::mem::take(&mut self.skipped)).unsqueeze(1);
        let rows = Tensor::cat(&[&rows, &skipped.to_device(rows.device())], 1);
        comm.start_mean(&rows)?;
        comm.finish()?;
        let rows = Vec::<Vec<f64>>::try_from(rows.to_device(Device::Cpu))?;
        Ok(rows
            .into_iter()
            .map(|row| Measures {
                loss: row[0],
                top1: row[1],
                top5: row[2],
                architecture_loss: row[3],
                architecture_top1: row[4],
                skipped: row[5] * comm.size() as f64,
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Solo;

    #[test]
    fn statistics_of_steps_are_averaged() {
        let logits = Tensor::from_slice(&[3.0, 1.0, 2.0, 0.0, 0.0, 5.0]).view([2, 3]);
        let labels = Tensor::from_slice(&[0i64, 1]);
        let loss = Tensor::from(1.5);
        let one = measure(&logits, &labels, &loss);
        let mut tally = Tally::default();
        tally.add(&StepOutcome { weights: vec![one.copy(), &one * 3.0], ..Default::default() });
        tally.add(&StepOutcome {
            weights: vec![one.copy()],
            architecture: vec![&one * 2.0],
            num_skipped: 2,
            ..Default::default()
        });
        let measures = tally.take(&Solo).unwrap();
        assert_eq!(measures.len(), 2);
        assert_eq!((measures[0].loss, measures[0].top1, measures[0].top5), (3.0, 1.0, 2.0));
        assert_eq!((measures[1].loss, measures[1].top1, measures[1].top5), (1.5, 0.5, 1.0));
        assert_eq!((measures[1].architecture_loss, measures[1].architecture_top1), (3.0, 1.0));
        assert_eq!(measures[1].skipped, 2.0);
        assert!(tally.take(&Solo).unwrap().is_empty());
    }
}
