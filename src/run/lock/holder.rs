//! The holder of a lock, as its file tells: whether that process still lives, or whether nobody touches the file.

use crate::comm;
use crate::error::Result;
use crate::files;
use crate::process::identity::{born, machine, token};
use crate::process::messages::say;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Holder {
    pub(super) host: String,
    pub(super) pid: i32,
    /// When the process began, in ticks of its machine.
    pub(super) born: u64,
    /// Its machine since the last boot, with the processes that are visible there.
    pub(super) machine: String,
    pub(super) slurm_job: Option<String>,
    pub(super) slurm_restarts: u64,
    /// Tells this lock from any other one.
    pub(super) token: String,
}

impl Holder {
    pub(super) fn here(host: &str) -> Holder {
        let pid = std::process::id() as i32;
        let variable = |name: &str| std::env::var(name).ok();
        Holder {
            host: host.into(),
            pid,
            born: born(pid).unwrap_or(0),
            machine: format!("{:016x}", machine()),
            slurm_job: variable("SLURM_JOB_ID"),
            slurm_restarts: variable("SLURM_RESTART_COUNT").and_then(|count| count.parse().ok()).unwrap_or(0),
            token: format!("{:016x}", token()),
        }
    }

    /// Whether the process still runs, if that can be known.
    pub(super) fn lives(&self, me: &Holder) -> Option<bool> {
        if self.machine == me.machine {
            return Some(born(self.pid) == Some(self.born));
        }
        // Slurm starts a job again only when nothing of it is left.
        let same_job = self.slurm_job.is_some() && self.slurm_job == me.slurm_job;
        (same_job && self.slurm_restarts < me.slurm_restarts).then_some(false)
    }
}

/// What a lock looks like from outside.
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

/// The lock as it is now; none if there is none.
pub(super) fn look(path: &Path) -> Result<Option<LockSeen>> {
    let failed = || files::io("read", path);
    // Opened anew each time: a network file system then asks its server.
    match File::open(path) {
        Ok(file) => {
            let touched = file.metadata().map_err(failed())?.modified().ok();
            Ok(Some(LockSeen { content: fs::read(path).unwrap_or_default(), touched }))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed()(error).into()),
    }
}

/// What is called while a lock is watched.
pub(super) type EachLook<'a> = dyn FnMut() -> comm::Result<()> + 'a;

/// Whether nobody touches the lock for `watch`; `each_look` is called between two looks.
pub(super) fn unmoved(
    path: &Path,
    seen: &LockSeen,
    watch: Duration,
    each_look: &mut EachLook,
) -> Result<bool> {
    say(&format!(
        "{} is there: {:.0} s to see whether its holder lives",
        path.display(),
        watch.as_secs_f64()
    ));
    let started = Instant::now();
    while started.elapsed() < watch {
        std::thread::sleep((watch / 20).min(Duration::from_millis(500)));
        each_look()?;
        match look(path)? {
            Some(now) if now == *seen => {}
            // Touched; or taken, or gone: the next look says which.
            now => return Ok(now.is_none()),
        }
    }
    Ok(true)
}
