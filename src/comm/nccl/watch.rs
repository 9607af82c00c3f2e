//! The watchdog of a communicator: what is under way, and the end of all ranks when it fails or does not end.
//!
//! The main thread never waits for a collective by itself: it may be anywhere, also inside a call that never returns. So two
//! threads look after it several times a second and end the run through MPI. One asks GPU and library, and may itself be
//! held there; the other one only looks at the time. The library's own way to give up (`ncclCommAbort`) may hang until
//! every rank of the machine calls it, and is not used.

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

/// Given to the other ranks to say what they see before the first one ends all.
const REPORT_GRACE: Duration = Duration::from_millis(300);

/// Watches until it is dropped.
pub(super) struct NcclWatch {
    shared: Arc<WatchShared>,
    asking: Cell<Option<JoinHandle<()>>>,
}

struct WatchShared {
    library: &'static Library,
    context: Context,
    limit: Duration,
    /// Null before the communicator is there.
    comm: AtomicPtr<std::ffi::c_void>,
    state: Mutex<WatchState>,
    wake: Condvar,
}

#[derive(Default)]
struct WatchState {
    /// The call of the library that the main thread is in.
    call: Option<Watched>,
    /// The question that the asking thread waits for.
    question: Option<Watched>,
    /// Collectives on the GPU, in the order in which they end.
    collectives: VecDeque<(Watched, Arc<Event>)>,
    /// When the last one ended.
    moved: Option<Instant>,
    /// Events that nothing uses now.
    spare: Vec<Arc<Event>>,
    /// No more questions.
    quiet: bool,
    /// No more looks at the time either.
    closing: bool,
}

/// Something that must end.
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

    fn lost(&self, call: &'static str, text: String) -> Error {
        Error::NcclFailed { at: Box::new(self.at.clone()), operation: self.operation.clone(), call, text }
    }
}

impl NcclWatch {
    /// Starts to watch. `limit` is the longest that one call or one collective may take.
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
                    end(&why);
                }
            };
            std::thread::Builder::new()
                .name(name.into())
                .spawn(watch)
                .map_err(files::io("start a thread of", "/proc/self"))
        };
        thread("nccl-time", WatchShared::watch_time)?;
        let asking = thread("nccl-ask", WatchShared::watch_answers)?;
        Ok(NcclWatch { shared, asking: Cell::new(Some(asking)) })
    }

    /// From now on errors of `comm` are asked for.
    pub(super) fn set_comm(&self, comm: ncclComm_t) {
        self.shared.comm.store(comm.cast(), Ordering::Release);
    }

    /// Runs a call of the library that may wait for other ranks.
    pub(super) fn during<T>(&self, operation: &str, call: impl FnOnce() -> T) -> T {
        self.shared.lock().call = Some(Watched::new(operation));
        let answer = call();
        self.shared.lock().call = None;
        answer
    }

    /// An event to be recorded after a collective and handed to [`NcclWatch::follow`].
    pub(super) fn event(&self) -> Result<Arc<Event>> {
        match self.shared.lock().spare.pop() {
            Some(event) => Ok(event),
            None => Ok(Arc::new(Event::new(self.shared.context)?)),
        }
    }

    /// `operation` is under way until `done` has come. Given in the order in which they end.
    pub(super) fn follow(&self, operation: &str, done: Arc<Event>) {
        self.shared.lock().collectives.push_back((Watched::new(operation), done));
    }

    /// Asks no more: returns when the communicator is nobody's but the caller's.
    pub(super) fn stop_polling(&self) {
        self.shared.lock().quiet = true;
        self.shared.wake.notify_all();
        if let Some(asking) = self.asking.take() {
            // It ends the process or returns.
            let _ = asking.join();
        }
    }
}

impl Drop for NcclWatch {
    /// The threads end by themselves: one that is held in a call is not waited for.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        (state.quiet, state.closing) = (true, true);
        self.shared.wake.notify_all();
    }
}

impl WatchShared {
    fn lock(&self) -> MutexGuard<'_, WatchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next look; none when `over` says so.
    fn next_look(&self, over: fn(&WatchState) -> bool) -> Option<MutexGuard<'_, WatchState>> {
        let pause = (self.limit / 20).clamp(Duration::from_millis(1), Duration::from_millis(100));
        let told = self.wake.wait_timeout_while(self.lock(), pause, |state| !over(state));
        let (state, _) = told.unwrap_or_else(PoisonError::into_inner);
        if over(&state) { None } else { Some(state) }
    }

    /// Looks at the time; the error is what ends the run.
    fn watch_time(&self) -> Result<()> {
        while let Some(state) = self.next_look(|state| state.closing) {
            // A collective may have been given long before its turn came: what counts is that none ends.
            let collective =
                state.collectives.front().map(|(collective, _)| (collective, state.moved.max(Some(collective.since))));
            let calls = [&state.call, &state.question];
            let calls = calls.into_iter().flatten().map(|call| (call, Some(call.since)));
            for (held, since) in calls.chain(collective) {
                let waited = since.map_or(Duration::ZERO, |since| since.elapsed());
                if waited >= self.limit {
                    return Err(Error::NcclTimedOut {
                        at: Box::new(held.at.clone()),
                        operation: held.operation.clone(),
                        waited_s: waited.as_secs_f64(),
                        behind: rank_status::furthest_behind(held.at.rank),
                    });
                }
            }
        }
        Ok(())
    }

    /// Asks GPU and library; the error is what ends the run. Asks without the lock: the main thread never waits for it.
    fn watch_answers(&self) -> Result<()> {
        self.context.bind()?;
        while let Some(state) = self.next_look(|state| state.quiet) {
            drop(state);
            while self.ask_card()? {}
            self.ask_library()?;
        }
        Ok(())
    }

    /// Whether the oldest collective has ended since the last look.
    fn ask_card(&self) -> Result<bool> {
        let Some((collective, done)) = self.lock().collectives.front().cloned() else {
            return Ok(false);
        };
        let ended = self.asking(&collective, || done.is_done());
        if !ended.map_err(|why| collective.lost("the GPU", why.to_string()))? {
            return Ok(false);
        }
        let mut state = self.lock();
        let event = state.collectives.pop_front().map(|(_, event)| event);
        state.spare.extend(event);
        state.moved = Some(Instant::now());
        Ok(true)
    }

    /// Whether the library knows of an error that no call has told.
    fn ask_library(&self) -> Result<()> {
        let comm: ncclComm_t = self.comm.load(Ordering::Acquire).cast();
        if comm.is_null() {
            return Ok(());
        }
        let held = {
            let state = self.lock();
            state.collectives.front().map(|(collective, _)| collective).or(state.call.as_ref()).cloned()
        };
        let held = held.unwrap_or_else(|| Watched::new("a question to NCCL"));
        let mut found = 0u32;
        let code = self.asking(&held, || {
            // SAFETY: a communicator that lives until `stop_polling` has returned, asked while another thread uses it, as the
            // library allows. The answer is one of its codes, kept as a number: a newer library may have more.
            unsafe {
                (self.library.calls.ncclCommGetAsyncError)(comm, (&raw mut found).cast::<ncclResult_t>())
            }
        });
        let code = if code != 0 { code } else { found };
        if code == 0 || code == ncclResult_t::ncclInProgress as u32 {
            return Ok(());
        }
        Err(held.lost("ncclCommGetAsyncError", self.library.text_of(code, comm)))
    }

    /// Runs a question about `held`, which may itself be held up.
    fn asking<T>(&self, held: &Watched, question: impl FnOnce() -> T) -> T {
        self.lock().question = Some(Watched { since: Instant::now(), ..held.clone() });
        let answer = question();
        self.lock().question = None;
        answer
    }
}

/// Says why and ends all ranks.
fn end(why: &Error) -> ! {
    print_stderr(&why.to_string());
    if phase::here().rank != 0 {
        std::thread::sleep(REPORT_GRACE);
    }
    abort_all(1)
}
