//! Why tensors do not fit a network.

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why tensors do not fit a network.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of weights lacks a tensor that the network has.
    #[error(
        "tensor {0} is missing; the weights belong to another network (space, layers or kept operations differ)"
    )]
    MissingTensor(String),
    /// A tensor has another shape than the network's.
    #[error(
        "tensor {name} has shape {found:?}, the network expects {expected:?} (channels, k or classes differ)"
    )]
    TensorShape {
        /// Published name.
        name: String,
        /// Shape in the file.
        found: Vec<i64>,
        /// Shape in the network.
        expected: Vec<i64>,
    },
    /// Not an architecture.
    #[error(transparent)]
    Space(#[from] crate::space::error::Error),
    /// libtorch refused an operation (out of memory, no such device ...).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
