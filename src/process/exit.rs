//! How a process ends in the middle of its work, whatever ends it: what is left to do is done, the others are taken along.

use mpi::ffi;
use std::sync::Mutex;
use std::time::Duration;

/// What remains to be done: the others are told, the run folder is unlocked.
static EXIT_HOOKS: Mutex<Vec<ExitHook>> = Mutex::new(Vec::new());

type ExitHook = Box<dyn FnOnce() + Send>;

/// Adds `act` to what is done last. It may run on any thread and must not wait.
pub(crate) fn on_exit(act: impl FnOnce() + Send + 'static) {
    if let Ok(mut acts) = EXIT_HOOKS.lock() {
        acts.push(Box::new(act));
    }
}

/// Does what is left to do, once. Called just before the process ends.
pub(crate) fn run_exit_hooks() {
    // Taken out first: whatever goes wrong in one of them does not come back here.
    let acts = EXIT_HOOKS.try_lock().map(|mut acts| std::mem::take(&mut *acts));
    acts.into_iter().flatten().for_each(|act| act());
}

/// Ends every rank with exit code `code`. Called on the thread that started MPI, or on one that watches it: MPI, started at
/// level Funneled, promises nothing to that one, but the main thread may be held for good.
pub(crate) fn abort_all(code: i32) -> ! {
    run_exit_hooks();
    // MPI_Abort asks the launcher to end all; should the launcher not answer, this rank leaves by itself.
    let _ = std::thread::Builder::new().spawn(move || {
        std::thread::sleep(Duration::from_secs(10));
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(code) }
    });
    // SAFETY: MPI is initialised; both calls end the process.
    unsafe {
        ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
        libc::_exit(code)
    }
}
