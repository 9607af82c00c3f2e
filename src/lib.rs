//! drnas-dist: Dirichlet neural architecture search (DrNAS, ICLR 2021) over many ranks.

pub mod comm;
pub mod error;
pub mod net;
pub mod random;
pub mod search;
pub mod space;
pub mod verify;

pub use error::{Error, Result};
