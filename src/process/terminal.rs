//! The terminal on which the user sees what this process prints, also when mpirun forwards it.
//!
//! mpirun gives every rank a pseudo-terminal for its standard output and a pipe for its standard error, whatever its own
//! streams are, and forwards whole lines only. So what counts is where the streams of mpirun itself lead, and each update
//! of a progress line has to be a whole line: it ends with `BACK`.

use std::fs::{self, File, OpenOptions};
use std::io::IsTerminal;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// `bar` or `lines` overrules what is found out about the terminal.
const PROGRESS_VARIABLE: &str = "DRNAS_PROGRESS";

/// Erases the line of the cursor, and puts the cursor at its beginning.
pub(crate) const CLEAR: &str = "\r\x1b[2K";

/// Ends a line, and leaves the cursor at its beginning: one up, then the line break.
pub(crate) const BACK: &str = "\x1b[A\n";

/// Programs that start ranks on their own machine and print what these write.
const LAUNCHERS: [&str; 4] = ["prterun", "mpirun", "mpiexec", "orterun"];

/// A terminal that understands the codes above.
pub(crate) struct Terminal {
    /// None: there is one because the user says so.
    device: Option<File>,
}

impl Terminal {
    /// The one that shows what this process writes to `stream` (1 or 2); none if that goes to a file or a pipe, or to a
    /// launcher whose terminal cannot be seen from here (on another machine, under srun).
    pub(crate) fn behind(stream: RawFd) -> Option<Terminal> {
        let found = || device(stream).filter(|_| std::env::var("TERM").is_ok_and(|term| term != "dumb"));
        match std::env::var(PROGRESS_VARIABLE).as_deref() {
            Ok("bar") => Some(Terminal { device: found() }),
            Ok("lines") => None,
            _ => found().map(|device| Terminal { device: Some(device) }),
        }
    }

    /// Its width now; of one that was not found, what `COLUMNS` says, or 80.
    pub(crate) fn columns(&self) -> usize {
        let asked = self.device.as_ref().and_then(|device| {
            // SAFETY: all fields are numbers.
            let mut size: libc::winsize = unsafe { std::mem::zeroed() };
            // SAFETY: an open file, and a live struct of the kind that this request fills.
            let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
            (done == 0).then_some(usize::from(size.ws_col))
        });
        let said = || std::env::var("COLUMNS").ok()?.parse().ok();
        let positive = |columns: &usize| *columns > 0;
        asked.filter(positive).or_else(|| said().filter(positive)).unwrap_or(80)
    }
}

/// [`CLEAR`] if a terminal shows `stream`, where a progress line may stand; else "".
pub(crate) fn clear(stream: RawFd) -> &'static str {
    match Terminal::behind(stream) {
        Some(Terminal { device: Some(_) }) => CLEAR,
        _ => "",
    }
}

/// The terminal to which `stream` of this process leads, or that of the launcher which forwards it.
fn device(stream: RawFd) -> Option<File> {
    let link = |process: &Path| fs::read_link(process.join(format!("fd/{stream}"))).ok();
    let this = PathBuf::from("/proc/self");
    let own = link(&this);
    // A shell between the launcher and this process has the same stream.
    let other = std::iter::successors(parent(&this), |process| parent(process)).find(|it| link(it) != own);
    let is_launcher = |process: &PathBuf| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        LAUNCHERS.contains(&name.trim())
    };
    let shown = other.filter(is_launcher).unwrap_or(this);
    // Pipes are not opened: they would gain a reader.
    link(&shown).filter(|target| target.starts_with("/dev"))?;
    let mut open = OpenOptions::new();
    open.read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK);
    open.open(shown.join(format!("fd/{stream}"))).ok().filter(|file| file.is_terminal())
}

/// The folder in /proc of the parent of the process that has the folder `process`.
fn parent(process: &Path) -> Option<PathBuf> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The name may hold spaces and brackets; it ends with the last ")". State and parent follow.
    let pid: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    (pid > 0).then(|| PathBuf::from(format!("/proc/{pid}")))
}
