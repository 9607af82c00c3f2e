//! The root of all errors, and how one reads: each area says in its own `error.rs` what can go wrong there.

pub use crate::process::error_line::{chain, panic_line};

use crate::files::{IoError, NewFileError};
use crate::process::phase::InjectedFailure;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by area. The text is one line a person can act on; `source` carries the cause below it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration.
    #[error(transparent)]
    Config(#[from] crate::config::error::Error),
    /// A GPU or its driver.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::error::Error),
    /// What ranks do together.
    #[error(transparent)]
    Comm(#[from] crate::comm::error::Error),
    /// The ranks and their devices.
    #[error(transparent)]
    World(#[from] crate::world::error::Error),
    /// Images and shards.
    #[error(transparent)]
    Data(#[from] crate::data::error::Error),
    /// The name or the file of an architecture.
    #[error(transparent)]
    Space(#[from] crate::space::error::Error),
    /// Tensors that do not fit a network.
    #[error(transparent)]
    Net(#[from] crate::net::error::Error),
    /// A training, its checkpoints and weights.
    #[error(transparent)]
    Train(#[from] crate::train::error::Error),
    /// The table of NAS-Bench-201.
    #[error(transparent)]
    Nb201(#[from] crate::nb201::error::Error),
    /// A table or a figure of runs.
    #[error(transparent)]
    Report(#[from] crate::report::error::Error),
    /// A run folder.
    #[error(transparent)]
    Run(#[from] crate::run::error::Error),
    /// A command that makes no run.
    #[error(transparent)]
    Command(#[from] crate::commands::error::Error),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A file that would be replaced by another content.
    #[error(transparent)]
    NewFile(#[from] NewFileError),
    /// What a test lets a phase fail with.
    #[error(transparent)]
    Injected(#[from] InjectedFailure),
    /// libtorch refused an operation (out of memory, no such device ...).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
