//! drnas-dist: Dirichlet neural architecture search (DrNAS, ICLR 2021) over many ranks.

pub mod checkpoint;
pub mod comm;
pub mod cuda;
pub mod doctor;
pub mod error;
pub mod launch;
pub mod random;

pub use error::{Error, Result};
