//! Errors of the commands that do not train.

/// An error of a command that does not train; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Images cannot be generated, encoded or written.
    #[error("demo-data: {0}")]
    Demo(String),
    /// Golden files are not reproduced.
    #[error(
        "{failed} of {files} golden files differ by more than the tolerance; see the lines marked FAILED"
    )]
    NotGolden {
        /// Files that differ.
        failed: usize,
        /// Files compared.
        files: usize,
    },
    /// A golden file that cannot be used.
    #[error("golden file {path}: {what}")]
    Golden {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
}
