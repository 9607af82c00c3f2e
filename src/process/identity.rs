//! Identifies a process across machines and restarts: machine, pid and start time.

use std::fs;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Returns the fields of `stat` in the /proc folder `process`, from the state of the process on: state, parent's PID, ...
pub(crate) fn stat_fields(process: &Path) -> Option<Vec<String>> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The command name may contain spaces and parentheses; it ends at the last ")".
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(String::from).collect())
}

/// Returns the start time of process `pid` of this machine in clock ticks, or `None` if it is not running.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    let fields = stat_fields(Path::new(&format!("/proc/{pid}")))?;
    // A zombie has ended.
    if matches!(fields.first()?.as_str(), "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Identifies this machine since its last boot, together with the pid and network namespaces.
pub(crate) fn machine_id() -> u64 {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = |name: &str| {
        fs::read_link(format!("/proc/self/ns/{name}"))
            .map(|link| link.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    xxh3_64(format!("{boot} {} {}", namespace("pid"), namespace("net")).as_bytes())
}

/// Returns a token that cannot be guessed; no result depends on it.
pub(crate) fn random_token() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
