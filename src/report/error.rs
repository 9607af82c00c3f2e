//! What a table or a figure of runs lacks.

use crate::files::IoError;
use std::path::PathBuf;

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a table or a figure of runs lacks.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A run that cannot stand in a table of speeds.
    #[error("{}: no {what} in its log (metrics.jsonl); only finished runs can be compared", run.display())]
    NotMeasured {
        /// The run folder.
        run: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// A run that has not what a figure shows.
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
        /// The file it was for.
        path: PathBuf,
        /// What the drawing library said.
        what: String,
    },
    /// The table of NAS-Bench-201.
    #[error(transparent)]
    Nb201(#[from] crate::nb201::error::Error),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
}
