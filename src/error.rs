//! The root error type; each module defines its own errors in its `error.rs`.

pub use crate::process::error_line::{chain, panic_line};

use crate::files::{IoError, NewFileError};
use crate::process::phase::InjectedFailure;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, by module. The text is one actionable line; `source` carries the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration.
    #[error(transparent)]
    Config(#[from] crate::config::error::Error),
    /// A GPU or its driver.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::error::Error),
    /// Communication between ranks.
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
    /// Training, checkpoints and weights.
    #[error(transparent)]
    Train(#[from] crate::train::error::Error),
    /// The NAS-Bench-201 table.
    #[error(transparent)]
    Nb201(#[from] crate::nb201::error::Error),
    /// A table or figure of runs.
    #[error(transparent)]
    Report(#[from] crate::report::error::Error),
    /// A run folder.
    #[error(transparent)]
    Run(#[from] crate::run::error::Error),
    /// A command other than a run.
    #[error(transparent)]
    Command(#[from] crate::commands::error::Error),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A file that already exists with different content.
    #[error(transparent)]
    NewFile(#[from] NewFileError),
    /// A failure injected by a test.
    #[error(transparent)]
    Injected(#[from] InjectedFailure),
    /// libtorch rejected an operation (out of memory, no such device ...).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
