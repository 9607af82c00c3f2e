//! What this process prints, whether or not somebody can read it.
//!
//! `println!` and `eprintln!` panic when their stream is a closed pipe or a full disk. Nothing here does: a run goes on, any
//! other command ends as Unix tools do.

use crate::comm::say;
use crate::error::{Error, Result};
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static LOST: AtomicBool = AtomicBool::new(false);

/// Prints what a run tells, and a line break. An output that is closed or full is mentioned once and does not end the run.
pub fn print(text: &str) {
    let printed = std::io::stdout().write_all(format!("{text}\n").as_bytes());
    if let Err(why) = printed
        && !LOST.swap(true, Relaxed)
    {
        say(&format!(
            "standard output cannot be written ({why}); the run goes on, its folder has the results"
        ));
    }
}

/// Prints the result of a command that makes no run. A reader that has seen enough (`| head`) is no failure, a full disk is.
pub fn answer(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(Error::io("write", "standard output")),
    }
}

/// Prints a line to standard error, as well as that is possible.
pub fn remark(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
