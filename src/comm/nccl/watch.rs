//! Watchdog of the NCCL communicator: terminates all ranks if a collective fails or does not finish.
//!
//! The main thread never waits for a collective, and may be blocked in a call that never returns. Two threads therefore
//! check several times a second, and terminate the run through MPI. One polls GPU and library for errors, and may
//! itself block; the other only checks the time. NCCL's own mechanism (`ncclCommAbort`) may hang until every rank of
//! the machine calls it, and is not used.

use super::library::Library;
use crate::comm::error::{Error, Result};
use crate::cuda::{Context, Event};
use crate::files;
use crate::process::exit::abort_all;
use crate::process::messages::print_stderr;
use crate::process::phase::{self, RankLocation};
use crate::process::rank_status;
use cudarc::nccl::sys::{ncclComm_t, ncclResult_t};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Delay of ranks other than 0 before they terminate all ranks, so that the others can print their errors.
const REPORT_GRACE: Duration = Duration::from_millis(300);

/// The watchdog threads; they stop when this is dropped.
pub(super) struct NcclWatch {
    shared: Arc<WatchShared>,
    poller: Cell<Option<JoinHandle<()>>>,
}

struct WatchShared {
    library: &'static Library,
    context: Context,
    limit: Duration,
    /// Null until the communicator is created.
    comm: AtomicPtr<std::ffi::c_void>,
    state: Mutex<WatchState>,
    wake: Condvar,
}

#[derive(Default)]
struct WatchState {
    /// The NCCL call that the main thread is in.
    call: Option<Watched>,
    /// The query that the polling thread is in.
    query: Option<Watched>,
    /// Collectives on the GPU, in the order in which they complete.
    collectives: VecDeque<(Watched, Arc<Event>)>,
    /// When the last one completed.
    last_completed: Option<Instant>,
    /// Unused events.
    spare: Vec<Arc<Event>>,
    /// Stops the polling thread.
    polling_stopped: bool,
    /// Stops the timeout thread.
    closing: bool,
}

/// An operation with a time limit.
#[derive(Clone)]
struct Watched {
    operation: String,
    at: RankLocation,
    since: Instant,
}

impl Watched {
    fn new(operation: &str) -> Watched {
        Watched { operation: operation.into(), at: phase::here(), since: Instant::now() }
    }

    fn failure(&self, call: &'static str, text: String) -> Error {
        Error::NcclFailed { at: Box::new(self.at.clone()), operation: self.operation.clone(), call, text }
    }
}

impl NcclWatch {
    /// Starts the threads. `limit` is how long a call or a collective may take.
    pub(super) fn start(library: &'static Library, context: Context, limit: Duration) -> Result<NcclWatch> {
        let shared = Arc::new(WatchShared {
            library,
            context,
            limit,
            comm: AtomicPtr::default(),
            state: Mutex::default(),
            wake: Condvar::new(),
        });
        let thread = |name: &str, watch: fn(&WatchShared) -> Result<()>| {
            let shared = Arc::clone(&shared);
            let watch = move || {
                if let Err(why) = watch(&shared) {
                    abort(&why);
                }
            };
            std::thread::Builder::new()
                .name(name.into())
                .spawn(watch)
                .map_err(files::io("start a thread of", "/proc/self"))
        };
        thread("nccl-time", WatchShared::watch_time)?;
        let poller = thread("nccl-poll", WatchShared::poll_errors)?;
        Ok(NcclWatch { shared, poller: Cell::new(Some(poller)) })
    }

    /// Starts polling `comm` for errors.
    pub(super) fn set_comm(&self, comm: ncclComm_t) {
        self.shared.comm.store(comm.cast(), Ordering::Release);
    }

    /// Runs an NCCL call that may wait for other ranks, under the time limit.
    pub(super) fn during<T>(&self, operation: &str, call: impl FnOnce() -> T) -> T {
        self.shared.lock().call = Some(Watched::new(operation));
        let answer = call();
        self.shared.lock().call = None;
        answer
    }

    /// Returns an event, to be recorded after a collective and passed to [`NcclWatch::follow`].
    pub(super) fn event(&self) -> Result<Arc<Event>> {
        match self.shared.lock().spare.pop() {
            Some(event) => Ok(event),
            None => Ok(Arc::new(Event::new(self.shared.context)?)),
        }
    }

    /// Watches `operation` until the event `done` completes. Called in the order of completion.
    pub(super) fn follow(&self, operation: &str, done: Arc<Event>) {
        self.shared.lock().collectives.push_back((Watched::new(operation), done));
    }

    /// Stops the polling thread; afterwards only the caller uses the communicator.
    pub(super) fn stop_polling(&self) {
        self.shared.lock().polling_stopped = true;
        self.shared.wake.notify_all();
        if let Some(poller) = self.poller.take() {
            // The thread returns or ends the process.
            let _ = poller.join();
        }
    }
}

impl Drop for NcclWatch {
    /// Stops the threads without waiting for them, since they may be blocked in a call.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        (state.polling_stopped, state.closing) = (true, true);
        self.shared.wake.notify_all();
    }
}

impl WatchShared {
    fn lock(&self) -> MutexGuard<'_, WatchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next check; returns `None` once `stopped` returns true.
    fn next_check(&self, stopped: fn(&WatchState) -> bool) -> Option<MutexGuard<'_, WatchState>> {
        let pause = (self.limit / 20).clamp(Duration::from_millis(1), Duration::from_millis(100));
        let woken = self.wake.wait_timeout_while(self.lock(), pause, |state| !stopped(state));
        let (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        if stopped(&state) { None } else { Some(state) }
    }

    /// Checks the time limits; returns the error that terminates the run.
    fn watch_time(&self) -> Result<()> {
        while let Some(state) = self.next_check(|state| state.closing) {
            // A collective may have been queued long before it starts: the limit applies to the time without any
            // completion. Without polling, nothing tells whether one has completed.
            let collective = state
                .collectives
                .front()
                .filter(|_| !state.polling_stopped)
                .map(|(collective, _)| (collective, state.last_completed.max(Some(collective.since))));
            let calls = [&state.call, &state.query];
            let calls = calls.into_iter().flatten().map(|call| (call, Some(call.since)));
            for (watched, since) in calls.chain(collective) {
                let waited = since.map_or(Duration::ZERO, |since| since.elapsed());
                if waited >= self.limit {
                    return Err(Error::NcclTimedOut {
                        at: Box::new(watched.at.clone()),
                        operation: watched.operation.clone(),
                        waited_s: waited.as_secs_f64(),
                        behind: rank_status::furthest_behind(watched.at.rank),
                    });
                }
            }
        }
        Ok(())
    }

    /// Polls GPU and library; returns the error that terminates the run. Holds no lock, so that the main thread never
    /// waits.
    fn poll_errors(&self) -> Result<()> {
        self.context.bind()?;
        while let Some(state) = self.next_check(|state| state.polling_stopped) {
            drop(state);
            while self.poll_gpu()? {}
            self.poll_library()?;
        }
        Ok(())
    }

    /// Returns whether the oldest collective has completed since the last check.
    fn poll_gpu(&self) -> Result<bool> {
        let Some((collective, done)) = self.lock().collectives.front().cloned() else {
            return Ok(false);
        };
        let ended = self.query(&collective, || done.is_done());
        if !ended.map_err(|why| collective.failure("the GPU", why.to_string()))? {
            return Ok(false);
        }
        let mut state = self.lock();
        let event = state.collectives.pop_front().map(|(_, event)| event);
        state.spare.extend(event);
        state.last_completed = Some(Instant::now());
        Ok(true)
    }

    /// Polls NCCL for an asynchronous error.
    fn poll_library(&self) -> Result<()> {
        let comm: ncclComm_t = self.comm.load(Ordering::Acquire).cast();
        if comm.is_null() {
            return Ok(());
        }
        let watched = {
            let state = self.lock();
            state.collectives.front().map(|(collective, _)| collective).or(state.call.as_ref()).cloned()
        };
        let watched = watched.unwrap_or_else(|| Watched::new("ncclCommGetAsyncError"));
        let mut found = 0u32;
        let code = self.query(&watched, || {
            // SAFETY: the communicator lives until `stop_polling` returns; NCCL allows this query while another thread
            // uses it. The result is kept as a number: a newer library may have more codes.
            unsafe {
                (self.library.calls.ncclCommGetAsyncError)(comm, (&raw mut found).cast::<ncclResult_t>())
            }
        });
        let code = if code != 0 { code } else { found };
        if code == 0 || code == ncclResult_t::ncclInProgress as u32 {
            return Ok(());
        }
        Err(watched.failure("ncclCommGetAsyncError", self.library.text_of(code, comm)))
    }

    /// Runs a query about `watched`, under the time limit.
    fn query<T>(&self, watched: &Watched, query: impl FnOnce() -> T) -> T {
        self.lock().query = Some(Watched { since: Instant::now(), ..watched.clone() });
        let answer = query();
        self.lock().query = None;
        answer
    }
}

/// Prints the error and terminates all ranks.
fn abort(why: &Error) -> ! {
    print_stderr(&why.to_string());
    if phase::here().rank != 0 {
        std::thread::sleep(REPORT_GRACE);
    }
    abort_all(1)
}
