//! Errors of the CUDA driver.

/// The result type of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the CUDA driver.
///
/// The message is one line: what, where, expected, found, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A driver call failed, or earlier work on the GPU failed.
    #[error("{call}: {text} (CUDA error {code}); `drnas-dist doctor` shows GPUs and libraries")]
    CallFailed {
        /// The call.
        call: &'static str,
        /// The error code.
        code: u32,
        /// The driver's error message.
        text: String,
    },
}
