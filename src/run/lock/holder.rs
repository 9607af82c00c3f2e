//! Holder of a lock, and whether it is alive.

use crate::comm;
use crate::error::Result;
use crate::files;
use crate::process::identity::{machine_id, random_token, start_ticks};
use crate::process::messages::print_stderr;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Content of a lock file: the process that holds the lock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Holder {
    pub(super) host: String,
    pub(super) pid: i32,
    /// Start time of the process, in clock ticks since boot.
    pub(super) born: u64,
    /// Identifies the boot of the machine and its namespaces, see `machine_id`.
    pub(super) machine: String,
    pub(super) slurm_job: Option<String>,
    pub(super) slurm_restarts: u64,
    /// Random token that identifies this lock.
    pub(super) token: String,
}

impl Holder {
    pub(super) fn here(host: &str) -> Holder {
        let pid = std::process::id() as i32;
        let variable = |name: &str| std::env::var(name).ok();
        Holder {
            host: host.into(),
            pid,
            born: start_ticks(pid).unwrap_or(0),
            machine: format!("{:016x}", machine_id()),
            slurm_job: variable("SLURM_JOB_ID"),
            slurm_restarts: variable("SLURM_RESTART_COUNT").and_then(|count| count.parse().ok()).unwrap_or(0),
            token: format!("{:016x}", random_token()),
        }
    }

    /// Returns whether the process is alive, or `None` if that cannot be determined from this machine.
    pub(super) fn lives(&self, me: &Holder) -> Option<bool> {
        if self.machine == me.machine {
            return Some(start_ticks(self.pid) == Some(self.born));
        }
        // Slurm restarts a job only after all its processes have ended.
        let same_job = self.slurm_job.is_some() && self.slurm_job == me.slurm_job;
        (same_job && self.slurm_restarts < me.slurm_restarts).then_some(false)
    }
}

/// Content and modification time of a lock file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LockSeen {
    pub(super) content: Vec<u8>,
    pub(super) touched: Option<SystemTime>,
}

impl LockSeen {
    pub(super) fn holder(&self) -> Option<Holder> {
        serde_json::from_slice(&self.content).ok()
    }
}

/// Reads the lock file; `None` if it does not exist.
pub(super) fn read_lock(path: &Path) -> Result<Option<LockSeen>> {
    let failed = || files::io("read", path);
    // Reopened each time, so that a network file system asks its server.
    match File::open(path) {
        Ok(file) => {
            let touched = file.metadata().map_err(failed())?.modified().ok();
            Ok(Some(LockSeen { content: fs::read(path).unwrap_or_default(), touched }))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed()(error).into()),
    }
}

/// Called repeatedly while a lock is watched.
pub(super) type KeepWaiting<'a> = dyn FnMut() -> comm::Result<()> + 'a;

/// Watches the lock file for `watch`, calling `keep_waiting` about twice a second; returns whether it stayed untouched.
pub(super) fn stays_untouched(
    path: &Path,
    seen: &LockSeen,
    watch: Duration,
    keep_waiting: &mut KeepWaiting,
) -> Result<bool> {
    print_stderr(&format!(
        "{} exists; waiting up to {:.0} s to see whether its holder is alive",
        path.display(),
        watch.as_secs_f64()
    ));
    let started = Instant::now();
    while started.elapsed() < watch {
        std::thread::sleep((watch / 20).min(Duration::from_millis(500)));
        keep_waiting()?;
        match read_lock(path)? {
            Some(now) if now == *seen => {}
            // Touched, taken over or removed: the next attempt finds out which.
            now => return Ok(now.is_none()),
        }
    }
    Ok(true)
}
