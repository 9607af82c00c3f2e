//! What tells one process from every other: its machine, its number there and when it began.

use xxhash_rust::xxh3::xxh3_64;

/// When process `pid` of this machine began, in clock ticks; none if there is none.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and brackets; it ends with the last ")". A zombie has ended.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// The kernel that runs since the last boot, with the processes and the network that are visible.
pub(crate) fn machine_id() -> u64 {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = |name: &str| {
        std::fs::read_link(format!("/proc/self/ns/{name}"))
            .map(|link| link.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    xxh3_64(format!("{boot} {} {}", space("pid"), space("net")).as_bytes())
}

/// Not to be guessed from outside; no result depends on it.
pub(crate) fn random_token() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
