//! Commands that do not train, one per file.

pub mod bench;
pub mod demo_data;
pub mod doctor;
pub(crate) mod error;
pub mod export;
pub mod nb201;
pub mod plot;
pub mod verify;

pub use error::Error;
