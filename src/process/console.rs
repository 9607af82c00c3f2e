//! Console output that never panics, and its copy in the run folder.
//!
//! `println!` and `eprintln!` panic when their stream is a closed pipe or a full disk. With these functions a run
//! continues, and any other command exits as Unix tools do.

use crate::files::{self, IoError};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the log in the run folder: the output of rank 0, each line with a timestamp.
pub const CONSOLE_FILE: &str = "console.log";

/// Number of lines kept until the log is opened.
const MAX_EARLY_LINES: usize = 1000;

static LOG: Mutex<Log> = Mutex::new(Log::Early(Vec::new()));

enum Log {
    /// No run folder yet, or none at all.
    Early(Vec<String>),
    Open(File),
}

/// Opens `console.log` in the folder `run`; earlier and all further output is appended to it. Rank 0.
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

/// Appends `text` to the log only. Write errors are ignored.
pub fn log(text: &str) {
    let text = with_timestamps(text);
    match &mut *LOG.lock().unwrap_or_else(PoisonError::into_inner) {
        Log::Open(file) => drop(file.write_all(text.as_bytes())),
        Log::Early(lines) if lines.len() < MAX_EARLY_LINES => lines.push(text),
        Log::Early(_) => {}
    }
}

/// Prints the result of a command to standard output. A closed pipe (`| head`) is not an error, a full disk is.
pub fn print_result(text: &str) -> Result<(), IoError> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(files::io("write", "standard output")),
    }
}

/// Prints a line to standard error, best effort.
pub fn print_diagnostic(line: &str) {
    log(line);
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Returns `text` with a timestamp at the start and a line break at the end of each line.
pub(crate) fn with_timestamps(text: &str) -> String {
    let now = utc(SystemTime::now());
    text.split('\n').map(|line| format!("{now} {line}\n")).collect()
}

/// Returns the current time as "2026-11-27T18:58:28Z".
pub(crate) fn utc_now() -> String {
    utc(SystemTime::now())
}

/// Formats a time in UTC; the date is computed as in Howard Hinnant's "chrono-compatible low-level date algorithms".
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = seconds / 86_400 + 719_468; // since 1 March of year 0
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // 0 is March
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
    fn utc_times_match_date() {
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
