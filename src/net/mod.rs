//! Networks, for given weights and mixing weights; independent of ranks and data files.

pub mod bucket;
pub mod cell;
pub mod drop_path;
pub(crate) mod error;
pub mod fixed_cell;
pub mod gather;
pub mod loss;
pub mod mixed_op;
pub mod mixing;
pub mod nb201;
pub mod network;
mod nodes;
pub mod ops;
pub mod params;
pub mod placement;
pub mod residual;
pub mod separable;
pub mod stem;
pub mod supernet;
pub mod tape;
pub mod widen;

pub use error::{Error, Result};
