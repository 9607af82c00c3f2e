//! What this process prints, whether or not somebody can read it, and the log of it in the run folder.
//!
//! `println!` and `eprintln!` panic when their stream is a closed pipe or a full disk. Nothing here does: a run goes on, any
//! other command ends as Unix tools do.

use crate::files::{self, IoError};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the log in the run folder: what rank 0 printed, each line with its time.
pub const CONSOLE_FILE: &str = "console.log";

/// Lines that are kept for a log that is not open yet.
const EARLY: usize = 1000;

static LOG: Mutex<Log> = Mutex::new(Log::Early(Vec::new()));

enum Log {
    /// There is no run folder yet, or never will be.
    Early(Vec<String>),
    Open(File),
}

/// From now on all that is printed is appended to `console.log` in the folder `run`, what was printed before too. Rank 0.
pub fn open_log(run: &Path) -> Result<(), IoError> {
    let path = run.join(CONSOLE_FILE);
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let mut file = file.map_err(files::io("open", &path))?;
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    if let Log::Early(lines) = &*log {
        let _ = file.write_all(lines.concat().as_bytes());
    }
    *log = Log::Open(file);
    Ok(())
}

/// The same text in the log alone. A log that cannot be written is no reason to fail.
pub fn log(text: &str) {
    let text = with_timestamps(text);
    match &mut *LOG.lock().unwrap_or_else(PoisonError::into_inner) {
        Log::Open(file) => drop(file.write_all(text.as_bytes())),
        Log::Early(lines) if lines.len() < EARLY => lines.push(text),
        Log::Early(_) => {}
    }
}

/// Prints the result of a command that makes no run. A reader that has seen enough (`| head`) is no failure, a full disk is.
pub fn print_result(text: &str) -> Result<(), IoError> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(files::io("write", "standard output")),
    }
}

/// Prints a line to standard error, as well as that is possible.
pub fn print_diagnostic(line: &str) {
    log(line);
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Each line of `text` with the time in front, and a line break.
pub(crate) fn with_timestamps(text: &str) -> String {
    let now = utc(SystemTime::now());
    text.split('\n').map(|line| format!("{now} {line}\n")).collect()
}

/// "2026-11-27T18:58:28Z": now.
pub(crate) fn utc_now() -> String {
    utc(SystemTime::now())
}

/// A time in UTC; the days by the method of Howard Hinnant ("chrono-compatible low-level date algorithms").
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = seconds / 86_400 + 719_468; // since 1 March of year 0
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // from March
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = 400 * era + year + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_those_of_the_calendar() {
        // `date -u -d @SECONDS +%FT%TZ`
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (68_169_599, "1972-02-28T23:59:59Z"),
            (68_169_600, "1972-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (1_795_805_908, "2026-11-27T18:58:28Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
