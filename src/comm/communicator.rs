//! The `Communicator` trait: the collective operations of a run, and the checks of their arguments.

use super::error::{Error, Result};
use crate::cuda::Event;
use serde::Serialize;
use std::time::Instant;
use tch::Tensor;

/// The collective operations of a run. Collective methods are called by all ranks in the same order. None of them
/// hangs: each fails if the other ranks do not arrive within the time limit.
pub trait Communicator {
    /// Returns this rank, 0..size. Local.
    fn rank(&self) -> usize;

    /// Returns the number of ranks; 1 means that nothing is ever sent. Local.
    fn size(&self) -> usize;

    /// Starts averaging `buffer` over the ranks in place, without blocking. The buffer must not be read or written
    /// before `finish`. Shape: any, contiguous; kind: Float or Double; equal on all ranks. Collective.
    fn start_mean(&self, buffer: &Tensor) -> Result<()>;

    /// Makes progress on pending operations without blocking: called between pieces of computation, to overlap
    /// communication with it. Local.
    fn progress(&self) -> Result<()>;

    /// Completes every reduction that was started; work issued afterwards sees the means. On GPUs the host does not
    /// wait for them. Returns how long the computation waited. Collective.
    fn finish(&self) -> Result<ReduceWait>;

    /// Returns whether a rank was asked to stop (see [`crate::process::signals`]). The requests travel with every
    /// comparison of the ranks' operations, such as that of `finish`, so the result is equal on all ranks after the same
    /// collective. With NCCL it is one `finish` late. Local.
    fn stop_requested(&self) -> bool;

    /// Copies `buffer` of rank `root` to all ranks. Shape and kind as for `start_mean`. Collective.
    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()>;

    /// Gathers the bytes of every rank on every rank, in rank order. The length is equal on all ranks. Collective.
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Returns when every rank has arrived. Collective.
    fn barrier(&self) -> Result<()>;

    /// Starts recording the times of reductions. Local.
    fn start_trace(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the times of the reductions since `start_trace` if recorded on a GPU; waits for this rank's GPU. Local.
    fn take_trace(&self) -> Result<Option<Trace>> {
        Ok(None)
    }

    /// Terminates all ranks with the error `why`. Not collective.
    fn abort(&self, why: &dyn std::error::Error) -> !;
}

/// How long the computation waited for the reductions in one `finish`.
pub enum ReduceWait {
    /// The host waited, milliseconds.
    Host(f64),
    /// The GPU waited between these timed events.
    Gpu(Event, Event),
}

impl ReduceWait {
    /// The host has waited since `start`.
    pub(super) fn since(start: Instant) -> ReduceWait {
        ReduceWait::Host(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Returns the milliseconds. The host waits until the GPU has reached that point. Local.
    pub fn ms(&self) -> Result<f64> {
        match self {
            ReduceWait::Host(ms) => Ok(*ms),
            ReduceWait::Gpu(from, to) => {
                to.synchronize()?;
                Ok(to.ms_since(from)?)
            }
        }
    }
}

/// Times of the reductions of some steps on the GPU, in milliseconds since the trace was started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Trace {
    /// In the order in which they were started.
    pub reductions: Vec<Reduction>,
    /// End of the backward pass of each step, when its gradients were complete.
    pub backward_ends_ms: Vec<f64>,
}

/// One group of reductions.
#[derive(Clone, Debug, Serialize)]
pub struct Reduction {
    /// Description of the operation.
    pub what: String,
    /// Start on the communication stream.
    pub from_ms: f64,
    /// End on the communication stream.
    pub to_ms: f64,
    /// Index of its step in `backward_ends_ms`.
    pub step: usize,
}

/// Rejects buffers that cannot be averaged. `Solo` checks too, so that mistakes show up in a single process.
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
