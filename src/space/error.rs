//! What is wrong with the name or the file of an architecture.

use crate::files::IoError;

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with the name or the file of an architecture.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A genotype file that does not describe an architecture of the space.
    #[error("genotype: {0}")]
    Genotype(String),
    /// A text that names no architecture of NAS-Bench-201.
    #[error(
        "architecture \"{text}\": {what}; it reads like |nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    )]
    Nb201 {
        /// The text, its first 200 characters.
        text: String,
        /// What is wrong and what was expected.
        what: String,
    },
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
}
