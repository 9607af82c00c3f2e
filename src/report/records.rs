//! Records: what the lines of `metrics.jsonl` hold.
//!
//! Stages and epochs count from 1 (epochs over the whole run), `step` is the number of steps done; top-1 and top-5 are
//! in 0..1; a number that is not finite is `null`.

use crate::space::Mask;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Percent by data set ("cifar10", "cifar100", "imagenet16-120").
pub type Accuracies = BTreeMap<String, f64>;

/// One line of the file; `event` says which kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum LogRecord {
    /// After a step.
    Step(StepRecord),
    /// After the last step of an epoch.
    Epoch(EpochRecord),
    /// At the beginning of a stage, the first one too.
    Stage(StageRecord),
    /// Once, at the end of the run.
    Finish(FinishRecord),
    /// At the beginning of an evaluation.
    Network(NetworkRecord),
    /// After the last step of an epoch of an evaluation, and its test.
    #[serde(rename = "evaluated_epoch")]
    EvaluatedEpoch(EvaluatedEpochRecord),
    /// Once, at the end of an evaluation.
    Evaluated(EvaluatedRecord),
    /// Images that could not be decoded were replaced by others.
    Replaced(ReplacedRecord),
}

/// Images that could not be decoded and were replaced (`data.skip_bad`), each named the first time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplacedRecord {
    /// Steps done when they were looked at.
    pub step: u64,
    /// Shard, record, file name, and why it could not be used.
    pub images: Vec<String>,
}

/// One step. The images of all replicas count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Stage, from 1.
    pub stage: u64,
    /// Epoch of the run, from 1.
    pub epoch: u64,
    /// Steps done, this one included.
    pub step: u64,
    /// Mean cross entropy of the weight step.
    pub loss: f64,
    /// Part of the images whose class came first.
    pub top1: f64,
    /// Part of the images whose class was among the first five.
    pub top5: f64,
    /// Mean cross entropy of the architecture step, if there was one.
    pub architecture_loss: Option<f64>,
    /// Learning rate of the weights.
    pub lr: f64,
    /// Learning rate of eta; 0 without an architecture step.
    pub eta_lr: f64,
    /// Images of both sets that went through the network, per second.
    pub images_per_s: f64,
    /// Time that rank 0 waited for images, milliseconds.
    pub data_wait_ms: f64,
    /// Time that rank 0 waited for other ranks, milliseconds.
    pub reduce_wait_ms: f64,
    /// Time for which a checkpoint held training up before this step, milliseconds; most of it is written meanwhile.
    pub checkpoint_ms: f64,
    /// Memory in use on rank 0's card at the look after this step, by all processes, MiB; libtorch gives nothing back, so
    /// this is the largest need so far. Only on cards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card_memory_mib: Option<f64>,
}

/// One epoch, of a search or an evaluation: means over its steps. Stage and epoch count from 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochSummary {
    /// Stage; an evaluation has one.
    pub stage: u64,
    /// Epoch of the run.
    pub epoch: u64,
    /// Steps done in the run when the epoch ended.
    pub step: u64,
    /// Steps of the epoch.
    pub steps: u64,
    /// Mean of what the weight steps minimised: cross entropy; of an evaluation smoothed, with the auxiliary head's part.
    pub loss: f64,
    /// Part of the images whose class came first.
    pub top1: f64,
    /// Part of the images whose class was among the first five.
    pub top5: f64,
    /// Mean cross entropy of the architecture steps, if there were any.
    pub architecture_loss: Option<f64>,
    /// Top-1 of the architecture steps, if there were any.
    pub architecture_top1: Option<f64>,
    /// Learning rate of the weights.
    pub lr: f64,
    /// Images of all training sets that went through the network, per second.
    pub images_per_s: f64,
    /// Time that rank 0 waited for images, milliseconds per step.
    pub data_wait_ms: f64,
    /// Time that rank 0 waited for other ranks, milliseconds per step.
    pub reduce_wait_ms: f64,
    /// Images that could not be decoded and were replaced.
    pub skipped_images: u64,
    /// Length of the epoch's steps, seconds.
    pub wall_s: f64,
}

impl EpochSummary {
    /// For people; `more` follows the accuracy.
    pub fn text(&self, more: &str) -> String {
        let skipped = match self.skipped_images {
            0 => String::new(),
            images => format!(", {images} images replaced"),
        };
        format!(
            "epoch {}: loss {:.3}, top-1 {:.1} %{more}, {:.1} images/s{skipped}",
            self.epoch,
            self.loss,
            100.0 * self.top1,
            self.images_per_s
        )
    }
}

/// One epoch of a search, and what its eta says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// What every epoch has.
    #[serde(flatten)]
    pub summary: EpochSummary,
    /// Mean entropy (nats) of a row's softmax of eta, by table (of DARTS: normal, reduction cells): falls as the choice
    /// becomes clear.
    pub eta_entropy: Vec<f64>,
    /// eta, `[T][E][O]`; where an operation was pruned it means nothing.
    pub eta: Vec<Vec<Vec<f64>>>,
    /// Kept operations, of the same shape.
    pub masks: Vec<Mask>,
    /// What eta selects now: DARTS one-line text, or the architecture string of NAS-Bench-201.
    pub genotype: String,
    /// Test accuracy of that architecture in the benchmark's table, percent by data set; absent without a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark: Option<Accuracies>,
}

/// A stage begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Stage, from 1.
    pub stage: u64,
    /// Steps done before it.
    pub step: u64,
    /// Partial-channel divisor.
    pub k: i64,
    /// Operations left on every edge.
    pub ops_kept: usize,
    /// Epochs of the stage.
    pub epochs: u64,
    /// Weights of the supernet, in numbers.
    pub num_weights: i64,
}

/// The run has ended well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishRecord {
    /// Steps done.
    pub step: u64,
    /// Stages done.
    pub stages: u64,
    /// Epochs done.
    pub epochs: u64,
    /// Images of both sets that went through the network.
    pub images: u64,
    /// How often an image that could not be decoded was replaced.
    #[serde(default)]
    pub replaced_images: u64,
    /// Ranks that took part in the end.
    pub ranks: u64,
    /// The found architecture: DARTS one-line text, or the architecture string of NAS-Bench-201.
    pub genotype: String,
    /// Its test accuracy in the benchmark's table, percent by data set; absent without a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark: Option<Accuracies>,
    /// Seconds since the program started, or went on from a checkpoint, the last time.
    pub wall_s: f64,
}

/// An evaluation begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Steps done before it.
    pub step: u64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Learned numbers without the auxiliary head, as papers count.
    pub parameters: i64,
    /// Learned numbers, all of them.
    pub num_weights: i64,
    /// Multiply-adds of convolutions and linear layers for one test image, without the auxiliary head.
    pub multiply_adds: i64,
    /// The architecture, DARTS one-line text.
    pub genotype: String,
}

/// One epoch of an evaluation, and the test that followed, if one did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedEpochRecord {
    /// What every epoch has.
    #[serde(flatten)]
    pub summary: EpochSummary,
    /// Mean cross entropy over the test set.
    pub test_loss: Option<f64>,
    /// Part of the test images whose class came first.
    pub test_top1: Option<f64>,
    /// Part of the test images whose class was among the first five.
    pub test_top5: Option<f64>,
    /// Images tested.
    pub test_images: Option<u64>,
    /// The best `test_top1` so far.
    pub best_top1: Option<f64>,
    /// The epoch that had it first.
    pub best_epoch: Option<u64>,
    /// Probability of drop path.
    pub drop_path: f64,
}

/// An evaluation has ended well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedRecord {
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epochs: u64,
    /// Top-1 of the test after the last epoch.
    pub last_top1: f64,
    /// Top-5 of the same test.
    pub last_top5: f64,
    /// The epoch whose test had the highest top-1: chosen by the test images themselves.
    pub best_epoch: u64,
    /// Its top-1.
    pub best_top1: f64,
    /// Its top-5.
    pub best_top5: f64,
    /// Images of each test.
    pub test_images: u64,
    /// Learned numbers without the auxiliary head.
    pub parameters: i64,
    /// Multiply-adds for one test image, without the auxiliary head.
    pub multiply_adds: i64,
    /// Training images that went through the network.
    pub images: u64,
    /// How often one that could not be decoded was replaced.
    #[serde(default)]
    pub replaced_images: u64,
    /// Ranks that took part in the end.
    pub ranks: u64,
    /// The architecture, DARTS one-line text.
    pub genotype: String,
    /// Seconds in training steps.
    pub wall_s: f64,
}

impl LogRecord {
    /// Steps done when the record was written.
    pub fn step(&self) -> u64 {
        match self {
            LogRecord::Step(record) => record.step,
            LogRecord::Epoch(record) => record.summary.step,
            LogRecord::Stage(record) => record.step,
            LogRecord::Finish(record) => record.step,
            LogRecord::Network(record) => record.step,
            LogRecord::EvaluatedEpoch(record) => record.summary.step,
            LogRecord::Evaluated(record) => record.step,
            LogRecord::Replaced(record) => record.step,
        }
    }
}
