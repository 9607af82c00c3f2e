//! Messages of a rank: to stderr and to files in the run folder, since launchers lose some of stderr.

use crate::process::console::{self, CONSOLE_FILE};
use crate::process::{phase, terminal};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

static LOG_FILE: OnceLock<PathBuf> = OnceLock::new();
static OUTPUT_LOST: AtomicBool = AtomicBool::new(false);

/// Prints one line to stderr, in one write so that lines of several ranks do not mix, and appends it to the file of
/// [`set_log_file`] and to `console.log`. Write errors are ignored.
pub(crate) fn print_stderr(line: &str) {
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().write_all(format!("{}{line}\n", clear_progress()).as_bytes());
    let line = line.to_owned();
    write_with_timeout(move || {
        append(&line);
        console::log(&line);
    });
}

/// Returns the codes that clear a progress line, if one may be shown where messages are printed. Rank 0 redraws the line.
fn clear_progress() -> &'static str {
    static CLEAR: LazyLock<&str> = LazyLock::new(|| terminal::clear(libc::STDERR_FILENO));
    match phase::now() {
        (0, _) => "",
        _ => *CLEAR,
    }
}

/// Appends one line with a timestamp to the file of [`set_log_file`] only.
pub(crate) fn log_to_file(line: &str) {
    let line = line.to_owned();
    write_with_timeout(move || append(&line));
}

fn append(line: &str) {
    if let Some(path) = LOG_FILE.get() {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(console::with_timestamps(line).as_bytes()));
    }
}

/// Runs `work` on a thread and waits at most 200 ms: a file system that hangs must not delay the exit.
fn write_with_timeout(work: impl FnOnce() + Send + 'static) {
    let (done, finished) = std::sync::mpsc::channel();
    let writer = std::thread::Builder::new().spawn(move || {
        work();
        let _ = done.send(());
    });
    // If no thread can be started, stderr alone has to suffice.
    if writer.is_ok() {
        let _ = finished.recv_timeout(Duration::from_millis(200));
    }
}

/// Sets the file to which messages are appended. Once; later calls have no effect.
pub(crate) fn set_log_file(path: &Path) {
    let _ = LOG_FILE.set(path.to_path_buf());
}

/// Prints the output of a run and a line break. If stdout is closed or full, this is reported once and the run
/// continues.
pub fn print_stdout(text: &str) {
    console::log(text);
    let printed = std::io::stdout().write_all(format!("{text}\n").as_bytes());
    if let Err(why) = printed
        && !OUTPUT_LOST.swap(true, Relaxed)
    {
        print_stderr(&format!(
            "cannot write to standard output ({why}); the run continues, its output is in {CONSOLE_FILE}"
        ));
    }
}

/// Formats a count with its noun: "1 rank", "2 ranks". The plural of `noun` must end in "s".
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
