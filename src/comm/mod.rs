//! What ranks say to one another: the `Communicator`, and `Solo` for one process.

pub mod bucket;

use crate::error::{Error, Result};
use tch::Tensor;

/// The collective operations of a run. Collective methods are called by all ranks in the same order; none of them waits
/// for ever: each ends with an error when the others do not come within the time limit.
pub trait Communicator {
    /// This rank, 0..size. Local.
    fn rank(&self) -> usize;

    /// Number of ranks; 1 means that nothing is ever sent. Local.
    fn size(&self) -> usize;

    /// Starts to average `buffer` over the ranks, in place, and returns at once. The buffer must not be read or written
    /// before `finish`. Shape: any, contiguous; kind: Float or Double; equal on all ranks. Collective.
    fn start_mean(&self, buffer: &Tensor) -> Result<()>;

    /// Moves what is under way, without waiting: called between pieces of computation, so that messages travel
    /// meanwhile. Local.
    fn progress(&self) -> Result<()>;

    /// Waits for every reduction that was started. Collective.
    fn finish(&self) -> Result<()>;

    /// Copies `buffer` of rank `root` to all. Shape and kind as for `start_mean`. Collective.
    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()>;

    /// The bytes of every rank, in rank order, on every rank. All ranks give the same length. Collective.
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Returns when every rank has arrived. Collective.
    fn barrier(&self) -> Result<()>;

    /// Ends all ranks at once: one rank's failure is everyone's. Not collective.
    fn abort(&self, why: &Error) -> !;
}
