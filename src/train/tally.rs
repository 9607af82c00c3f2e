//! Tally: losses and hits of the steps, kept on the device until somebody looks.

use crate::comm::{Communicator, ReduceWait};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Numbers of one step: means over all its images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Cross entropy of the weight step.
    pub loss: f64,
    /// Part of its images whose class came first.
    pub top1: f64,
    /// Part of its images whose class was among the first five.
    pub top5: f64,
    /// Cross entropy of the architecture step, 0 without one.
    pub architecture_loss: f64,
    /// Top-1 of the architecture step.
    pub architecture_top1: f64,
    /// Images of both batches that could not be decoded and were replaced, all ranks together.
    pub skipped: f64,
}

impl Measures {
    /// Adds another step's numbers to these.
    pub fn add(&mut self, other: &Measures) {
        self.loss += other.loss;
        self.top1 += other.top1;
        self.top5 += other.top5;
        self.architecture_loss += other.architecture_loss;
        self.architecture_top1 += other.architecture_top1;
        self.skipped += other.skipped;
    }
}

/// What one step leaves behind on this rank.
#[derive(Default)]
pub struct StepOutcome {
    /// Loss, top-1, top-5 of each local replica's weight batch, on the device.
    pub weights: Vec<Tensor>,
    /// The same of the architecture batches; empty without an architecture step.
    pub architecture: Vec<Tensor>,
    /// Images that could not be decoded and were replaced.
    pub num_skipped: usize,
    /// Each of them: shard, record, file name, and why.
    pub replaced: Vec<String>,
    /// Milliseconds spent waiting for images.
    pub data_wait_ms: f64,
    /// The waits for other ranks.
    pub reduce_waits: Vec<ReduceWait>,
}

/// Runs `f` and adds its milliseconds to `total_ms`.
pub fn timed<T>(total_ms: &mut f64, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = f();
    *total_ms += start.elapsed().as_secs_f64() * 1e3;
    result
}

/// Loss, top-1 and top-5 of one batch, as `[3]` in float64 on the device.
pub fn measure(logits: &Tensor, labels: &Tensor, loss: &Tensor) -> Tensor {
    let classes = logits.size()[1];
    let (_, best) = logits.detach().topk(classes.min(5), 1, true, true);
    let hits = best.eq_tensor(&labels.unsqueeze(1)).to_kind(Kind::Double);
    let top1 = hits.narrow(1, 0, 1).mean(Kind::Double);
    let top5 = hits.sum_dim_intlist(1, false, Kind::Double).mean(Kind::Double);
    Tensor::stack(&[loss.detach().to_kind(Kind::Double), top1, top5], 0)
}

/// Steps whose numbers nobody has looked at.
#[derive(Default)]
pub struct Tally {
    /// [5] each, on the device: mean over this rank's replicas.
    waiting: Vec<Tensor>,
    /// Images replaced in each.
    skipped: Vec<f64>,
}

impl Tally {
    /// Keeps the numbers of one step, without a look at them.
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

    /// The numbers of all waiting steps, averaged over the ranks, oldest first. Collective.
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
    fn numbers_of_a_step() {
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
        let measures = tally.take(&Solo::default()).unwrap();
        assert_eq!(measures.len(), 2);
        assert_eq!((measures[0].loss, measures[0].top1, measures[0].top5), (3.0, 1.0, 2.0));
        assert_eq!((measures[1].loss, measures[1].top1, measures[1].top5), (1.5, 0.5, 1.0));
        assert_eq!((measures[1].architecture_loss, measures[1].architecture_top1), (3.0, 1.0));
        assert_eq!(measures[1].skipped, 2.0);
        assert!(tally.take(&Solo::default()).unwrap().is_empty());
    }
}
