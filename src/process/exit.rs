//! Exiting in the middle of a run: exit hooks, and terminating the other ranks.

use mpi::ffi;
use std::sync::Mutex;
use std::time::Duration;

/// Run just before the process exits: notify the other ranks, release the lock of the run folder.
static EXIT_HOOKS: Mutex<Vec<ExitHook>> = Mutex::new(Vec::new());

type ExitHook = Box<dyn FnOnce() + Send>;

/// Registers `hook` to run just before the process exits. It may run on any thread and must not block.
pub(crate) fn on_exit(hook: impl FnOnce() + Send + 'static) {
    if let Ok(mut hooks) = EXIT_HOOKS.lock() {
        hooks.push(Box::new(hook));
    }
}

/// Runs the exit hooks, once. Called just before the process exits.
pub(crate) fn run_exit_hooks() {
    // Taken out first, so that a failing hook cannot run them again.
    let hooks = EXIT_HOOKS.try_lock().map(|mut hooks| std::mem::take(&mut *hooks));
    hooks.into_iter().flatten().for_each(|hook| hook());
}

/// Terminates every rank with exit code `code`. Called on the thread that started MPI, or on a watchdog thread: the
/// thread level Funneled does not permit the latter, but the main thread may be blocked forever.
pub(crate) fn abort_all(code: i32) -> ! {
    run_exit_hooks();
    // MPI_Abort asks the launcher to kill the ranks; if the launcher does not respond, this rank exits by itself.
    let _ = std::thread::Builder::new().spawn(move || {
        std::thread::sleep(Duration::from_secs(10));
        // SAFETY: exits the process without running destructors or exit handlers.
        unsafe { libc::_exit(code) }
    });
    // SAFETY: MPI is initialised; both calls end the process.
    unsafe {
        ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
        libc::_exit(code)
    }
}
