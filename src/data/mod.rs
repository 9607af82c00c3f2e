//! Images, from files to batches: folder -> split -> pack -> shards -> loader -> tensors.
//!
//! Nothing here knows of ranks: a `Loader` gets the replicas it serves as numbers.

pub mod augment;
pub mod decode;
pub mod demo;
pub mod folder;
pub mod loader;
pub mod order;
pub mod pack;
pub mod plan;
pub mod pool;
pub mod set;
pub mod shard;
pub mod split;

pub use augment::{Augment, normalise};
pub use loader::{Batch, Loader, LoaderSpec};
pub use pool::DecodePool;
pub use set::{Sample, ShardSet};
