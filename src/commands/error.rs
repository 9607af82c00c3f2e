//! What goes wrong in a command that makes no run.

/// What goes wrong in a command that makes no run.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Images cannot be drawn or encoded as asked.
    #[error("demo-data: {0}")]
    Demo(String),
    /// The network does not reproduce golden files.
    #[error("{failed} of {files} golden files differ by more than is allowed; see the lines marked FAILED")]
    NotGolden {
        /// Files that differ.
        failed: usize,
        /// Files looked at.
        files: usize,
    },
    /// A golden file that cannot be compared with.
    #[error("golden file {path}: {what}")]
    Golden {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
}
