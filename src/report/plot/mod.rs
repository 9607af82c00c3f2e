//! Figures of a run folder, finished or not; only what the run has written is read.

mod drawn;
mod figure;
mod trajectory;

pub use drawn::{Summary, draw};
pub use figure::{png, svg};
pub use trajectory::{DrawnStage, Epoch, Trajectory};
