//! From image files to batches: folder -> split -> pack -> shards -> loader -> tensors.
//!
//! Independent of the communicator: a `Loader` is given the numbers of the replicas it serves.

pub mod augment;
pub mod decode;
pub(crate) mod error;
pub mod folder;
pub mod loader;
pub mod order;
pub mod pack;
pub mod pickle;
pub mod plan;
pub mod pool;
mod reader;
pub mod records;
pub mod set;
pub mod shard;
mod sigbus;
pub mod source;
pub mod split;
mod stamps;
pub mod test_loader;
pub mod upload;

pub use augment::{Augment, Crop, Jitter, normalise};
pub use error::{Error, Result};
pub use loader::{Loader, LoaderSpec};
pub use pool::DecodePool;
pub use reader::Batch;
pub use set::{PackedSample, ShardSet};
pub use test_loader::{TestLoader, TestSpec};
pub use upload::Upload;
