//! Ranks joined by MPI, tensors in host memory: non-blocking operations only, polled under a time limit.
//!
//! No call here waits inside MPI. Each collective is its non-blocking form, tested in a loop that sleeps between tests
//! (ranks often share cores) and ends with [`Error::TimedOut`] when the others do not come. The raw calls of `mpi::ffi` are
//! used because the request scopes of rsmpi wait, without limit, for what is under way when a scope ends.
//!
//! MPI matches collectives by their order alone: two ranks that call different ones, or the same with other lengths, get
//! an abort from inside MPI at best and wrong numbers at worst. So every operation (for means: every `finish`) first
//! compares what the ranks are about to do, 16 bytes on a communicator of its own. A rank that leaves early, or took
//! another branch, is therefore found at the next collective.

mod agreement;
mod requests;

use requests::{PendingRequests, Backoff, text_of};

use crate::comm::communicator::{Communicator, contiguous, reducible, root_within};
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

/// Elements (of a mean) or bytes (of a broadcast) in one MPI call: far below the i32 that MPI counts with, and small
/// enough that the pieces of a long buffer travel side by side.
const CHUNK: usize = 1 << 22;

/// The communicator of a world of MPI ranks. It lives on the thread that started MPI and is not `Send`.
pub struct Mpi {
    /// The world: agreements only.
    control: MPI_Comm,
    /// A copy of the world: the data itself. What differs on `data` is then still told on `control`.
    data: MPI_Comm,
    rank: usize,
    size: usize,
    host: String,
    limit: Cell<Duration>,
    number: Cell<u64>,
    lost: Cell<bool>,
    means: RefCell<Vec<MpiMean>>,
    /// Receive buffers that no mean uses now, kept from step to step.
    sums: RefCell<Vec<Tensor>>,
}

/// One mean under way. MPI_IN_PLACE is a cast in mpi.h that bindgen cannot see and that differs between libraries, so
/// sums arrive in a second buffer; the division writes them back, at no more memory traffic than dividing in place.
struct MpiMean {
    buffer: Tensor,
    sum: Tensor,
    requests: PendingRequests,
    failed: Option<c_int>,
}

impl Mpi {
    /// Joins the ranks of the world. MPI is initialised and this is the thread that did it. All ranks give the same `limit`,
    /// the longest that one operation may wait for the other ranks. Collective.
    pub(crate) fn join(host: String, limit: Duration) -> Result<Self> {
        // SAFETY: constant handles; the out pointers are live; MPI is initialised.
        let (control, null, rank, size) = unsafe {
            let control = ffi::RSMPI_COMM_WORLD;
            let (mut rank, mut size) = (0, 0);
            ffi::MPI_Comm_rank(control, &mut rank);
            ffi::MPI_Comm_size(control, &mut size);
            // From here on MPI hands its errors back instead of ending the process with a text of its own.
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
            number: Cell::new(0),
            lost: Cell::new(false),
            means: RefCell::default(),
            sums: RefCell::default(),
        };
        // MPI writes the new handle when the request is done, so it lives where a stall leaves it.
        let handle = Box::leak(Box::new(null));
        let mut requests = PendingRequests::new(Vec::new());
        let operation = "start of the world";
        // SAFETY: `handle` is leaked: it outlives the request.
        joined.call(operation, &mut requests, |request| unsafe {
            ffi::MPI_Comm_idup(control, &raw mut *handle, request)
        })?;
        joined.wait(operation, Instant::now(), &mut requests)?;
        // SAFETY: the request is done; reclaims the box leaked above.
        joined.data = unsafe { *Box::from_raw(handle) };
        // SAFETY: a live communicator and a constant handle.
        unsafe { ffi::MPI_Comm_set_errhandler(joined.data, ffi::RSMPI_ERRORS_RETURN) };
        Ok(joined)
    }

    /// From now on one operation may wait so long for the other ranks. All ranks give the same.
    pub(crate) fn set_limit(&self, limit: Duration) {
        self.limit.set(limit);
    }

    /// Whether nothing is under way and nothing failed: only then may MPI be finalised. Local.
    pub(crate) fn idle(&self) -> bool {
        !self.lost.get() && self.means.borrow().is_empty()
    }

    /// The bytes of every rank. The lengths are known to be equal.
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
        // SAFETY: `mine` holds `count` bytes, `all` as many for each rank; the requests keeps both.
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

    /// Starts one request of `requests`.
    fn call(
        &self,
        operation: &str,
        requests: &mut PendingRequests,
        start: impl FnOnce(*mut MPI_Request) -> c_int,
    ) -> Result<()> {
        requests.add(start).map_err(|code| self.refused(operation, code))
    }

    /// Waits for `requests`, at most until `limit` after `since`.
    fn wait(&self, operation: &str, since: Instant, requests: &mut PendingRequests) -> Result<()> {
        let mut pause = Backoff::new();
        let _waiting = Waiting::begin(self.number.get());
        while !requests.test().map_err(|code| self.refused(operation, code))? {
            let waited = since.elapsed();
            if waited >= self.limit.get() {
                self.lost.set(true);
                return Err(Error::TimedOut {
                    rank: self.rank,
                    host: self.host.clone(),
                    operation: operation.into(),
                    number: self.number.get(),
                    waited_s: waited.as_secs_f64(),
                    missing: rank_status::missing(self.rank, self.number.get()),
                });
            }
            pause.rest();
        }
        Ok(())
    }

    fn refused(&self, operation: &str, code: c_int) -> Error {
        self.lost.set(true);
        Error::Mpi {
            rank: self.rank,
            host: self.host.clone(),
            operation: operation.into(),
            number: self.number.get(),
            text: text_of(code),
        }
    }

    fn next(&self) {
        self.number.set(self.number.get() + 1);
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
        self.next();
        reducible("mean", buffer)?;
        in_host_memory("mean", buffer)?;
        let kind = buffer.f_kind()?;
        let mut means = self.means.borrow_mut();
        let sum = self.sum_buffer(buffer.numel(), kind)?;
        let mut mean = MpiMean {
            buffer: buffer.shallow_clone(),
            requests: PendingRequests::new(vec![buffer.shallow_clone(), sum.shallow_clone()]),
            sum,
            failed: None,
        };
        let datatype = datatype(kind);
        for (start, count) in pieces(buffer.numel()) {
            let at = |tensor: &Tensor| offset(tensor, start * kind.elt_size_in_bytes());
            let (from, to) = (at(&mean.buffer), at(&mean.sum));
            // SAFETY: both buffers hold `start + count` elements of this kind; the requests keeps both.
            let started = mean.requests.add(|request| unsafe {
                ffi::MPI_Iallreduce(from, to, count, datatype, ffi::RSMPI_SUM, self.data, request)
            });
            mean.failed = mean.failed.or(started.err());
        }
        means.push(mean);
        Ok(())
    }

    fn progress(&self) -> Result<()> {
        for mean in self.means.borrow_mut().iter_mut() {
            // Kept for `finish`, which first asks whether the ranks differ: that is the better message.
            mean.failed = mean.failed.or(mean.requests.test().err());
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        self.next();
        let since = Instant::now();
        let operation = describe(&self.means.borrow());
        self.agree_since(&operation, since)?;
        let mut means = self.means.borrow_mut();
        for mean in means.iter_mut() {
            if let Some(code) = mean.failed {
                return Err(self.refused(&operation, code));
            }
            self.wait(&operation, since, &mut mean.requests)?;
            // A tensor of one element: `div_out` divides in place, the scalar form makes a temporary copy.
            let size = Tensor::f_from_slice(&[self.size as f64])?.f_to_kind(mean.sum.kind())?;
            let flat = tch::no_grad(|| mean.buffer.f_view([-1]))?;
            let _ = tch::no_grad(|| mean.sum.f_div_out(&flat, &size))?;
        }
        self.sums.borrow_mut().extend(means.drain(..).map(|mean| mean.sum));
        Ok(())
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        self.next();
        contiguous("broadcast", buffer)?;
        in_host_memory("broadcast", buffer)?;
        root_within(root, self.size)?;
        let kind = buffer.f_kind()?;
        let operation = format!("broadcast of {} {kind:?} from rank {root}", buffer.numel());
        let since = Instant::now();
        self.agree_since(&operation, since)?;
        let mut requests = PendingRequests::new(vec![buffer.shallow_clone()]);
        for (start, count) in pieces(buffer.numel() * kind.elt_size_in_bytes()) {
            // SAFETY: the buffer holds `start + count` bytes; the requests keeps it.
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
        self.next();
        let operation = format!("all-gather of {} bytes", bytes.len());
        let since = Instant::now();
        self.agree_since(&operation, since)?;
        self.gather(&operation, since, bytes, self.data)
    }

    fn barrier(&self) -> Result<()> {
        self.next();
        // An agreement ends only after every rank has begun it.
        self.agree("barrier")
    }

    fn abort(&self, why: &dyn std::error::Error) -> ! {
        // What all ranks find (a wrong configuration) is told by one: the others give rank 0 time to end them.
        if self.rank != 0 {
            std::thread::sleep(Duration::from_millis(300));
        }
        // Errors of this file name the rank themselves.
        let who = format!("rank {} on {}", self.rank, self.host);
        let why = chain(why);
        // Some errors say more of where they come from.
        let why = why.strip_prefix(&format!("{who}: ")).unwrap_or(&why);
        match why.starts_with(&who) {
            true => print_stderr(why),
            false => print_stderr(&format!("{who}{}: {why}", phase::in_step())),
        }
        abort_all(1)
    }
}

impl Mpi {
    /// A receive buffer, one kept from an earlier mean if it fits. A mean that ends gives its buffer back.
    fn sum_buffer(&self, length: usize, kind: Kind) -> Result<Tensor> {
        let mut sums = self.sums.borrow_mut();
        match sums.iter().position(|sum| sum.numel() == length && sum.kind() == kind) {
            Some(at) => Ok(sums.swap_remove(at)),
            None => Ok(Tensor::f_empty([length as i64], (kind, Device::Cpu))?),
        }
    }
}

/// While it lives, heartbeats say in which operation this rank waits.
struct Waiting;

impl Waiting {
    fn begin(number: u64) -> Self {
        rank_status::begin_wait(number);
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        rank_status::end_wait();
    }
}

/// "3 means of 1247 (1200 Float, 40 Float, 7 Double)": equal on ranks that do the same.
fn describe(means: &[MpiMean]) -> String {
    let lengths: Vec<_> =
        (means.iter()).map(|mean| format!("{} {:?}", mean.sum.numel(), mean.sum.kind())).collect();
    let total: usize = means.iter().map(|mean| mean.sum.numel()).sum();
    // The total first: long texts are cut where ranks compare them.
    format!("{} means of {total} ({})", means.len(), lengths.join(", "))
}

/// (start, count) of the pieces of `total` things.
fn pieces(total: usize) -> impl Iterator<Item = (usize, c_int)> {
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
