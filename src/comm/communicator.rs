//! The `Communicator`: the collective operations of a run, and what they refuse.

use super::error::{Error, Result};
use serde::Serialize;
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

    /// Ends every reduction that was started: what is read or computed from now on finds the means. On GPUs the host does
    /// not wait for them. Collective.
    fn finish(&self) -> Result<()>;

    /// Copies `buffer` of rank `root` to all. Shape and kind as for `start_mean`. Collective.
    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()>;

    /// The bytes of every rank, in rank order, on every rank. All ranks give the same length. Collective.
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Returns when every rank has arrived. Collective.
    fn barrier(&self) -> Result<()>;

    /// From now on the reductions are timed. Local.
    fn start_trace(&self) -> Result<()> {
        Ok(())
    }

    /// Times of the reductions since `start_trace`, where a GPU has timed them; the work of this rank's GPU is done.
    /// Local.
    fn take_trace(&self) -> Result<Option<Trace>> {
        Ok(None)
    }

    /// Ends all ranks at once: one rank's failure is everyone's. Not collective.
    fn abort(&self, why: &dyn std::error::Error) -> !;
}

/// When the reductions of some steps ran on the GPU, milliseconds since the trace was started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Trace {
    /// In the order in which they were started.
    pub reductions: Vec<Reduction>,
    /// When the gradients of each step were complete: the end of the backward pass.
    pub backward_ends_ms: Vec<f64>,
}

/// One group of reductions.
#[derive(Clone, Debug, Serialize)]
pub struct Reduction {
    /// What it is.
    pub what: String,
    /// First to last work on the communication stream.
    pub from_ms: f64,
    /// The same.
    pub to_ms: f64,
    /// Which `backward_ends_ms` it belongs to.
    pub step: usize,
}

/// Refuses what no rank can average: so that a mistake shows in one process too.
pub(super) fn reducible(operation: &'static str, buffer: &Tensor) -> Result<()> {
    contiguous(operation, buffer)?;
    match buffer.f_kind()? {
        tch::Kind::Float | tch::Kind::Double => Ok(()),
        kind => Err(Error::Buffer {
            operation,
            expected: "a tensor of kind Float or Double".into(),
            found: format!("{kind:?}"),
        }),
    }
}

pub(super) fn contiguous(operation: &'static str, buffer: &Tensor) -> Result<()> {
    if buffer.defined() && buffer.is_contiguous() {
        return Ok(());
    }
    Err(Error::Buffer {
        operation,
        expected: "a contiguous tensor".into(),
        found: match buffer.defined() {
            true => format!("shape {:?}, strides {:?}", buffer.size(), buffer.stride()),
            false => "none".into(),
        },
    })
}

pub(super) fn root_within(root: usize, size: usize) -> Result<()> {
    if root < size {
        return Ok(());
    }
    Err(Error::Buffer {
        operation: "broadcast",
        expected: format!("a root below {size}"),
        found: root.to_string(),
    })
}
