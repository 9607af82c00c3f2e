//! Pending MPI requests, the memory they use, and polling without occupying a core.

use crate::process::rank_status;
use mpi::ffi::{self, MPI_Request};
use std::mem::ManuallyDrop;
use std::os::raw::c_int;
use std::time::Duration;
use tch::Tensor;

/// Requests, and the memory that MPI reads and writes until they complete.
pub(super) struct PendingRequests {
    requests: Vec<MPI_Request>,
    memory: ManuallyDrop<Vec<Tensor>>,
}

impl PendingRequests {
    pub(super) fn new(memory: Vec<Tensor>) -> Self {
        Self { requests: Vec::new(), memory: ManuallyDrop::new(memory) }
    }

    /// Adds the request created by `start`.
    pub(super) fn add(&mut self, start: impl FnOnce(*mut MPI_Request) -> c_int) -> Result<(), c_int> {
        // SAFETY: a constant handle of the library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let code = start(&mut request);
        self.requests.push(request);
        check(code)
    }

    /// Polls the requests and returns whether all are complete.
    pub(super) fn test(&mut self) -> Result<bool, c_int> {
        let mut outcome = Ok(());
        self.requests.retain_mut(|request| {
            let mut done = 0;
            // SAFETY: the request is live or null, and its memory is kept in `memory`.
            let code = unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
            if let Err(code) = check(code) {
                outcome = Err(code);
            }
            done == 0
        });
        outcome.map(|()| self.requests.is_empty())
    }
}

impl Drop for PendingRequests {
    fn drop(&mut self) {
        // The memory of an incomplete request is leaked: MPI may still write to it.
        if self.requests.is_empty() {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.memory) }
        }
    }
}

/// Backs off between polls: responds within microseconds if the other ranks have arrived, and yields the core to them
/// if they still compute.
pub(super) struct Backoff {
    polls: u32,
    sleep: Duration,
}

impl Backoff {
    const YIELDS: u32 = 50;
    const LONGEST: Duration = Duration::from_micros(500);

    pub(super) fn new() -> Self {
        Self { polls: 0, sleep: Duration::from_micros(20) }
    }

    pub(super) fn wait(&mut self) {
        self.polls += 1;
        if self.polls <= Self::YIELDS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(self.sleep);
            self.sleep = (self.sleep + self.sleep / 4).min(Self::LONGEST);
        }
    }
}

/// Marks this rank as waiting in an operation, as reported by heartbeats, until dropped.
pub(super) struct Waiting;

impl Waiting {
    pub(super) fn begin(number: u64) -> Self {
        rank_status::begin_wait(number);
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        rank_status::end_wait();
    }
}

fn check(code: c_int) -> Result<(), c_int> {
    match code == ffi::MPI_SUCCESS as c_int {
        true => Ok(()),
        false => Err(code),
    }
}

/// Returns MPI's message for an error code.
pub(super) fn text_of(code: c_int) -> String {
    let mut text = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: the buffer is as long as the library's longest text.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    text.truncate(length.max(0) as usize);
    String::from_utf8_lossy(&text).into_owned()
}
