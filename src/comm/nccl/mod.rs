//! Ranks with a GPU each, joined by NCCL: collectives on a stream of their own, in order with libtorch's by events.
//!
//! The host never waits for a GPU here. Rules of order, one event each:
//! - a reduction begins after what libtorch was given before it (`ready`: libtorch's stream -> communication stream);
//! - what libtorch is given after `finish` begins after the reductions (`finished`: the other way).
//!
//! Tensors go through NCCL. What is on the host anyway, bytes and barriers, goes through MPI: it is rare, needs no way over
//! the GPU and back, and MPI compares what the ranks are about to do. NCCL compares nothing, so descriptions of means
//! are compared through MPI the first time that they occur: in the first step of a stage, not in every step.

mod clock;
mod library;
mod options;
mod watch;

pub use library::NCCL_VARIABLE;
pub(crate) use options::NcclOptions;

use library::{Library, version_text};

use crate::comm::communicator::{Communicator, Trace, contiguous, reducible, root_within};
use crate::comm::error::{Error, Result};
use crate::comm::mpi::Mpi;
use crate::config::Reduce;
use crate::cuda::{Context, Event, Stream};
use crate::process::phase;
use clock::{Clock, Mark};
use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};
use options::compare;
use watch::NcclWatch;

/// Means are handed to the library together until they have this many bytes: a call costs more than a small message.
const GROUP_BYTES: usize = 1 << 20;

/// Bytes of the number by which ranks find one another.
const ID_BYTES: usize = 128;

/// The communicator of ranks with a GPU each. It lives on one thread.
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
    /// Where tensors must be.
    device: Device,
    reduce: Reduce,
    context: Context,
    clock: RefCell<Option<Clock>>,
    means: RefCell<Means>,
    /// Descriptions of means that all ranks were found to have.
    agreed: RefCell<HashSet<String>>,
}

#[derive(Default)]
struct Means {
    /// Not handed to the library yet.
    waiting: Vec<NcclMean>,
    /// Handed to it, until `finish`.
    started: Vec<NcclMean>,
}

/// One buffer to be averaged.
struct NcclMean {
    buffer: Tensor,
    /// What travels in its place.
    copy: Option<Tensor>,
}

impl NcclMean {
    fn sent(&self) -> &Tensor {
        self.copy.as_ref().unwrap_or(&self.buffer)
    }

    fn bytes(&self) -> usize {
        self.sent().numel() * self.sent().kind().elt_size_in_bytes()
    }
}

impl Nccl {
    /// Joins the ranks of `mpi`. Errors: no library, one that is too old, other versions on other ranks, two ranks on one
    /// GPU. Collective.
    pub(crate) fn join(mpi: &Rc<Mpi>, options: NcclOptions) -> Result<Nccl> {
        let library = Library::open()?;
        compare(mpi, library, &options)?;
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

    /// Whether nothing was started that `finish` has not been called for. Local.
    pub(crate) fn idle(&self) -> bool {
        let means = self.means.borrow();
        means.waiting.is_empty() && means.started.is_empty()
    }

    /// Leaves the ranks, under the time limit. All ranks, at the good end of a run.
    pub(crate) fn close(self) {
        self.watch.during("ncclCommDestroy", || {
            self.watch.stop_polling();
            // SAFETY: a live communicator, destroyed once. An error harms nobody any more.
            unsafe { (self.library.calls.ncclCommDestroy)(self.comm) }
        });
    }

    /// Before this process ends as all of them do, and without `close`: that others are gone is no error any more.
    pub(crate) fn stop_watching(&self) {
        self.watch.stop_polling();
    }

    /// One call of the library, under the time limit.
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

    /// Gives the communication stream a collective that begins after libtorch's work up to now.
    fn start(&self, operation: String, collective: impl FnOnce(&str) -> Result<()>) -> Result<()> {
        self.ready.record(&self.torch)?;
        self.stream.wait(&self.ready)?;
        self.note(Mark::Begin(&operation))?;
        collective(&operation)?;
        self.note(Mark::End)?;
        let done = self.watch.event()?;
        done.record(&self.stream)?;
        self.watch.follow(&operation, done);
        Ok(())
    }

    /// Hands the waiting means to the library, as one group.
    fn start_waiting(&self) -> Result<()> {
        let waiting = std::mem::take(&mut self.means.borrow_mut().waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let started = self.start(describe("all-reduce", &waiting), |operation| {
            let calls = &self.library.calls;
            // SAFETY: no argument.
            self.call(operation, "ncclGroupStart", || unsafe { (calls.ncclGroupStart)() })?;
            for mean in &waiting {
                let sent = mean.sent();
                let (at, count, kind) = (sent.data_ptr(), sent.numel(), data_type(sent.kind()));
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
        // After an error too: the GPU may have been given some of them, and still writes to their memory.
        self.means.borrow_mut().started.extend(waiting);
        started
    }

    /// Times a point, if there is a trace.
    fn note(&self, mark: Mark) -> Result<()> {
        let mut clock = self.clock.borrow_mut();
        clock.as_mut().map_or(Ok(()), |clock| clock.note(mark, &self.stream, &self.torch))
    }

    /// What libtorch is given from now on begins after what is on the communication stream.
    fn hand_over(&self) -> Result<()> {
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
        // The copy is libtorch's work: it is made before `ready`.
        let copy = match (self.reduce, buffer.f_kind()?) {
            (Reduce::Bf16, Kind::Float) => Some(buffer.f_to_kind(Kind::BFloat16)?),
            _ => None,
        };
        let bytes = {
            let waiting = &mut self.means.borrow_mut().waiting;
            waiting.push(NcclMean { buffer: buffer.shallow_clone(), copy });
            waiting.iter().map(NcclMean::bytes).sum::<usize>()
        };
        if bytes >= GROUP_BYTES { self.start_waiting() } else { Ok(()) }
    }

    fn progress(&self) -> Result<()> {
        // The GPU moves them.
        Ok(())
    }

    fn start_trace(&self) -> Result<()> {
        *self.clock.borrow_mut() = Some(Clock::start(self.context, &self.torch)?);
        Ok(())
    }

    fn take_trace(&self) -> Result<Option<Trace>> {
        self.clock.borrow_mut().take().map(Clock::read).transpose()
    }

    fn finish(&self) -> Result<()> {
        self.start_waiting()?;
        self.note(Mark::Step)?;
        let description = describe("finish", &self.means.borrow().started);
        if !self.agreed.borrow().contains(&description) {
            self.mpi.agree(&description)?;
            self.agreed.borrow_mut().insert(description);
        }
        self.hand_over()?;
        // Buffers that are freed from here on are used again by libtorch's stream, which waits.
        for mut mean in std::mem::take(&mut self.means.borrow_mut().started) {
            if let Some(copy) = mean.copy {
                tch::no_grad(|| mean.buffer.f_copy_(&copy))?;
            }
        }
        Ok(())
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        contiguous("broadcast", buffer)?;
        self.on_device("broadcast", buffer)?;
        root_within(root, self.size())?;
        let kind = buffer.f_kind()?;
        let operation = format!("broadcast of {} {kind:?} from rank {root}", buffer.numel());
        self.mpi.agree(&operation)?;
        let (at, bytes) = (buffer.data_ptr(), buffer.numel() * kind.elt_size_in_bytes());
        let started = self.start(operation, |operation| {
            // SAFETY: the tensor holds `bytes` bytes, and what libtorch does with its memory next waits for the stream, or
            // it is never given back; a live communicator and stream.
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
        started.and_then(|()| self.hand_over()).inspect_err(|_| {
            // The GPU may have been given it, and still writes.
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
    /// Without `close` the communicator is left to the end of the process: to destroy it would wait for the others.
    /// Memory of means that never ended is left too: the GPU may still write to it.
    fn drop(&mut self) {
        let means = self.means.get_mut();
        std::mem::forget(std::mem::take(&mut means.started));
    }
}

/// "all-reduce of 3 means of 1247 (1200 Float, 40 Float, 7 BFloat16)": equal on ranks that do the same.
fn describe(what: &str, means: &[NcclMean]) -> String {
    let total: usize = means.iter().map(|mean| mean.sent().numel()).sum();
    let lengths: Vec<_> =
        means.iter().map(|mean| format!("{} {:?}", mean.sent().numel(), mean.sent().kind())).collect();
    format!("{what} of {} means of {total} ({})", means.len(), lengths.join(", "))
}

fn data_type(kind: Kind) -> ncclDataType_t {
    match kind {
        Kind::Double => ncclDataType_t::ncclFloat64,
        Kind::BFloat16 => ncclDataType_t::ncclBfloat16,
        _ => ncclDataType_t::ncclFloat32,
    }
}

/// Version and path of the NCCL that ranks on GPUs would use. Local.
pub fn nccl_library() -> Result<(String, &'static Path)> {
    let library = Library::open()?;
    Ok((version_text(library.version), library.path()))
}
