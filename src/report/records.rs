//! Records in the lines of `metrics.jsonl`.
//!
//! Stages and epochs count from 1 (epochs over the whole run), `step` is the number of steps done; top-1 and top-5 are
//! in 0..1; a number that is not finite is written as `null`.

use crate::config::Method;
use crate::process::messages::counted;
use crate::space::{Mask, Operation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Accuracies in percent by data set ("cifar10", "cifar100", "imagenet16-120").
pub type Accuracies = BTreeMap<String, f64>;

/// One line of the file; `event` names its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum LogRecord {
    /// After a step.
    Step(StepRecord),
    /// After the last step of an epoch.
    Epoch(EpochRecord),
    /// At the start of every stage.
    Stage(StageRecord),
    /// Once, at the end of the run.
    Finish(FinishRecord),
    /// At the start of an evaluation.
    Network(NetworkRecord),
    /// After the last step of an epoch of an evaluation and its test.
    #[serde(rename = "evaluated_epoch")]
    EvaluatedEpoch(EvaluatedEpochRecord),
    /// Once, at the end of an evaluation.
    Evaluated(EvaluatedRecord),
    /// After images that could not be decoded were replaced.
    Replaced(ReplacedRecord),
}

/// Images that could not be decoded and were replaced (`data.skip_bad`), each listed once per run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplacedRecord {
    /// Steps done when they were reported.
    pub step: u64,
    /// Shard, record, file name, and the reason.
    pub images: Vec<String>,
}

/// One step, over the images of all replicas.
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
    /// Top-1 accuracy.
    pub top1: f64,
    /// Top-5 accuracy.
    pub top5: f64,
    /// Mean cross entropy of the architecture step, if there was one.
    pub architecture_loss: Option<f64>,
    /// Learning rate of the weights.
    pub lr: f64,
    /// Learning rate of the architecture parameters; 0 without an architecture step.
    pub eta_lr: f64,
    /// Images of both data sets processed, per second.
    pub images_per_s: f64,
    /// Time that rank 0 waited for images, milliseconds.
    pub data_wait_ms: f64,
    /// Time that rank 0 waited for other ranks, milliseconds.
    pub reduce_wait_ms: f64,
    /// Delay of this step by a checkpoint, milliseconds; most of a checkpoint is written in the background.
    pub checkpoint_ms: f64,
    /// Memory in use on the GPU of rank 0 after this step, by all processes, MiB. libtorch does not return memory, so
    /// this is the peak so far. `None` on CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card_memory_mib: Option<f64>,
}

/// One epoch of a search or an evaluation: means over its steps. Stage and epoch count from 1.
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
    /// Mean training loss: cross entropy; in an evaluation, with label smoothing and the auxiliary loss.
    pub loss: f64,
    /// Top-1 accuracy.
    pub top1: f64,
    /// Top-5 accuracy.
    pub top5: f64,
    /// Mean cross entropy of the architecture steps, if there were any.
    pub architecture_loss: Option<f64>,
    /// Top-1 of the architecture steps, if there were any.
    pub architecture_top1: Option<f64>,
    /// Learning rate of the weights.
    pub lr: f64,
    /// Images of all training sets processed, per second.
    pub images_per_s: f64,
    /// Time that rank 0 waited for images, milliseconds per step.
    pub data_wait_ms: f64,
    /// Time that rank 0 waited for other ranks, milliseconds per step.
    pub reduce_wait_ms: f64,
    /// Number of replacements of images that could not be decoded.
    pub skipped_images: u64,
    /// Duration of the steps, seconds.
    pub wall_s: f64,
}

impl EpochSummary {
    /// Formats the epoch for the console; `more` follows the accuracy.
    pub fn text(&self, more: &str) -> String {
        let skipped = match self.skipped_images {
            0 => String::new(),
            images => format!(", {} replaced", counted(images, "image")),
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

/// One epoch of a search, with the architecture parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Fields of every epoch.
    #[serde(flatten)]
    pub summary: EpochSummary,
    /// The search method.
    #[serde(default)]
    pub method: Method,
    /// Mean over edges of the entropy of softmax(eta), nats, for each table (DARTS: normal cells, reduction cells). It
    /// falls as the search converges.
    pub eta_entropy: Vec<f64>,
    /// eta (alpha in methods other than DrNAS), `[T][E][O]`; meaningless for pruned operations.
    pub eta: Vec<Vec<Vec<f64>>>,
    /// Parameters of the edge weights, `[T][E]`, of methods that have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<Vec<Vec<f64>>>,
    /// Kept operations, `[T][E][O]`.
    pub masks: Vec<Mask>,
    /// The operations, one per column.
    #[serde(default)]
    pub operations: Vec<Operation>,
    /// The architecture that the parameters select: DARTS one-line notation, or the architecture string of NAS-Bench-201.
    pub genotype: String,
    /// Test accuracy of that architecture in the NAS-Bench-201 table, percent by data set; absent without a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark: Option<Accuracies>,
}

/// Start of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Stage, from 1.
    pub stage: u64,
    /// Steps done before.
    pub step: u64,
    /// Partial-channel divisor.
    pub k: i64,
    /// Operations kept on every edge.
    pub ops_kept: usize,
    /// Epochs of the stage.
    pub epochs: u64,
    /// Number of weights in the supernet.
    pub num_weights: i64,
}

/// End of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishRecord {
    /// Steps done.
    pub step: u64,
    /// Stages done.
    pub stages: u64,
    /// Epochs done.
    pub epochs: u64,
    /// Images of both data sets processed.
    pub images: u64,
    /// Number of replacements of images that could not be decoded.
    #[serde(default)]
    pub replaced_images: u64,
    /// Number of ranks at the end of the run.
    pub ranks: u64,
    /// The found architecture: DARTS one-line notation, or the architecture string of NAS-Bench-201.
    pub genotype: String,
    /// Its test accuracy in the NAS-Bench-201 table, percent by data set; absent without a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark: Option<Accuracies>,
    /// Time in training steps over the whole run, seconds.
    pub wall_s: f64,
}

/// Start of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Steps done before.
    pub step: u64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Number of parameters without the auxiliary head, as papers count them.
    pub parameters: i64,
    /// Number of parameters with the auxiliary head.
    pub num_weights: i64,
    /// Multiply-adds of convolutions and linear layers for one test image, without the auxiliary head.
    pub multiply_adds: i64,
    /// The architecture in DARTS one-line notation.
    pub genotype: String,
}

/// One epoch of an evaluation and its test, if there was one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedEpochRecord {
    /// Fields of every epoch.
    #[serde(flatten)]
    pub summary: EpochSummary,
    /// Mean cross entropy over the test set.
    pub test_loss: Option<f64>,
    /// Top-1 test accuracy.
    pub test_top1: Option<f64>,
    /// Top-5 test accuracy.
    pub test_top5: Option<f64>,
    /// Number of test images.
    pub test_images: Option<u64>,
    /// Best `test_top1` so far.
    pub best_top1: Option<f64>,
    /// First epoch with that accuracy.
    pub best_epoch: Option<u64>,
    /// Drop-path probability.
    pub drop_path: f64,
}

/// End of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedRecord {
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epochs: u64,
    /// Top-1 test accuracy after the last epoch.
    pub last_top1: f64,
    /// Top-5 test accuracy after the last epoch.
    pub last_top5: f64,
    /// Epoch with the best top-1 test accuracy: selected on the test set.
    pub best_epoch: u64,
    /// Top-1 test accuracy of that epoch.
    pub best_top1: f64,
    /// Top-5 test accuracy of that epoch.
    pub best_top5: f64,
    /// Number of images per test.
    pub test_images: u64,
    /// Number of parameters without the auxiliary head.
    pub parameters: i64,
    /// Multiply-adds for one test image, without the auxiliary head.
    pub multiply_adds: i64,
    /// Training images processed.
    pub images: u64,
    /// Number of replacements of images that could not be decoded.
    #[serde(default)]
    pub replaced_images: u64,
    /// Number of ranks at the end of the run.
    pub ranks: u64,
    /// The architecture in DARTS one-line notation.
    pub genotype: String,
    /// Time in training steps, seconds.
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
