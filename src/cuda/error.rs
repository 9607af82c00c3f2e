//! What a GPU or its driver refused.

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a GPU or its driver refused.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver refused a call, or the GPU failed in work given to it earlier.
    #[error("{call}: {text} (CUDA error {code}); `drnas-dist doctor` shows GPUs and libraries")]
    Refused {
        /// The call.
        call: &'static str,
        /// Its answer.
        code: u32,
        /// The same in the driver's words.
        text: String,
    },
}
