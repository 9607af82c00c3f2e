//! Errors of tables and figures of runs.

use crate::files::IoError;
use std::path::PathBuf;

/// Result with the [`Error`] of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a table or a figure of runs; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A run whose log lacks a measurement.
    #[error("{}: no {what} in its log (metrics.jsonl); only finished runs can be compared", run.display())]
    NotMeasured {
        /// The run folder.
        run: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// A run whose log does not contain what a figure shows.
    #[error("{}: {what}", path.display())]
    PlotSource {
        /// The run's file.
        path: PathBuf,
        /// What is missing or wrong, and what to do.
        what: String,
    },
    /// A figure that could not be drawn or encoded.
    #[error("draw {}: {what}", path.display())]
    PlotDraw {
        /// The file of the figure.
        path: PathBuf,
        /// The message of the drawing library.
        what: String,
    },
    /// The table of NAS-Bench-201.
    #[error(transparent)]
    Nb201(#[from] crate::nb201::error::Error),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
}
