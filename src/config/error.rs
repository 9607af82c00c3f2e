//! What is wrong with a configuration.

use crate::files::IoError;

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with a configuration.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or a `--set` that cannot be read, or a value of the wrong kind.
    #[error("{place}: {message}")]
    Syntax {
        /// "FILE line N", or the `--set`.
        place: String,
        /// What is wrong there.
        message: String,
    },
    /// A key that does not exist.
    #[error("unknown key \"{key}\" in {place}{}", did_you_mean(nearest))]
    UnknownKey {
        /// The key, dotted.
        key: String,
        /// "FILE line N", or the `--set`.
        place: String,
        /// The known key that is most like it, if any is.
        nearest: Option<String>,
    },
    /// Values that do not fit together; the line says which and what would fit.
    #[error("configuration: {0}")]
    Check(String),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("; did you mean \"{key}\"?")).unwrap_or_default()
}
