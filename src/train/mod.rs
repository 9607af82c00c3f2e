//! Parts that searches and evaluations share: weight step, optimisers, schedule, statistics, state and checkpoints.

pub mod checkpoint;
pub(crate) mod error;
pub mod optimiser;
pub mod schedule;
pub mod state;
pub mod step;
pub mod tally;

pub use error::Error;
