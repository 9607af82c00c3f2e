//! Errors of starting or resuming a run.

use std::path::PathBuf;

/// An error of starting or resuming a run; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another job holds the lock of the run folder.
    #[error(
        "{} is held by {who}: another job writes to this run folder; wait for it, stop it, or choose another --out",
        path.display()
    )]
    RunLocked {
        /// The lock file.
        path: PathBuf,
        /// Its holder.
        who: String,
    },
    /// This job has lost the lock of the run folder.
    #[error(
        "{} was taken over by another job (this job did not respond for too long, or the file was removed); exiting \
         without further writes",
        path.display()
    )]
    LockLost {
        /// The lock file.
        path: PathBuf,
    },
    /// The run folder contains a run, and `--resume` was not given.
    #[error("{} already contains a run; add --resume to resume it, or choose another --out", .0.display())]
    RunExists(PathBuf),
    /// The test result would be overwritten.
    #[error("{} already exists; choose another --out, or move the file away", .0.display())]
    TestExists(PathBuf),
    /// The configuration or a data set differs from that of the run to be resumed.
    #[error(
        "the configuration changed since the run started: {before} to {now}; resume with the original one, or start \
         another run"
    )]
    RunChanged {
        /// Value when the run started.
        before: String,
        /// Value now.
        now: String,
    },
    /// Ranks were started with different inputs.
    #[error(
        "rank {rank} and rank 0 were started with a different {what}; start all ranks with the same files"
    )]
    InputsDiffer {
        /// The lowest rank that differs from rank 0.
        rank: usize,
        /// The input that differs.
        what: String,
    },
    /// The weights and the architecture would be trained on the same images.
    #[error("--train {} and --valid {} contain the same images; train eta on other images than the weights (`drnas-dist split` writes disjoint lists)", train.display(), valid.display())]
    TrainIsValid {
        /// Shards of the weights.
        train: PathBuf,
        /// Shards of eta.
        valid: PathBuf,
    },
    /// The network would be tested on its training images.
    #[error("--train {} and --test {} contain the same images; test on other images than the training images", train.display(), test.display())]
    TrainIsTest {
        /// Training shards.
        train: PathBuf,
        /// Test shards.
        test: PathBuf,
    },
}
