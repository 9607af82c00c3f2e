//! What a rank says besides its results: to stderr, and into the run folder, since launchers lose some of it.

use crate::process::console::{self, CONSOLE_FILE};
use crate::process::{phase, terminal};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

static MESSAGES: OnceLock<PathBuf> = OnceLock::new();
static OUTPUT_LOST: AtomicBool = AtomicBool::new(false);

/// One line to stderr in one piece, so that lines of several ranks do not mix, and to the file of [`say_into`]. Neither a
/// closed stderr nor a file that cannot be written is a reason to fail.
pub(crate) fn say(line: &str) {
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().write_all(format!("{}{line}\n", clear_progress()).as_bytes());
    let line = line.to_owned();
    write_soon(move || {
        note_now(&line);
        console::log(&line);
    });
}

/// What goes before a message when a progress line may stand where it is printed. Rank 0 draws that line anew.
fn clear_progress() -> &'static str {
    static CLEAR: LazyLock<&str> = LazyLock::new(|| terminal::clear(libc::STDERR_FILENO));
    match phase::now() {
        (0, _) => "",
        _ => *CLEAR,
    }
}

/// One line into the file of [`say_into`] alone, with the time.
pub(crate) fn note(line: &str) {
    let line = line.to_owned();
    write_soon(move || note_now(&line));
}

fn note_now(line: &str) {
    if let Some(path) = MESSAGES.get() {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(console::timed(line).as_bytes()));
    }
}

/// A file system that hangs must not hold up the end of a run.
fn write_soon(work: impl FnOnce() + Send + 'static) {
    let (done, written) = std::sync::mpsc::channel();
    let writing = std::thread::Builder::new().spawn(move || {
        work();
        let _ = done.send(());
    });
    // Where no thread can be started any more, stderr has to do.
    if writing.is_ok() {
        let _ = written.recv_timeout(Duration::from_millis(200));
    }
}

/// What is said from now on is appended to the file `path` too. Once; later calls change nothing.
pub(crate) fn say_into(path: &Path) {
    let _ = MESSAGES.set(path.to_path_buf());
}

/// Prints what a run tells, and a line break. An output that is closed or full is mentioned once and does not end the run.
pub fn print(text: &str) {
    console::log(text);
    let printed = std::io::stdout().write_all(format!("{text}\n").as_bytes());
    if let Err(why) = printed
        && !OUTPUT_LOST.swap(true, Relaxed)
    {
        say(&format!(
            "standard output cannot be written ({why}); the run goes on, {CONSOLE_FILE} in its folder has what it prints"
        ));
    }
}
