//! drnas-dist: Dirichlet neural architecture search (DrNAS, ICLR 2021) over many ranks.

pub mod comm;
pub mod data;
pub mod error;
pub mod random;

pub use error::{Error, Result};
