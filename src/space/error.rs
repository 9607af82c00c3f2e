//! Errors in the names and files of architectures.

use crate::files::IoError;

/// Result with the [`Error`] of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error in the name or the file of an architecture; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A genotype that is not an architecture of the space.
    #[error("genotype: {0}")]
    Genotype(String),
    /// A string that is not an architecture of NAS-Bench-201.
    #[error(
        "architecture \"{text}\": {what}; expected text like |nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    )]
    Nb201 {
        /// The string, at most its first 200 characters.
        text: String,
        /// Description of the error.
        what: String,
    },
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
}
