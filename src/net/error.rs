//! Errors of loading tensors into a network.

/// Result with the [`Error`] of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a network; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor of the network is missing in the weights.
    #[error(
        "tensor {0} is missing; the weights belong to another network (space, layers or kept operations differ)"
    )]
    MissingTensor(String),
    /// A tensor has a different shape.
    #[error("tensor {name}: expected shape {expected:?}, found {found:?} (channels, k or classes differ)")]
    TensorShape {
        /// Published name.
        name: String,
        /// Shape in the file.
        found: Vec<i64>,
        /// Shape in the network.
        expected: Vec<i64>,
    },
    /// Invalid architecture.
    #[error(transparent)]
    Space(#[from] crate::space::error::Error),
    /// libtorch returned an error (out of memory, no such device ...).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
