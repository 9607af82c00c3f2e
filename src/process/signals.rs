//! Signals: SIGUSR1 asks for a checkpoint and an end that can be resumed; SIGINT and SIGTERM too if the process is alone.
//!
//! Launchers follow SIGTERM by SIGKILL within 0.3 to 1 s: no time to agree on a step. Several ranks therefore leave at once,
//! and the newest checkpoint, which is whole at any moment, is where the run goes on.

use super::exit::last_acts;
use super::messages::say;
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
pub(crate) struct Standing {
    rank: AtomicUsize,
    /// Ranks of the world; 0 until that is known.
    size: AtomicUsize,
    stop: AtomicBool,
    farewell: Mutex<String>,
    /// Done before a signal ends this process: to see whether another rank is the cause.
    before_leaving: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Standing {
    /// Begins to answer signals: before MPI starts, since SIGUSR1 would end a process that does not.
    pub(crate) fn watch_signals() -> Result<(Arc<Standing>, Handle), IoError> {
        let standing = Arc::new(Standing::default());
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGUSR1]).map_err(files::io("watch signals of", "/proc/self"))?;
        let handle = signals.handle();
        let answering = Arc::clone(&standing);
        let answer = move || signals.forever().for_each(|signal| answering.answer(signal));
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(answer)
            .map_err(files::io("watch signals of", "/proc/self"))?;
        Ok((standing, handle))
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
            (true, true) if signal != SIGUSR1 => self.leave_now(),
            (true, true) => {}
            (true, false) if signal == SIGUSR1 => say("SIGUSR1: stopping after this step, with a checkpoint"),
            (true, false) => {
                say("stopping after this step, with a checkpoint; a second signal leaves at once")
            }
            (false, _) => self.leave_now(),
        }
    }

    /// Whether this rank was asked to stop.
    pub(crate) fn stop_requested(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub(crate) fn set_farewell(&self, text: String) {
        *self.farewell.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// The farewell, of rank 0 and if there is one.
    pub(crate) fn farewell(&self) -> Option<String> {
        let text = self.farewell.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.rank.load(Relaxed) == 0 && !text.is_empty()).then_some(text)
    }

    /// `look` is called before a signal ends this process. Once; later calls change nothing.
    pub(crate) fn before_leaving(&self, look: impl Fn() + Send + Sync + 'static) {
        let _ = self.before_leaving.set(Box::new(look));
    }

    /// Ends this process without waiting for the others.
    fn leave_now(&self) -> ! {
        if let Some(look) = self.before_leaving.get() {
            look();
        }
        if let Some(text) = self.farewell() {
            say(&text);
            // mpirun of Open MPI 5 throws away what ranks print once it was interrupted: to the terminal itself, if any.
            if !std::io::stderr().is_terminal()
                && let Ok(mut terminal) = std::fs::OpenOptions::new().write(true).open("/dev/tty")
            {
                let _ = terminal.write_all(format!("{text}\r\n").as_bytes());
            }
        }
        last_acts();
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
                say(&message);
                last_acts();
                // SAFETY: ends the process without running anything of it; the launcher ends the others.
                unsafe { libc::_exit(1) }
            }
        });
        Self(stop)
    }
}
