//! Figures of a finished or unfinished run, from the files of its run folder.

mod figure;
mod sample;
mod trajectory;

pub use figure::{png, svg};
pub use sample::{Summary, sample_architecture};
pub use trajectory::{Epoch, StageSpan, Trajectory};
