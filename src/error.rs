//! Everything that can go wrong, one variant each: what, where, expected, found, and a way out.

use std::path::PathBuf;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The text is one line a person can act on; `source` carries the cause below it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // -- files ------------------------------------------------------------------------------
    /// A file or folder could not be read, written, renamed or removed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "write", "create folder" ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    // -- data -------------------------------------------------------------------------------

    // -- configuration ----------------------------------------------------------------------

    // -- ranks ------------------------------------------------------------------------------

    // -- checkpoints ------------------------------------------------------------------------

    // -- search -----------------------------------------------------------------------------
    /// A genotype file that does not describe an architecture of the space.
    #[error("genotype: {0}")]
    Genotype(String),

    /// A file of weights lacks a tensor that the network has.
    #[error("tensor {0} is missing; the weights belong to another network (space, layers or kept operations differ)")]
    MissingTensor(String),

    /// A tensor has another shape than the network's.
    #[error("tensor {name} has shape {found:?}, the network expects {expected:?} (channels, k or classes differ)")]
    TensorShape {
        /// Published name.
        name: String,
        /// Shape in the file.
        found: Vec<i64>,
        /// Shape in the network.
        expected: Vec<i64>,
    },

    /// A golden file that cannot be compared with.
    #[error("golden file {path}: {what}")]
    Golden {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },

    /// libtorch refused an operation (out of memory, no such device ...).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// An `Io` error about `path`, for `map_err`.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}
