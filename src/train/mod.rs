//! What a search and an evaluation share: one weight step, its optimiser and schedule, what is counted, what is saved.

pub mod checkpoint;
pub(crate) mod error;
pub mod optimiser;
pub mod schedule;
pub mod state;
pub mod step;
pub mod tally;

pub use error::Error;
