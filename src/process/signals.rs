//! Signal handling: SIGUSR1, and in a single process SIGINT and SIGTERM too, request a checkpoint and a resumable stop.
//!
//! Launchers send SIGKILL 0.3 to 1 s after SIGTERM, which is too short for the ranks to agree on a step. With several
//! ranks, SIGTERM and SIGINT therefore exit at once, and the run resumes from the newest checkpoint, which is complete
//! at all times.

use super::exit::run_exit_hooks;
use super::messages::print_stderr;
use crate::files::{self, IoError};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Exit code of a run that stopped on request, after writing a checkpoint, and can be resumed (EX_TEMPFAIL of
/// sysexits.h).
pub const STOPPED: i32 = 75;

/// Exit code after a signal that left no time for a checkpoint: the run resumes from the newest one.
pub const INTERRUPTED: i32 = 130;

/// Whether this rank was asked to stop.
static STOP: AtomicBool = AtomicBool::new(false);

/// Returns whether this rank was asked to stop with a checkpoint.
pub fn stop_requested() -> bool {
    STOP.load(Relaxed)
}

/// State shared by the signal thread and the main thread.
#[derive(Default)]
pub(crate) struct SignalState {
    rank: AtomicUsize,
    /// Number of ranks; 0 until known.
    size: AtomicUsize,
    exit_message: Mutex<String>,
    /// Called before a signal ends this process: checks whether a lost rank is the cause.
    before_exit: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl SignalState {
    /// Starts the signal thread. Called before MPI starts, since an unhandled SIGUSR1 would kill the process.
    pub(crate) fn watch_signals() -> Result<(Arc<SignalState>, Handle), IoError> {
        let state = Arc::new(SignalState::default());
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGUSR1]).map_err(files::io("watch signals of", "/proc/self"))?;
        let handle = signals.handle();
        let handler = Arc::clone(&state);
        let handle_signals = move || signals.forever().for_each(|signal| handler.handle(signal));
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(handle_signals)
            .map_err(files::io("watch signals of", "/proc/self"))?;
        Ok((state, handle))
    }

    /// Sets rank and size of this process.
    pub(crate) fn join(&self, rank: usize, size: usize) {
        self.rank.store(rank, Relaxed);
        self.size.store(size, Relaxed);
    }

    fn handle(&self, signal: i32) {
        let stops = signal == SIGUSR1 || self.size.load(Relaxed) == 1;
        let repeated = stops && STOP.swap(true, Relaxed);
        match (stops, repeated) {
            // In a single process, a second signal exits at once.
            (true, true) if signal != SIGUSR1 => self.exit_now(),
            (true, true) => {}
            (true, false) if signal == SIGUSR1 => {
                print_stderr("SIGUSR1: stopping after this step, with a checkpoint")
            }
            (true, false) => print_stderr(
                "stopping after this step, with a checkpoint; send the signal again to exit at once",
            ),
            (false, _) => self.exit_now(),
        }
    }

    pub(crate) fn set_exit_message(&self, text: String) {
        *self.exit_message.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// Returns the exit message, on rank 0 and if one is set.
    pub(crate) fn exit_message(&self) -> Option<String> {
        let text = self.exit_message.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.rank.load(Relaxed) == 0 && !text.is_empty()).then_some(text)
    }

    /// Sets the `check` that is called before a signal ends this process. Once; later calls have no effect.
    pub(crate) fn before_exit(&self, check: impl Fn() + Send + Sync + 'static) {
        let _ = self.before_exit.set(Box::new(check));
    }

    /// Exits without waiting for the other ranks.
    fn exit_now(&self) -> ! {
        if let Some(check) = self.before_exit.get() {
            check();
        }
        if let Some(text) = self.exit_message() {
            print_stderr(&text);
            // After an interrupt, mpirun of Open MPI 5 discards the output of the ranks: write to the terminal, if any.
            if !std::io::stderr().is_terminal()
                && let Ok(mut terminal) = std::fs::OpenOptions::new().write(true).open("/dev/tty")
            {
                let _ = terminal.write_all(format!("{text}\r\n").as_bytes());
            }
        }
        run_exit_hooks();
        // SAFETY: exits without running destructors or exit handlers, and without waiting for other threads.
        unsafe { libc::_exit(INTERRUPTED) }
    }
}

/// Exits the process unless dropped within a time limit: for MPI calls that have no non-blocking form.
pub(crate) struct Deadline(
    #[expect(dead_code, reason = "dropping it cancels the deadline")] std::sync::mpsc::Sender<()>,
);

impl Deadline {
    pub(crate) fn new(limit: Duration, message: String) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            if stopped.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                print_stderr(&message);
                run_exit_hooks();
                // SAFETY: exits without running destructors or exit handlers; the launcher kills the other ranks.
                unsafe { libc::_exit(1) }
            }
        });
        Self(stop)
    }
}
