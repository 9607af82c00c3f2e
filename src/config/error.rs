//! Configuration errors.

use crate::files::IoError;

/// Result with the [`Error`] of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error in a configuration; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or a `--set` that cannot be parsed, or a value of the wrong type.
    #[error("{place}: {message}")]
    Syntax {
        /// "FILE line N", or the `--set`.
        place: String,
        /// The parser's message.
        message: String,
    },
    /// An unknown key.
    #[error("unknown key \"{key}\" in {place}{}", did_you_mean(nearest))]
    UnknownKey {
        /// The key, dotted.
        key: String,
        /// "FILE line N", or the `--set`.
        place: String,
        /// The most similar known key, if any is similar.
        nearest: Option<String>,
    },
    /// A value out of range, or values that contradict each other.
    #[error("configuration: {0}")]
    Check(String),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("; did you mean \"{key}\"?")).unwrap_or_default()
}
