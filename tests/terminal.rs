//! Progress display of a search in a pseudo-terminal, read while the search runs.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::{Bench, STEPS};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Time limit of a search, ample even on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// A program in its own pseudo-terminal with 300 columns.
struct Session {
    child: Child,
    output: Receiver<Vec<u8>>,
}

impl Session {
    fn start(mut command: Command) -> Session {
        let size = libc::winsize { ws_row: 24, ws_col: 300, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut user, mut program) = (-1, -1);
        let (name, settings) = (std::ptr::null_mut(), std::ptr::null());
        // SAFETY: the pointers to both descriptors and to the size are valid; name and settings may be null.
        let opened = unsafe { libc::openpty(&mut user, &mut program, name, settings, &size) };
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both descriptors were opened above and have no other owner.
        let (user, program) = unsafe { (OwnedFd::from_raw_fd(user), OwnedFd::from_raw_fd(program)) };
        let stream = || program.try_clone().unwrap();
        command.stdin(stream()).stdout(stream()).stderr(stream()).env("TERM", "xterm");
        // SAFETY: between fork and exec, only two system calls, which start a session with this controlling terminal.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            })
        };
        let child = command.spawn().unwrap();
        // While this process holds the program's side open, reading from the terminal would never end.
        drop((command, program));
        let (sender, output) = channel();
        let mut user = File::from(user);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = user.read(&mut bytes) {
                let _ = sender.send(bytes[..length].to_vec());
            }
        });
        Session { child, output }
    }

    /// Returns the whole output when the program has exited; calls `now` with the output so far whenever more arrives.
    fn watch(mut self, mut now: impl FnMut(&str)) -> String {
        let (start, mut bytes) = (Instant::now(), Vec::new());
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            match self.output.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
                Ok(more) => bytes.extend(more),
                Err(RecvTimeoutError::Timeout) => {
                    bench::signal(self.child.id(), "KILL");
                    panic!("timed out: {text}");
                }
                Err(RecvTimeoutError::Disconnected) => {
                    assert!(self.child.wait().unwrap().success(), "{text}");
                    return text;
                }
            }
            now(&String::from_utf8_lossy(&bytes));
        }
    }
}

/// Returns the lines that a terminal of unlimited size shows after it has received `text`.
fn screen(text: &str) -> Vec<String> {
    let mut rows: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0usize, 0);
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\r' => column = 0,
            '\n' => row += 1,
            '\x1b' => match chars.by_ref().skip(1).find(char::is_ascii_alphabetic) {
                Some('A') => row = row.saturating_sub(1),
                Some('K') => rows[row].clear(),
                other => panic!("unknown escape code {other:?} in {text:?}"),
            },
            char => {
                let length = rows[row].len().max(column + 1);
                rows[row].resize(length, ' ');
                rows[row][column] = char;
                column += 1;
            }
        }
        rows.resize(rows.len().max(row + 1), Vec::new());
    }
    rows.iter().map(|row| row.iter().collect()).collect()
}

/// Returns the command of a shell that sources `launch/env.sh` and runs a search on `ranks` ranks (0: without mpirun),
/// with `more` appended to the command line.
fn typed(ranks: usize, run: &str, more: &str) -> Command {
    let bench = Bench::get();
    let search = bench.search(ranks, run, &[]);
    let mut shell = bench.command("bash");
    shell.args(["-c", &format!(". \"$0\"; \"$@\" {more}")]);
    shell.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/env.sh"));
    shell.arg(search.get_program()).args(search.get_args());
    shell
}

/// Returns the steps that the progress lines in `text` name, in order, without repetitions.
fn steps(text: &str) -> Vec<u64> {
    let all = text.split("  step ").skip(1).filter_map(|rest| rest.split_once(&format!("/{STEPS}")));
    let mut steps: Vec<u64> = all.filter_map(|(step, _)| step.parse().ok()).collect();
    steps.dedup();
    steps
}

#[test]
fn progress_is_live_in_a_terminal() {
    for (ranks, run) in [(2, "under-mpirun"), (0, "alone")] {
        let finished = Bench::get().path(run).join("finished.json");
        let mut before_the_end = Vec::new();
        let text = Session::start(typed(ranks, run, "")).watch(|text| {
            if !finished.exists() {
                before_the_end = steps(text);
            }
        });
        assert!(finished.exists(), "{text}");
        // Several fast steps may share one update.
        assert!(before_the_end.len() >= 5 && before_the_end.is_sorted(), "{before_the_end:?} in {text:?}");
        assert!(before_the_end[0] <= 5, "{before_the_end:?} in {text:?}");
        assert!(text.contains("█░"), "{text:?}");
        // At the end, the progress line is removed and every other line is shown exactly once.
        let screen = screen(&text);
        assert!(!screen.iter().any(|line| line.contains("  step ")), "{screen:#?}");
        for words in ["seed = 0", "stage 1/2: k 6", "epoch 1: loss", "epoch 4: loss", "Architecture found"] {
            let lines = screen.iter().filter(|line| line.starts_with(words));
            assert_eq!(lines.count(), 1, "{words}: {screen:#?}");
        }
    }
}

#[test]
fn progress_in_a_file_is_plain_lines() {
    let bench = Bench::get();
    let file = bench.path("output.txt");
    let finished = bench.path("into-a-file/finished.json");
    let mut before_the_end = Vec::new();
    // The standard output of the shell is still a terminal.
    let more =
        format!("> {} & while kill -0 $! 2>/dev/null; do echo; sleep 0.05; done; wait $!", file.display());
    let text = Session::start(typed(2, "into-a-file", &more)).watch(|_| {
        if !finished.exists() {
            before_the_end = steps(&fs::read_to_string(&file).unwrap_or_default());
        }
    });
    assert!(!text.contains("step"), "{text}");
    let written = fs::read_to_string(&file).unwrap();
    assert!(!written.contains(['\x1b', '\r']), "{written:?}");
    assert!(before_the_end.len() >= 3, "{before_the_end:?} in {written}");
    // Losses are read back every third step and at the end.
    assert_eq!(steps(&written), [3, 6, 9, 12, 15, 18, 20], "{written}");
}

/// A stand-in for the daemon that starts ranks on another host: its name is all that the program looks at. The ranks
/// have a pseudo-terminal although the output of mpirun may go to a file.
#[test]
fn progress_under_a_daemon_of_the_launcher_is_plain_lines() {
    let bench = Bench::get();
    let daemon = bench.path("prted");
    std::os::unix::fs::symlink("/bin/bash", &daemon).unwrap();
    let search = bench.search(0, "under-a-daemon", &[]);
    let mut shell = bench.command("bash");
    // The output of the daemon goes elsewhere; `true` keeps it from being replaced by the search.
    shell.args(["-c", "daemon=$0; \"$daemon\" -c '\"$0\" \"$@\" > /dev/tty; true' \"$@\" > /dev/null"]);
    shell.arg(&daemon).arg(search.get_program()).args(search.get_args());
    let text = Session::start(shell).watch(|_| {});
    assert_eq!(steps(&text), [3, 6, 9, 12, 15, 18, 20], "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");
}
