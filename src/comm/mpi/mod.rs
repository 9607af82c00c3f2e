//! Ranks joined by MPI, tensors in host memory: non-blocking operations, polled under a time limit.
//!
//! No call blocks inside MPI. Each collective uses its non-blocking form, polled in a loop that sleeps between polls
//! (ranks often share cores) and fails with [`Error::TimedOut`] if the other ranks do not arrive. The raw calls of
//! `mpi::ffi` are used because the request scopes of rsmpi wait for pending operations without limit when a scope ends.
//!
//! MPI matches collectives only by their order: if ranks call different ones, or the same one with different sizes, the
//! result is at best an abort inside MPI and at worst wrong values. Every operation (for means: every `finish`)
//! therefore first compares the calls of all ranks, 16 bytes on a separate communicator. A rank that exits early or
//! takes another branch is thus detected at the next collective.

mod agreement;
mod requests;

use agreement::Agreement;
use requests::{Backoff, PendingRequests, Waiting, text_of};

use crate::comm::communicator::{Communicator, ReduceWait, contiguous, reducible, root_within};
use crate::comm::error::{Error, Result};
use crate::process::error_line::chain;
use crate::process::exit::abort_all;
use crate::process::messages::print_stderr;
use crate::process::{phase, rank_status};
use mpi::ffi::{self, MPI_Comm, MPI_Datatype, MPI_Request};
use std::cell::{Cell, RefCell};
use std::os::raw::{c_int, c_void};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Elements (of a mean) or bytes (of a broadcast) per MPI call: far below MPI's i32 limit, and small enough that the
/// chunks of a long buffer are transferred concurrently.
const CHUNK: usize = 1 << 22;

/// The communicator of several MPI ranks. It stays on the thread that initialised MPI and is not `Send`.
pub struct Mpi {
    /// The world communicator, used only to compare operations.
    control: MPI_Comm,
    /// A duplicate of the world, used for the data, so that differing calls on `data` can still be reported on
    /// `control`.
    data: MPI_Comm,
    rank: usize,
    size: usize,
    host: String,
    limit: Cell<Duration>,
    sequence: Cell<u64>,
    failed: Cell<bool>,
    /// The comparison that the next one finishes.
    deferred: RefCell<Option<Agreement>>,
    /// Whether a rank had been asked to stop, as of the last finished comparison.
    stop_requested: Cell<bool>,
    means: RefCell<Vec<MpiMean>>,
    /// Unused receive buffers, kept from step to step.
    spare_sums: RefCell<Vec<Tensor>>,
}

/// A pending mean. MPI_IN_PLACE is a cast in mpi.h that bindgen does not support and that differs between libraries, so
/// sums are received in a second buffer; the division writes them back, with no more memory traffic than in place.
struct MpiMean {
    buffer: Tensor,
    sum: Tensor,
    requests: PendingRequests,
    failed: Option<c_int>,
}

impl Mpi {
    /// Joins the ranks of the world. Called on the thread that initialised MPI. `limit`, equal on all ranks, is how
    /// long an operation may wait for the other ranks. Collective.
    pub(crate) fn join(host: String, limit: Duration) -> Result<Self> {
        // SAFETY: constant handles; the out pointers are live; MPI is initialised.
        let (control, null, rank, size) = unsafe {
            let control = ffi::RSMPI_COMM_WORLD;
            let (mut rank, mut size) = (0, 0);
            ffi::MPI_Comm_rank(control, &mut rank);
            ffi::MPI_Comm_size(control, &mut size);
            // From here on MPI returns errors instead of ending the process with its own message.
            ffi::MPI_Comm_set_errhandler(control, ffi::RSMPI_ERRORS_RETURN);
            (control, ffi::RSMPI_COMM_NULL, rank as usize, size as usize)
        };
        let mut joined = Self {
            control,
            data: null,
            rank,
            size,
            host,
            limit: Cell::new(limit),
            sequence: Cell::new(0),
            failed: Cell::new(false),
            deferred: RefCell::default(),
            stop_requested: Cell::new(false),
            means: RefCell::default(),
            spare_sums: RefCell::default(),
        };
        // MPI writes the new handle when the request completes, so the handle must outlive a timeout.
        let handle = Box::leak(Box::new(null));
        let mut requests = PendingRequests::new(Vec::new());
        let operation = "start-up";
        // SAFETY: `handle` is leaked, so it outlives the request.
        joined.call(operation, &mut requests, |request| unsafe {
            ffi::MPI_Comm_idup(control, &raw mut *handle, request)
        })?;
        joined.wait(operation, Instant::now(), &mut requests)?;
        // SAFETY: the request is complete; reclaims the box leaked above.
        joined.data = unsafe { *Box::from_raw(handle) };
        // SAFETY: a live communicator and a constant handle.
        unsafe { ffi::MPI_Comm_set_errhandler(joined.data, ffi::RSMPI_ERRORS_RETURN) };
        Ok(joined)
    }

    /// Sets how long an operation may wait for the other ranks. Equal on all ranks. Local.
    pub(crate) fn set_limit(&self, limit: Duration) {
        self.limit.set(limit);
    }

    /// Returns whether no operation is pending and none has failed: only then may MPI be finalised. Local.
    pub(crate) fn idle(&self) -> bool {
        !self.failed.get() && self.means.borrow().is_empty()
    }

    /// Gathers the bytes of every rank. The lengths must have been compared.
    fn gather(&self, operation: &str, since: Instant, bytes: &[u8], comm: MPI_Comm) -> Result<Vec<Vec<u8>>> {
        let length = bytes.len();
        let count = c_int::try_from(length).map_err(|_| Error::Buffer {
            operation: "all_gather",
            expected: format!("at most {} bytes", c_int::MAX),
            found: length.to_string(),
        })?;
        let mine = Tensor::f_from_slice(bytes)?;
        let all = Tensor::f_zeros([(length * self.size) as i64], (Kind::Uint8, Device::Cpu))?;
        let mut requests = PendingRequests::new(vec![mine.shallow_clone(), all.shallow_clone()]);
        // SAFETY: `mine` holds `count` bytes, `all` as many for each rank; `requests` keeps both alive.
        self.call(operation, &mut requests, |request| unsafe {
            ffi::MPI_Iallgather(
                mine.data_ptr(),
                count,
                ffi::RSMPI_UINT8_T,
                all.data_ptr(),
                count,
                ffi::RSMPI_UINT8_T,
                comm,
                request,
            )
        })?;
        self.wait(operation, since, &mut requests)?;
        let mut flat = vec![0u8; length * self.size];
        let total = flat.len();
        all.f_copy_data_u8(&mut flat, total)?;
        Ok((0..self.size).map(|rank| flat[rank * length..(rank + 1) * length].to_vec()).collect())
    }

    /// Starts a request and adds it to `requests`.
    fn call(
        &self,
        operation: &str,
        requests: &mut PendingRequests,
        start: impl FnOnce(*mut MPI_Request) -> c_int,
    ) -> Result<()> {
        requests.add(start).map_err(|code| self.mpi_error(operation, code))
    }

    /// Waits for `requests`, at most `limit` from `since`.
    fn wait(&self, operation: &str, since: Instant, requests: &mut PendingRequests) -> Result<()> {
        self.wait_for(self.sequence.get(), operation, since, requests)
    }

    /// Waits for the requests of the operation with sequence number `number`.
    fn wait_for(
        &self,
        number: u64,
        operation: &str,
        since: Instant,
        requests: &mut PendingRequests,
    ) -> Result<()> {
        let mut backoff = Backoff::new();
        let _waiting = Waiting::begin(number);
        while !requests.test().map_err(|code| self.mpi_error_of(number, operation, code))? {
            let waited = since.elapsed();
            if waited >= self.limit.get() {
                self.failed.set(true);
                return Err(Error::TimedOut {
                    rank: self.rank,
                    host: self.host.clone(),
                    operation: operation.into(),
                    number,
                    waited_s: waited.as_secs_f64(),
                    missing: rank_status::missing(self.rank, number),
                });
            }
            backoff.wait();
        }
        Ok(())
    }

    fn mpi_error(&self, operation: &str, code: c_int) -> Error {
        self.mpi_error_of(self.sequence.get(), operation, code)
    }

    fn mpi_error_of(&self, number: u64, operation: &str, code: c_int) -> Error {
        self.failed.set(true);
        Error::Mpi {
            rank: self.rank,
            host: self.host.clone(),
            operation: operation.into(),
            number,
            text: text_of(code),
        }
    }

    fn next_sequence(&self) {
        self.sequence.set(self.sequence.get() + 1);
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn start_mean(&self, buffer: &Tensor) -> Result<()> {
        self.next_sequence();
        reducible("mean", buffer)?;
        in_host_memory("mean", buffer)?;
        let kind = buffer.f_kind()?;
        let mut means = self.means.borrow_mut();
        let sum = self.take_sum_buffer(buffer.numel(), kind)?;
        let mut mean = MpiMean {
            buffer: buffer.shallow_clone(),
            requests: PendingRequests::new(vec![buffer.shallow_clone(), sum.shallow_clone()]),
            sum,
            failed: None,
        };
        let datatype = datatype(kind);
        for (start, count) in chunks(buffer.numel()) {
            let at = |tensor: &Tensor| offset(tensor, start * kind.elt_size_in_bytes());
            let (from, to) = (at(&mean.buffer), at(&mean.sum));
            // SAFETY: both buffers hold `start + count` elements of this kind; the mean's requests keep both alive.
            let started = mean.requests.add(|request| unsafe {
                ffi::MPI_Iallreduce(from, to, count, datatype, ffi::RSMPI_SUM, self.data, request)
            });
            mean.failed = mean.failed.or(started.err());
        }
        means.push(mean);
        Ok(())
    }

    fn progress(&self) -> Result<()> {
        self.progress_deferred()?;
        for mean in self.means.borrow_mut().iter_mut() {
            // Reported by `finish`, which first compares the ranks' operations: that gives a better message.
            mean.failed = mean.failed.or(mean.requests.test().err());
        }
        Ok(())
    }

    fn finish(&self) -> Result<ReduceWait> {
        let since = Instant::now();
        let operation = describe(&self.means.borrow());
        self.agree_since(&operation, since)?;
        let mut means = self.means.borrow_mut();
        for mean in means.iter_mut() {
            if let Some(code) = mean.failed {
                return Err(self.mpi_error(&operation, code));
            }
            self.wait(&operation, since, &mut mean.requests)?;
            // A one-element tensor: `div_out` divides in place, whereas the scalar form makes a temporary copy.
            let size = Tensor::f_from_slice(&[self.size as f64])?.f_to_kind(mean.sum.kind())?;
            let flat = tch::no_grad(|| mean.buffer.f_view([-1]))?;
            let _ = tch::no_grad(|| mean.sum.f_div_out(&flat, &size))?;
        }
        self.spare_sums.borrow_mut().extend(means.drain(..).map(|mean| mean.sum));
        Ok(ReduceWait::since(since))
    }

    fn stop_requested(&self) -> bool {
        self.stop_requested.get()
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        contiguous("broadcast", buffer)?;
        in_host_memory("broadcast", buffer)?;
        root_within(root, self.size)?;
        let kind = buffer.f_kind()?;
        let operation = format!("broadcast of {} {kind:?} from rank {root}", buffer.numel());
        let since = Instant::now();
        self.agree_since(&operation, since)?;
        let mut requests = PendingRequests::new(vec![buffer.shallow_clone()]);
        for (start, count) in chunks(buffer.numel() * kind.elt_size_in_bytes()) {
            // SAFETY: the buffer holds `start + count` bytes; `requests` keeps it alive.
            self.call(&operation, &mut requests, |request| unsafe {
                ffi::MPI_Ibcast(
                    offset(buffer, start),
                    count,
                    ffi::RSMPI_UINT8_T,
                    root as c_int,
                    self.data,
                    request,
                )
            })?;
        }
        self.wait(&operation, since, &mut requests)
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let operation = format!("all-gather of {} bytes", bytes.len());
        let since = Instant::now();
        self.agree_since(&operation, since)?;
        self.gather(&operation, since, bytes, self.data)
    }

    fn barrier(&self) -> Result<()> {
        // The comparison completes only after every rank has started it.
        self.agree("barrier")
    }

    fn abort(&self, why: &dyn std::error::Error) -> ! {
        // An error found by all ranks (an invalid configuration) is printed by one: the others give rank 0 time to
        // abort.
        if self.rank != 0 {
            std::thread::sleep(Duration::from_millis(300));
        }
        // Errors of this module name the rank themselves.
        let who = format!("rank {} on {}", self.rank, self.host);
        let why = chain(why);
        // Some also name the step.
        let why = why.strip_prefix(&format!("{who}: ")).unwrap_or(&why);
        match why.starts_with(&who) {
            true => print_stderr(why),
            false => print_stderr(&format!("{who}{}: {why}", phase::step_suffix())),
        }
        abort_all(1)
    }
}

impl Mpi {
    /// Returns a receive buffer, reusing one from an earlier mean if the size fits.
    fn take_sum_buffer(&self, length: usize, kind: Kind) -> Result<Tensor> {
        let mut spare = self.spare_sums.borrow_mut();
        match spare.iter().position(|sum| sum.numel() == length && sum.kind() == kind) {
            Some(at) => Ok(spare.swap_remove(at)),
            None => Ok(Tensor::f_empty([length as i64], (kind, Device::Cpu))?),
        }
    }
}

/// Describes means, identically on all ranks: "mean of 3 tensors, 1247 elements (1200 Float, 40 Float, 7 Double)".
fn describe(means: &[MpiMean]) -> String {
    let lengths: Vec<_> =
        (means.iter()).map(|mean| format!("{} {:?}", mean.sum.numel(), mean.sum.kind())).collect();
    let total: usize = means.iter().map(|mean| mean.sum.numel()).sum();
    let tensors = if means.len() == 1 { "tensor" } else { "tensors" };
    // The total first: long texts are truncated when ranks compare them.
    format!("mean of {} {tensors}, {total} elements ({})", means.len(), lengths.join(", "))
}

/// Returns the (start, count) of the chunks of `total` items.
fn chunks(total: usize) -> impl Iterator<Item = (usize, c_int)> {
    (0..total).step_by(CHUNK).map(move |start| (start, CHUNK.min(total - start) as c_int))
}

fn offset(tensor: &Tensor, bytes: usize) -> *mut c_void {
    tensor.data_ptr().wrapping_byte_add(bytes)
}

fn datatype(kind: Kind) -> MPI_Datatype {
    // SAFETY: constant handles of the library.
    unsafe {
        match kind {
            Kind::Double => ffi::RSMPI_DOUBLE,
            _ => ffi::RSMPI_FLOAT,
        }
    }
}

fn in_host_memory(operation: &'static str, buffer: &Tensor) -> Result<()> {
    match buffer.device() {
        Device::Cpu => Ok(()),
        device => Err(Error::Buffer {
            operation,
            expected: "a tensor in host memory".into(),
            found: format!("{device:?}"),
        }),
    }
}
