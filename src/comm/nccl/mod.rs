//! Ranks with one GPU each, joined by NCCL: collectives run on their own stream, ordered with libtorch's stream by
//! events.
//!
//! The host never waits for a GPU here. Each ordering rule uses one event:
//! - a reduction starts after the work issued to libtorch before it (`ready`: libtorch's stream -> communication
//!   stream);
//! - work issued to libtorch after `finish` starts after the reductions (`finished`: the other direction).
//!
//! Tensors go through NCCL. Data on the host, bytes and barriers, goes through MPI: it is rare, need not travel via the
//! GPU, and MPI compares the ranks' operations. NCCL compares nothing, so `finish` compares descriptions of means
//! through MPI: it waits for the result when a description first occurs, in the first step of a stage; afterwards the
//! comparison overlaps with the next step.

mod clock;
mod library;
mod options;
mod watch;

pub use library::NCCL_VARIABLE;
pub(crate) use options::NcclOptions;

use library::{Library, version_text};

use crate::comm::communicator::{Communicator, ReduceWait, Trace, contiguous, reducible, root_within};
use crate::comm::error::{Error, Result};
use crate::comm::mpi::Mpi;
use crate::config::Reduce;
use crate::cuda::{Context, Event, Stream};
use crate::process::phase;
use clock::{Clock, Mark};
use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use options::check_compatible;
use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};
use watch::NcclWatch;

/// Means are grouped into launches of at least this many bytes: a launch costs more than a small message.
const GROUP_BYTES: usize = 1 << 20;

/// Bytes of the NCCL unique ID.
const ID_BYTES: usize = 128;

/// The communicator of ranks with one GPU each. It stays on one thread.
pub struct Nccl {
    mpi: Rc<Mpi>,
    library: &'static Library,
    comm: ncclComm_t,
    watch: NcclWatch,
    /// The communication stream.
    stream: Stream,
    /// libtorch's stream.
    torch: Stream,
    ready: Event,
    finished: Event,
    /// The device of all tensors.
    device: Device,
    reduce: Reduce,
    context: Context,
    clock: RefCell<Option<Clock>>,
    means: RefCell<Means>,
    /// Descriptions of means found equal on all ranks.
    agreed: RefCell<HashSet<String>>,
}

#[derive(Default)]
struct Means {
    /// Not passed to NCCL yet.
    queued: Vec<NcclMean>,
    /// Passed to NCCL, kept until `finish`.
    started: Vec<NcclMean>,
}

/// A buffer to be averaged.
struct NcclMean {
    buffer: Tensor,
    /// Reduced in place of `buffer`, in another data type.
    copy: Option<Tensor>,
}

impl NcclMean {
    fn payload(&self) -> &Tensor {
        self.copy.as_ref().unwrap_or(&self.buffer)
    }

    fn bytes(&self) -> usize {
        self.payload().numel() * self.payload().kind().elt_size_in_bytes()
    }
}

impl Nccl {
    /// Joins the ranks of `mpi`. Errors: NCCL is missing, too old or of different versions, or two ranks use the same
    /// GPU. Collective.
    pub(crate) fn join(mpi: &Rc<Mpi>, options: NcclOptions) -> Result<Nccl> {
        let library = Library::open()?;
        check_compatible(mpi, library, &options)?;
        let watch = NcclWatch::start(library, options.context, options.limit)?;
        let started = |call: &'static str, code: u32| match code {
            0 => Ok(()),
            code => Err(Error::NcclStart { call, text: library.text_of(code, std::ptr::null_mut()) }),
        };
        let mut id = ncclUniqueId { internal: [0; ID_BYTES] };
        if mpi.rank() == 0 {
            // SAFETY: a live out pointer.
            started("ncclGetUniqueId", unsafe { (library.calls.ncclGetUniqueId)(&mut id) })?;
        }
        let bytes = id.internal.map(|byte| byte as u8);
        let bytes = &mpi.all_gather(&bytes)?[0];
        for (to, from) in id.internal.iter_mut().zip(bytes) {
            *to = *from as i8;
        }
        let (rank, size) = (mpi.rank() as i32, mpi.size() as i32);
        let mut comm = std::ptr::null_mut();
        let code = watch.during("ncclCommInitRank", || {
            // SAFETY: a live out pointer; this rank's context is current on this thread.
            unsafe { (library.calls.ncclCommInitRank)(&mut comm, size, id, rank) }
        });
        started("ncclCommInitRank", code)?;
        watch.set_comm(comm);
        Ok(Nccl {
            mpi: Rc::clone(mpi),
            library,
            comm,
            watch,
            stream: Stream::new(options.context)?,
            torch: Stream::legacy(options.context),
            ready: Event::new(options.context)?,
            finished: Event::new(options.context)?,
            device: options.device,
            reduce: options.reduce,
            context: options.context,
            clock: RefCell::default(),
            means: RefCell::default(),
            agreed: RefCell::default(),
        })
    }

    /// Returns whether no reduction awaits `finish`. Local.
    pub(crate) fn idle(&self) -> bool {
        let means = self.means.borrow();
        means.queued.is_empty() && means.started.is_empty()
    }

    /// Destroys the communicator, under the time limit. Called by all ranks at a normal exit.
    pub(crate) fn close(self) {
        self.watch.during("ncclCommDestroy", || {
            self.watch.stop_polling();
            // SAFETY: a live communicator, destroyed once. Errors no longer matter.
            unsafe { (self.library.calls.ncclCommDestroy)(self.comm) }
        });
    }

    /// Stops the watchdog before a normal exit without `close`, so that the exit of other ranks is not reported as an
    /// error.
    pub(crate) fn stop_watching(&self) {
        self.watch.stop_polling();
    }

    /// Calls NCCL under the time limit.
    fn call(&self, operation: &str, call: &'static str, start: impl FnOnce() -> u32) -> Result<()> {
        match self.watch.during(operation, start) {
            0 => Ok(()),
            code => Err(Error::NcclFailed {
                at: Box::new(phase::here()),
                operation: operation.into(),
                call,
                text: self.library.text_of(code, self.comm),
            }),
        }
    }

    /// Launches a collective on the communication stream, ordered after libtorch's work so far.
    fn launch(&self, operation: String, collective: impl FnOnce(&str) -> Result<()>) -> Result<()> {
        self.ready.record(&self.torch)?;
        self.stream.wait(&self.ready)?;
        self.record(Mark::Begin(&operation))?;
        collective(&operation)?;
        self.record(Mark::End)?;
        let done = self.watch.event()?;
        done.record(&self.stream)?;
        self.watch.follow(&operation, done);
        Ok(())
    }

    /// Launches the queued means as one group.
    fn launch_queued(&self) -> Result<()> {
        let queued = std::mem::take(&mut self.means.borrow_mut().queued);
        if queued.is_empty() {
            return Ok(());
        }
        let started = self.launch(describe("all-reduce", &queued), |operation| {
            let calls = &self.library.calls;
            // SAFETY: no argument.
            self.call(operation, "ncclGroupStart", || unsafe { (calls.ncclGroupStart)() })?;
            for mean in &queued {
                let payload = mean.payload();
                let (at, count, kind) = (payload.data_ptr(), payload.numel(), data_type(payload.kind()));
                // SAFETY: the tensor holds `count` elements of `kind` and is kept until `finish`; a live communicator
                // and stream.
                self.call(operation, "ncclAllReduce", || unsafe {
                    (calls.ncclAllReduce)(
                        at,
                        at,
                        count,
                        kind,
                        ncclRedOp_t::ncclAvg,
                        self.comm,
                        self.stream.raw().cast(),
                    )
                })?;
            }
            // SAFETY: no argument.
            self.call(operation, "ncclGroupEnd", || unsafe { (calls.ncclGroupEnd)() })
        });
        // Even after an error: some may have been launched, and the GPU still writes to their memory.
        self.means.borrow_mut().started.extend(queued);
        started
    }

    /// Records a time if there is a trace.
    fn record(&self, mark: Mark) -> Result<()> {
        let mut clock = self.clock.borrow_mut();
        clock.as_mut().map_or(Ok(()), |clock| clock.record(mark, &self.stream, &self.torch))
    }

    /// Records an event that tells when libtorch's stream reaches this point.
    fn timestamp(&self) -> Result<Event> {
        let event = Event::timed(self.context)?;
        event.record(&self.torch)?;
        Ok(event)
    }

    /// Orders libtorch's work from now on after the work on the communication stream.
    fn order_torch_after(&self) -> Result<()> {
        self.finished.record(&self.stream)?;
        Ok(self.torch.wait(&self.finished)?)
    }

    fn on_device(&self, operation: &'static str, buffer: &Tensor) -> Result<()> {
        match buffer.device() {
            device if device == self.device => Ok(()),
            device => Err(Error::Buffer {
                operation,
                expected: format!("a tensor on {:?}", self.device),
                found: format!("{device:?}"),
            }),
        }
    }
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.mpi.rank()
    }

    fn size(&self) -> usize {
        self.mpi.size()
    }

    fn start_mean(&self, buffer: &Tensor) -> Result<()> {
        reducible("mean", buffer)?;
        self.on_device("mean", buffer)?;
        // The conversion runs on libtorch's stream, so it precedes `ready`.
        let copy = match (self.reduce, buffer.f_kind()?) {
            (Reduce::Bf16, Kind::Float) => Some(buffer.f_to_kind(Kind::BFloat16)?),
            _ => None,
        };
        let bytes = {
            let queued = &mut self.means.borrow_mut().queued;
            queued.push(NcclMean { buffer: buffer.shallow_clone(), copy });
            queued.iter().map(NcclMean::bytes).sum::<usize>()
        };
        if bytes >= GROUP_BYTES { self.launch_queued() } else { Ok(()) }
    }

    fn progress(&self) -> Result<()> {
        // The GPU moves the means by itself.
        self.mpi.progress()
    }

    fn start_trace(&self) -> Result<()> {
        *self.clock.borrow_mut() = Some(Clock::start(self.context, &self.torch)?);
        Ok(())
    }

    fn take_trace(&self) -> Result<Option<Trace>> {
        self.clock.borrow_mut().take().map(Clock::read).transpose()
    }

    fn finish(&self) -> Result<ReduceWait> {
        self.launch_queued()?;
        self.record(Mark::Step)?;
        // Before the comparison: the GPU is idle while the host waits in it.
        let computed = self.timestamp()?;
        let description = describe("mean", &self.means.borrow().started);
        match self.agreed.borrow().contains(&description) {
            true => self.mpi.agree_deferred(&description)?,
            false => self.mpi.agree(&description)?,
        }
        self.agreed.borrow_mut().insert(description);
        self.order_torch_after()?;
        let averaged = self.timestamp()?;
        // Memory freed from here on is reused on libtorch's stream, which waits for the reductions.
        for mut mean in std::mem::take(&mut self.means.borrow_mut().started) {
            if let Some(copy) = mean.copy {
                tch::no_grad(|| mean.buffer.f_copy_(&copy))?;
            }
        }
        Ok(ReduceWait::Gpu(computed, averaged))
    }

    fn stop_requested(&self) -> bool {
        self.mpi.stop_requested()
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        contiguous("broadcast", buffer)?;
        self.on_device("broadcast", buffer)?;
        root_within(root, self.size())?;
        let kind = buffer.f_kind()?;
        let operation = format!("broadcast of {} {kind:?} from rank {root}", buffer.numel());
        self.mpi.agree(&operation)?;
        let (at, bytes) = (buffer.data_ptr(), buffer.numel() * kind.elt_size_in_bytes());
        let started = self.launch(operation, |operation| {
            // SAFETY: the tensor holds `bytes` bytes, and libtorch's next use of its memory waits for the stream, or it
            // is leaked; a live communicator and stream.
            self.call(operation, "ncclBroadcast", || unsafe {
                (self.library.calls.ncclBroadcast)(
                    at,
                    at,
                    bytes,
                    ncclDataType_t::ncclUint8,
                    root as i32,
                    self.comm,
                    self.stream.raw().cast(),
                )
            })
        });
        started.and_then(|()| self.order_torch_after()).inspect_err(|_| {
            // It may have been launched, and the GPU still writes to it.
            std::mem::forget(buffer.shallow_clone());
        })
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.mpi.all_gather(bytes)
    }

    fn barrier(&self) -> Result<()> {
        self.mpi.barrier()
    }

    fn abort(&self, why: &dyn std::error::Error) -> ! {
        self.mpi.abort(why)
    }
}

impl Drop for Nccl {
    /// Without `close`, the communicator is leaked: destroying it would wait for the other ranks. The memory of
    /// unfinished means is leaked too: the GPU may still write to it.
    fn drop(&mut self) {
        let means = self.means.get_mut();
        std::mem::forget(std::mem::take(&mut means.started));
    }
}

/// Describes means, identically on all ranks: "all-reduce of 3 tensors, 1247 elements (1200 Float, 40 Float, 7
/// BFloat16)".
fn describe(what: &str, means: &[NcclMean]) -> String {
    let total: usize = means.iter().map(|mean| mean.payload().numel()).sum();
    let lengths: Vec<_> =
        means.iter().map(|mean| format!("{} {:?}", mean.payload().numel(), mean.payload().kind())).collect();
    let tensors = if means.len() == 1 { "tensor" } else { "tensors" };
    format!("{what} of {} {tensors}, {total} elements ({})", means.len(), lengths.join(", "))
}

fn data_type(kind: Kind) -> ncclDataType_t {
    match kind {
        Kind::Double => ncclDataType_t::ncclFloat64,
        Kind::BFloat16 => ncclDataType_t::ncclBfloat16,
        _ => ncclDataType_t::ncclFloat32,
    }
}

/// Returns version and path of the NCCL that ranks on GPUs would use. Local.
pub fn nccl_library() -> Result<(String, &'static Path)> {
    let library = Library::open()?;
    Ok((version_text(library.version), library.path()))
}
