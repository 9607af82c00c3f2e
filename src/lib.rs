//! drnas-dist: Dirichlet neural architecture search (DrNAS, ICLR 2021) over many ranks.

pub mod comm;
pub mod config;
pub mod error;
pub mod random;
pub mod schedule;

pub use config::Config;
pub use error::{Error, Result};
