//! Finds the terminal that shows the output of this process, even if mpirun forwards the output.
//!
//! mpirun of Open MPI 5 gives every rank a pseudo-terminal as standard output and a pipe as standard error, whatever its
//! own streams are, and forwards only complete lines. Therefore the streams of mpirun are examined, and every update of
//! the progress line is a complete line that ends with `BACK`.

use super::identity::stat_fields;
use std::fs::{self, File, OpenOptions};
use std::io::IsTerminal;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Environment variable that overrides the detection of a terminal: `bar` or `lines`.
const PROGRESS_VARIABLE: &str = "DRNAS_PROGRESS";

/// Erases the current line and moves the cursor to its start.
pub(crate) const CLEAR: &str = "\r\x1b[2K";

/// Ends a line and leaves the cursor at its start: cursor up, then a line break.
pub(crate) const BACK: &str = "\x1b[A\n";

/// Programs that start local ranks and forward their output.
const LAUNCHERS: [&str; 4] = ["prterun", "mpirun", "mpiexec", "orterun"];

/// A terminal that supports these escape codes.
pub(crate) struct Terminal {
    /// `None` if no terminal was found but the environment variable requests the bar.
    device: Option<File>,
}

impl Terminal {
    /// Returns the terminal that shows the output of this process on `stream` (1 or 2); `None` if the output goes to a
    /// file or a pipe, or to a launcher whose terminal this process cannot find (on another host, under srun).
    pub(crate) fn behind(stream: RawFd) -> Option<Terminal> {
        let found = || device(stream).filter(|_| std::env::var("TERM").is_ok_and(|term| term != "dumb"));
        match std::env::var(PROGRESS_VARIABLE).as_deref() {
            Ok("bar") => Some(Terminal { device: found() }),
            Ok("lines") => None,
            _ => found().map(|device| Terminal { device: Some(device) }),
        }
    }

    /// Returns the current width in columns; if unknown, the value of the variable `COLUMNS`, or 80.
    pub(crate) fn columns(&self) -> usize {
        let width = self.device.as_ref().and_then(|device| {
            // SAFETY: all fields are integers, for which zero is valid.
            let mut size: libc::winsize = unsafe { std::mem::zeroed() };
            // SAFETY: the file is open, and `size` is of the type that this request writes.
            let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
            (done == 0).then_some(usize::from(size.ws_col))
        });
        let variable = || std::env::var("COLUMNS").ok()?.parse().ok();
        let positive = |columns: &usize| *columns > 0;
        width.filter(positive).or_else(|| variable().filter(positive)).unwrap_or(80)
    }
}

/// Returns [`CLEAR`] if a terminal shows `stream`, otherwise "".
pub(crate) fn clear(stream: RawFd) -> &'static str {
    match Terminal::behind(stream) {
        Some(Terminal { device: Some(_) }) => CLEAR,
        _ => "",
    }
}

/// Opens the terminal of `stream` of this process, or of the launcher that forwards it.
fn device(stream: RawFd) -> Option<File> {
    let link = |process: &Path| fs::read_link(process.join(format!("fd/{stream}"))).ok();
    let this = PathBuf::from("/proc/self");
    let own = link(&this);
    // A shell between the launcher and this process shares the stream with this process.
    let other = std::iter::successors(parent(&this), |process| parent(process)).find(|it| link(it) != own);
    let name = other.as_ref().and_then(|process| fs::read_to_string(process.join("comm")).ok());
    let shown = match (other, name.as_deref().map(str::trim)) {
        // A daemon of the launcher: the terminal, if any, is on another machine.
        (Some(_), Some("prted" | "orted")) => return None,
        (Some(process), Some(name)) if LAUNCHERS.contains(&name) => process,
        _ => this,
    };
    // A pipe must not be opened: this process would become one of its readers.
    link(&shown).filter(|target| target.starts_with("/dev"))?;
    let mut open = OpenOptions::new();
    open.read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK);
    open.open(shown.join(format!("fd/{stream}"))).ok().filter(|file| file.is_terminal())
}

/// Returns the /proc folder of the parent of the process whose /proc folder is `process`.
fn parent(process: &Path) -> Option<PathBuf> {
    let pid: u32 = stat_fields(process)?.get(1)?.parse().ok()?;
    (pid > 0).then(|| PathBuf::from(format!("/proc/{pid}")))
}
