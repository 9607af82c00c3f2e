//! Signals: SIGUSR1 asks for a checkpoint and an end that can be resumed; SIGINT and SIGTERM too if the process is alone.
//!
//! Launchers follow SIGTERM by SIGKILL within 0.3 to 1 s: no time to agree on a step. Several ranks therefore leave at once,
//! and the newest checkpoint, which is whole at any moment, is where the run goes on.

use super::exit::run_exit_hooks;
use super::messages::print_stderr;
use crate::files::{self, IoError};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Exit code of a run that was asked to stop, has written a checkpoint and can be resumed (EX_TEMPFAIL of sysexits.h).
pub const STOPPED: i32 = 75;

/// Exit code after a signal that left no time for a checkpoint: the run goes on from the newest one.
pub const INTERRUPTED: i32 = 130;

/// What the thread that answers signals and the main thread have in common.
#[derive(Default)]
pub(crate) struct SignalState {
    rank: AtomicUsize,
    /// Ranks of the world; 0 until that is known.
    size: AtomicUsize,
    stop: AtomicBool,
    exit_message: Mutex<String>,
    /// Done before a signal ends this process: to see whether another rank is the cause.
    before_exit: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl SignalState {
    /// Begins to answer signals: before MPI starts, since SIGUSR1 would end a process that does not.
    pub(crate) fn watch_signals() -> Result<(Arc<SignalState>, Handle), IoError> {
        let state = Arc::new(SignalState::default());
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGUSR1]).map_err(files::io("watch signals of", "/proc/self"))?;
        let handle = signals.handle();
        let answering = Arc::clone(&state);
        let answer = move || signals.forever().for_each(|signal| answering.answer(signal));
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(answer)
            .map_err(files::io("watch signals of", "/proc/self"))?;
        Ok((state, handle))
    }

    /// Says who this process is.
    pub(crate) fn join(&self, rank: usize, size: usize) {
        self.rank.store(rank, Relaxed);
        self.size.store(size, Relaxed);
    }

    fn answer(&self, signal: i32) {
        let asks = signal == SIGUSR1 || self.size.load(Relaxed) == 1;
        let asked = asks && self.stop.swap(true, Relaxed);
        match (asks, asked) {
            // Alone, the second one leaves at once.
            (true, true) if signal != SIGUSR1 => self.exit_now(),
            (true, true) => {}
            (true, false) if signal == SIGUSR1 => print_stderr("SIGUSR1: stopping after this step, with a checkpoint"),
            (true, false) => {
                print_stderr("stopping after this step, with a checkpoint; a second signal leaves at once")
            }
            (false, _) => self.exit_now(),
        }
    }

    /// Whether this rank was asked to stop.
    pub(crate) fn stop_requested(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub(crate) fn set_exit_message(&self, text: String) {
        *self.exit_message.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// The exit_message, of rank 0 and if there is one.
    pub(crate) fn exit_message(&self) -> Option<String> {
        let text = self.exit_message.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.rank.load(Relaxed) == 0 && !text.is_empty()).then_some(text)
    }

    /// `look` is called before a signal ends this process. Once; later calls change nothing.
    pub(crate) fn before_exit(&self, look: impl Fn() + Send + Sync + 'static) {
        let _ = self.before_exit.set(Box::new(look));
    }

    /// Ends this process without waiting for the others.
    fn exit_now(&self) -> ! {
        if let Some(look) = self.before_exit.get() {
            look();
        }
        if let Some(text) = self.exit_message() {
            print_stderr(&text);
            // mpirun of Open MPI 5 throws away what ranks print once it was interrupted: to the terminal itself, if any.
            if !std::io::stderr().is_terminal()
                && let Ok(mut terminal) = std::fs::OpenOptions::new().write(true).open("/dev/tty")
            {
                let _ = terminal.write_all(format!("{text}\r\n").as_bytes());
            }
        }
        run_exit_hooks();
        // SAFETY: ends the process without running anything of it: what other threads do now is not waited for.
        unsafe { libc::_exit(INTERRUPTED) }
    }
}

/// Ends the process when it is not dropped in time: for the calls of MPI that have no non-blocking form.
pub(crate) struct Deadline(
    #[expect(dead_code, reason = "dropping it stops the watch")] std::sync::mpsc::Sender<()>,
);

impl Deadline {
    pub(crate) fn new(limit: Duration, message: String) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            if stopped.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                print_stderr(&message);
                run_exit_hooks();
                // SAFETY: ends the process without running anything of it; the launcher ends the others.
                unsafe { libc::_exit(1) }
            }
        });
        Self(stop)
    }
}
