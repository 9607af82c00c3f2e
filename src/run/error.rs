//! Why a run cannot begin, or go on, in its folder.

use std::path::PathBuf;

/// Why a run cannot begin, or go on, in its folder.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A run folder that another job writes to.
    #[error(
        "{} is held by {who}: another job writes this run; wait for it, end it, or choose another --out",
        path.display()
    )]
    RunLocked {
        /// The lock.
        path: PathBuf,
        /// Its holder.
        who: String,
    },
    /// A lock that this job held and that is another's now.
    #[error(
        "{} was taken by another job (this one did not answer for long, or the file was removed); this job ends and \
         writes nothing more",
        path.display()
    )]
    LockLost {
        /// The lock.
        path: PathBuf,
    },
    /// A run folder that holds a run, without `--resume`.
    #[error("{} holds a run already; add --resume to go on with it, or choose another --out", .0.display())]
    RunExists(PathBuf),
    /// The result of a test that would be replaced.
    #[error("{} holds the result of an earlier test; choose another --out, or move that file away", .0.display())]
    TestExists(PathBuf),
    /// Another configuration or other data than the run began with.
    #[error(
        "the run began with {before}, now it is {now}; go on with what it began with, or start another run"
    )]
    RunChanged {
        /// Then.
        before: String,
        /// Now.
        now: String,
    },
    /// Ranks were started with different things.
    #[error("rank {rank} and rank 0 do not have the same {what}; start all ranks with the same files")]
    StartsDiffer {
        /// The first rank that differs.
        rank: usize,
        /// What differs.
        what: String,
    },
    /// The weights and the architecture would be trained on the same images.
    #[error("--train {} and --valid {} hold the same images; eta has to be trained on images that the weights do not see (`drnas-dist split` makes two lists)", train.display(), valid.display())]
    SameSets {
        /// Shards of the weights.
        train: PathBuf,
        /// Shards of eta.
        valid: PathBuf,
    },
    /// The network would be tested on what it was trained on.
    #[error("--train {} and --test {} hold the same images; a test needs images that the weights have not seen", train.display(), test.display())]
    TestedOnTraining {
        /// Shards of the training.
        train: PathBuf,
        /// Shards of the test.
        test: PathBuf,
    },
}
