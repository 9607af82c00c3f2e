//! What ends a training, and what is wrong with its checkpoints and weights.

use std::path::PathBuf;

/// What ends a training, and what is wrong with its checkpoints and weights.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A checkpoint that cannot be read back.
    #[error("checkpoint {}: {why}", path.display())]
    CheckpointDamaged {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A checkpoint that could not be written.
    #[error("the checkpoint of step {step} was not written, the ones before it are untouched: {source}")]
    CheckpointNotWritten {
        /// The step.
        step: u64,
        /// What stood in the way.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A state that has no place in a checkpoint.
    #[error("checkpoint: tensor {name}: {why}")]
    CheckpointTensor {
        /// The tensor.
        name: String,
        /// Why.
        why: String,
    },
    /// A checkpoint that is whole, but of another program or run.
    #[error("the checkpoint does not fit: {0}")]
    CheckpointState(String),
    /// Weights and a test set whose labels mean other classes.
    #[error(
        "{} and {} do not have the same classes: label {label} is {expected} in the weights and {found} in the test set; \
         pack the test images from a folder with the class folders of the training",
        weights.display(),
        set.display()
    )]
    ClassesDiffer {
        /// The file of weights.
        weights: PathBuf,
        /// The folder of shards.
        set: PathBuf,
        /// The first label that differs.
        label: usize,
        /// Its class in the weights, in quotes, or "nothing".
        expected: String,
        /// Its class in the set, in the same way.
        found: String,
    },
    /// `--resume` where there are checkpoints, but none that can be read.
    #[error("none of the {count} checkpoints in {} can be read (see the warnings); restore one, or remove the folder to begin again", folder.display())]
    NoGoodCheckpoint {
        /// The folder of checkpoints.
        folder: PathBuf,
        /// Checkpoints looked at.
        count: usize,
    },
    /// Ranks that must have computed the same have not.
    #[error(
        "after step {step} ranks {ranks:?} of {of} hold other weights, eta or masks than the rest; a machine computes wrongly or a message was lost: go on from the newest checkpoint with --resume"
    )]
    StateDiffers {
        /// Steps done.
        step: u64,
        /// The ranks that differ from most.
        ranks: Vec<usize>,
        /// All ranks.
        of: usize,
    },
    /// Weights or eta that are not numbers, or infinite.
    #[error(
        "after step {step} the {what} are no longer finite, the checkpoint is not written; begin another run with a lower weights.lr or longer weights.warmup_epochs"
    )]
    StateNotFinite {
        /// Steps done.
        step: u64,
        /// "weights" or "eta".
        what: &'static str,
    },
    /// A loss that is not a number, or infinite.
    #[error(
        "step {step}: the loss is {loss} (weights), {architecture_loss} (architecture); begin another run with a lower weights.lr or longer weights.warmup_epochs"
    )]
    LossNotFinite {
        /// The step, from 1.
        step: u64,
        /// Of the weight step.
        loss: f64,
        /// Of the architecture step, 0 without one.
        architecture_loss: f64,
    },
    /// A test whose losses are no numbers.
    #[error(
        "the test after epoch {epoch} gave losses that are not finite; begin another run with a lower weights.lr or longer weights.warmup_epochs"
    )]
    TestNotFinite {
        /// Epochs trained.
        epoch: u64,
    },
    /// A file of weights that cannot be read or written.
    #[error("weights {}: {why}; a safetensors file is expected", path.display())]
    WeightsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}
