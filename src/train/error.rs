//! Errors of training, checkpoints and weights.

use std::path::PathBuf;

/// An error of training, checkpoints or weights; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A checkpoint cannot be read.
    #[error("checkpoint {}: {why}", path.display())]
    CheckpointCorrupt {
        /// The folder of the checkpoint.
        path: PathBuf,
        /// Description of the error.
        why: String,
    },
    /// A checkpoint could not be written.
    #[error("the checkpoint of step {step} was not written, earlier checkpoints are unchanged: {source}")]
    CheckpointNotWritten {
        /// The step.
        step: u64,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tensor cannot be stored in, or is missing from, a checkpoint.
    #[error("checkpoint: tensor {name}: {why}")]
    CheckpointTensor {
        /// The tensor.
        name: String,
        /// The reason.
        why: String,
    },
    /// An intact checkpoint of another program or run.
    #[error("the checkpoint does not match this run: {0}")]
    CheckpointState(String),
    /// Weights and a test set have different classes.
    #[error(
        "{} and {} have different classes: label {label} is {expected} in the weights, but {found} in the test set; \
         pack the test images from a folder with the same class folders as the training images",
        weights.display(),
        set.display()
    )]
    ClassesDiffer {
        /// The weights file.
        weights: PathBuf,
        /// The shard folder.
        set: PathBuf,
        /// The lowest label that differs.
        label: usize,
        /// Its class in the weights, quoted, or "nothing".
        expected: String,
        /// Its class in the test set, quoted, or "nothing".
        found: String,
    },
    /// `--resume` found checkpoints, but none is valid.
    #[error("none of the {count} checkpoints in {} can be read (see the warnings); restore one, or remove the folder to start from scratch", folder.display())]
    NoValidCheckpoint {
        /// The folder of the checkpoints.
        folder: PathBuf,
        /// Number of checkpoints.
        count: usize,
    },
    /// The state differs between ranks.
    #[error(
        "after step {step}: weights, eta or masks of ranks {ranks:?} (of {of}) differ from the other ranks, due to faulty hardware or a lost message; resume from the newest checkpoint with --resume"
    )]
    StateDiffers {
        /// Steps done.
        step: u64,
        /// The ranks that differ from the majority.
        ranks: Vec<usize>,
        /// Number of ranks.
        of: usize,
    },
    /// Weights or eta are not finite.
    #[error(
        "after step {step}: the {what} are not finite, so no checkpoint was written; start another run with a lower weights.lr or more weights.warmup_epochs"
    )]
    StateNotFinite {
        /// Steps done.
        step: u64,
        /// "weights" or "eta".
        what: &'static str,
    },
    /// A loss is not finite.
    #[error(
        "step {step}: the loss is {loss} (weights), {architecture_loss} (architecture); start another run with a lower weights.lr or more weights.warmup_epochs"
    )]
    LossNotFinite {
        /// The step, from 1.
        step: u64,
        /// Loss of the weight step.
        loss: f64,
        /// Loss of the architecture step, 0 without one.
        architecture_loss: f64,
    },
    /// The loss of a test is not finite.
    #[error(
        "the test loss after epoch {epoch} is not finite; start another run with a lower weights.lr or more weights.warmup_epochs"
    )]
    TestNotFinite {
        /// Epochs trained.
        epoch: u64,
    },
    /// A weights file cannot be read or written.
    #[error("weights {}: expected a safetensors file: {why}", path.display())]
    WeightsFile {
        /// The file.
        path: PathBuf,
        /// Description of the error.
        why: String,
    },
}
