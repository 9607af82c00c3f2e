//! Lock of a run folder: prevents two jobs from writing the same run, and takes over the lock of a dead job.
//!
//! `lock.json` is created with O_EXCL, which is atomic on local file systems and on NFS since version 3; nothing else
//! is required of the file system. (Some file systems apply flock only within one machine.) The kernel tells whether
//! the holder is alive if it runs on this machine, and the restart count if it is an earlier run of the same Slurm job.
//! Otherwise the lock is watched: a holder touches it every [`BEAT`], and a lock that stays untouched for [`WATCH`] is
//! taken over. Clocks are not compared, only changes of the modification time. A holder that loses its lock
//! nevertheless exits at the next beat or checkpoint, before it writes.

mod holder;

use crate::error::Result;
use crate::files;
use crate::process::exit::run_exit_hooks;
use crate::process::messages::print_stderr;
use crate::run::error::Error as RunError;
use holder::{Holder, KeepWaiting, LockSeen, read_lock, stays_untouched};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime};

/// Name of the file in the run folder.
pub const LOCK_FILE: &str = "lock.json";

/// Interval at which the holder touches the file.
const BEAT: Duration = Duration::from_secs(10);

/// Time without a touch after which a lock is taken over.
const WATCH: Duration = Duration::from_secs(35);

/// A lock held by this process; dropping it releases the lock.
#[derive(Debug)]
pub struct Lock {
    held: HeldLock,
    _beat: Sender<()>,
}

/// State shared with the thread that touches the file and with the exit hook.
#[derive(Clone, Debug)]
struct HeldLock {
    path: PathBuf,
    content: Vec<u8>,
    /// Released by this process itself.
    free: Arc<AtomicBool>,
}

impl Lock {
    /// Locks the existing folder `run` for this process on `host`. May watch the lock of another host for [`WATCH`] and
    /// calls `keep_waiting` meanwhile. Errors: another job holds the lock; the folder is not writable; those of
    /// `keep_waiting`.
    pub fn acquire(run: &Path, host: &str, keep_waiting: &mut KeepWaiting) -> Result<Lock> {
        Self::acquire_in(run, host, (WATCH, BEAT), keep_waiting)
    }

    fn acquire_in(
        run: &Path,
        host: &str,
        (watch, beat): (Duration, Duration),
        keep_waiting: &mut KeepWaiting,
    ) -> Result<Lock> {
        let path = run.join(LOCK_FILE);
        let me = Holder::here(host);
        let content = serde_json::to_vec_pretty(&me).expect("text and numbers can be serialised as JSON");
        loop {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    if let Err(error) = file.write_all(&content).and_then(|()| file.sync_all()) {
                        let _ = fs::remove_file(&path);
                        return Err(files::io("create the lock", &path)(error).into());
                    }
                    break;
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    let Some(seen) = read_lock(&path)? else { continue };
                    let dead = match seen.holder().and_then(|holder| holder.lives(&me)) {
                        Some(lives) => !lives,
                        None => stays_untouched(&path, &seen, watch, keep_waiting)?,
                    };
                    let who = seen.holder().map_or("an unknown process".into(), |holder| {
                        format!("process {} on {}", holder.pid, holder.host)
                    });
                    if !dead {
                        return Err(RunError::RunLocked { path, who }.into());
                    }
                    print_stderr(&format!(
                        "taking over the lock of {who}, which has ended ({})",
                        path.display()
                    ));
                    remove_dead(&path, &seen, &me.token)?;
                }
                Err(error) => return Err(files::io("create the lock", &path)(error).into()),
            }
        }
        let (stop, stopped) = channel();
        let held = HeldLock { path, content, free: Arc::default() };
        let keeping = held.clone();
        std::thread::Builder::new()
            .name("lock".into())
            .spawn(move || {
                while stopped.recv_timeout(beat) == Err(RecvTimeoutError::Timeout) {
                    if let Err(why) = keeping.check() {
                        if keeping.free.load(Relaxed) {
                            return;
                        }
                        print_stderr(&why.to_string());
                        run_exit_hooks();
                        // SAFETY: _exit has no preconditions. It runs no exit handlers: nothing more may be written.
                        unsafe { libc::_exit(1) }
                    }
                    // Watchers only check that the time changes. A full disk is reported where data is written.
                    let _ = File::options()
                        .append(true)
                        .open(&keeping.path)
                        .and_then(|file| file.set_modified(SystemTime::now()));
                }
            })
            .map_err(files::io("start the thread that touches", &held.path))?;
        Ok(Lock { held, _beat: stop })
    }

    /// Returns an error if this job no longer holds the lock. Called before writes that cannot be undone.
    pub fn check(&self) -> Result<()> {
        self.held.check()
    }

    /// Returns an exit hook that releases the lock.
    pub fn releaser(&self) -> impl FnOnce() + Send + 'static {
        let held = self.held.clone();
        move || held.release()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.held.release();
    }
}

impl HeldLock {
    fn check(&self) -> Result<()> {
        match fs::read(&self.path) {
            Ok(found) if found == self.content => Ok(()),
            // Unknown, for example if the disk hangs.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(RunError::LockLost { path: self.path.clone() }.into()),
        }
    }

    fn release(&self) {
        self.free.store(true, Relaxed);
        if fs::read(&self.path).is_ok_and(|found| found == self.content) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the lock of folder `run` if its holder ran on this machine and is dead. The other ranks call it if rank 0
/// died.
pub fn remove_if_dead(run: &Path) {
    let path = run.join(LOCK_FILE);
    let me = Holder::here("");
    // A process takes a moment to disappear after it was killed.
    for _ in 0..20 {
        let Ok(Some(seen)) = read_lock(&path) else { return };
        match seen.holder().and_then(|holder| holder.lives(&me)) {
            Some(false) => return drop(remove_dead(&path, &seen, &me.token)),
            Some(true) => std::thread::sleep(Duration::from_millis(5)),
            None => return,
        }
    }
}

/// Removes the dead lock `seen` unless another job has taken it over in the meantime.
fn remove_dead(path: &Path, seen: &LockSeen, token: &str) -> Result<()> {
    let aside = path.with_file_name(format!("lock-{token}.dead"));
    if fs::rename(path, &aside).is_err() {
        return Ok(()); // another job was faster
    }
    // If it is not the lock that was seen, restore it unless a newer one exists; its holder notices if that fails.
    if fs::read(&aside).is_ok_and(|content| content != seen.content) {
        let _ = fs::hard_link(&aside, path);
    }
    Ok(fs::remove_file(&aside).map_err(files::io("remove", &aside))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const SHORT: Duration = Duration::from_millis(400);

    fn acquire(run: &Path) -> Result<Lock> {
        Lock::acquire_in(run, "here", (SHORT, SHORT / 4), &mut || Ok(()))
    }

    fn leave(run: &Path, change: impl FnOnce(&mut Holder)) {
        let mut holder = Holder::here("there");
        change(&mut holder);
        fs::write(run.join(LOCK_FILE), serde_json::to_vec(&holder).unwrap()).unwrap();
    }

    #[test]
    fn a_locked_folder_is_refused_and_a_released_one_is_not() {
        let run = tempfile::tempdir().unwrap();
        let lock = acquire(run.path()).unwrap();
        let error = acquire(run.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} on here", std::process::id())), "{error}");
        lock.check().unwrap();
        drop(lock);
        assert!(!run.path().join(LOCK_FILE).exists());
        drop(acquire(run.path()).unwrap());
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_lock_of_a_dead_process_is_taken_over() {
        let run = tempfile::tempdir().unwrap();
        // The same pid, but another process.
        leave(run.path(), |holder| holder.born -= 1);
        let lock = acquire(run.path()).unwrap();
        lock.check().unwrap();
        drop(lock);
        // An earlier run of the same Slurm job, on another machine.
        leave(run.path(), |holder| {
            (holder.machine, holder.slurm_job, holder.slurm_restarts) = ("far".into(), Some("7".into()), 0);
        });
        let seen = read_lock(&run.path().join(LOCK_FILE)).unwrap().unwrap().holder().unwrap();
        let restarted = Holder { slurm_job: Some("7".into()), slurm_restarts: 1, ..Holder::here("here") };
        assert_eq!(seen.lives(&restarted), Some(false));
        assert_eq!(seen.lives(&Holder { slurm_restarts: 0, ..restarted.clone() }), None);
        assert_eq!(seen.lives(&Holder { slurm_job: Some("8".into()), ..restarted.clone() }), None);
        // No job is not the same job.
        let jobless = |holder: &Holder| Holder { slurm_job: None, ..holder.clone() };
        assert_eq!(jobless(&seen).lives(&jobless(&restarted)), None);
    }

    #[test]
    fn a_lock_of_another_machine_is_watched() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join(LOCK_FILE);
        leave(run.path(), |holder| holder.machine = "far".into());
        let started = Instant::now();
        drop(acquire(run.path()).unwrap());
        assert!(started.elapsed() >= SHORT, "it was watched");
        // A partial lock names no holder, but its writer may be about to complete it.
        fs::write(&path, b"{\"host\":").unwrap();
        drop(acquire(run.path()).unwrap());
        // A lock that is touched is alive, whatever the clocks show.
        leave(run.path(), |holder| holder.machine = "far".into());
        let touching = path.clone();
        let thread = std::thread::spawn(move || {
            for second in 0..40 {
                let file = File::options().append(true).open(&touching).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - second)).unwrap();
                std::thread::sleep(SHORT / 20);
            }
        });
        let patient = (25 * SHORT, SHORT);
        let error = Lock::acquire_in(run.path(), "here", patient, &mut || Ok(())).unwrap_err().to_string();
        assert!(error.contains("on there"), "{error}");
        thread.join().unwrap();
    }

    #[test]
    fn a_lock_is_touched_while_it_is_held() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join(LOCK_FILE);
        let _lock = acquire(run.path()).unwrap();
        let old = read_lock(&path).unwrap().unwrap();
        let started = Instant::now();
        while read_lock(&path).unwrap().unwrap() == old {
            assert!(started.elapsed() < 25 * SHORT, "the lock is not touched");
            std::thread::sleep(SHORT / 20);
        }
        assert_eq!(read_lock(&path).unwrap().unwrap().content, old.content);
    }

    /// Environment variable: folder that `holder` locks in a separate process.
    const FOLDER: &str = "DRNAS_TEST_LOCKED";

    #[test]
    #[ignore = "a_holder_whose_lock_was_taken_ends starts it"]
    fn holder() {
        let Some(run) = std::env::var_os(FOLDER) else { return };
        let _lock = acquire(Path::new(&run)).unwrap();
        std::thread::sleep(100 * SHORT);
    }

    #[test]
    fn a_holder_whose_lock_was_taken_ends() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join(LOCK_FILE);
        let mut holder = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "run::lock::tests::holder", "--ignored", "--nocapture"])
            .env(FOLDER, run.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while read_lock(&path).unwrap().is_none_or(|seen| seen.holder().is_none()) {
            assert!(started.elapsed() < 25 * SHORT, "the lock was not created");
            std::thread::sleep(SHORT / 20);
        }
        leave(run.path(), |_| {});
        let (taken, started) = (fs::read(&path).unwrap(), Instant::now());
        while holder.try_wait().unwrap().is_none() && started.elapsed() < 25 * SHORT {
            std::thread::sleep(SHORT / 20);
        }
        let _ = holder.kill();
        let output = holder.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("another job"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), taken);
    }

    #[test]
    fn a_lock_that_was_taken_is_noticed_and_not_removed() {
        let run = tempfile::tempdir().unwrap();
        // A long interval, so that the thread does not end this test program.
        let rare = (SHORT, Duration::from_secs(100));
        let lock = Lock::acquire_in(run.path(), "here", rare, &mut || Ok(())).unwrap();
        leave(run.path(), |_| {});
        assert!(lock.check().unwrap_err().to_string().contains("another job"));
        drop(lock);
        assert!(run.path().join(LOCK_FILE).exists());
        // A lock that replaced the dead one is restored.
        let seen = LockSeen { content: b"old".to_vec(), touched: None };
        let now = fs::read(run.path().join(LOCK_FILE)).unwrap();
        remove_dead(&run.path().join(LOCK_FILE), &seen, "x").unwrap();
        assert_eq!(fs::read(run.path().join(LOCK_FILE)).unwrap(), now);
    }

    #[test]
    fn other_ranks_remove_the_lock_of_a_dead_rank_0() {
        let run = tempfile::tempdir().unwrap();
        leave(run.path(), |_| {});
        remove_if_dead(run.path());
        assert!(run.path().join(LOCK_FILE).exists(), "its holder is alive");
        leave(run.path(), |holder| holder.born -= 1);
        remove_if_dead(run.path());
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }
}
