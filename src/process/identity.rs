//! Identifies a process across machines and restarts: machine, pid and start time.

use xxhash_rust::xxh3::xxh3_64;

/// Returns the start time of process `pid` of this machine in clock ticks, or `None` if it is not running.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may contain spaces and parentheses; it ends at the last ")". A zombie has ended.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Identifies this machine since its last boot, together with the pid and network namespaces.
pub(crate) fn machine_id() -> u64 {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = |name: &str| {
        std::fs::read_link(format!("/proc/self/ns/{name}"))
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
