//! Last known status of every rank, so that a rank that times out can name the missing ones.
//!
//! Filled by heartbeats (`world::heartbeat`); without them (one process, or `heartbeat_s = 0`) it is empty.

use super::phase::{Phase, RankLocation};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Sequence number of the collective operation in which this rank waits; 0 while it computes.
static WAITING: AtomicU64 = AtomicU64::new(0);
static RANKS: Mutex<Vec<LastSeen>> = Mutex::new(Vec::new());

/// Status of a rank, as reported by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RankStatus {
    pub(crate) step: u64,
    pub(crate) phase: Phase,
    /// Sequence number of the operation in which it waits; 0 for none.
    pub(crate) operation: u64,
}

struct LastSeen {
    host: String,
    status: RankStatus,
    /// When this status was first received.
    since: Instant,
}

impl LastSeen {
    fn of(&self, rank: usize) -> RankLocation {
        RankLocation { rank, host: self.host.clone(), step: self.status.step, phase: self.status.phase }
    }

    /// Formats "rank 2 on b, step 4, forward for 7 s".
    fn since(&self, rank: usize) -> String {
        format!("{} for {:.0} s", self.of(rank), self.since.elapsed().as_secs_f64())
    }
}

fn ranks() -> MutexGuard<'static, Vec<LastSeen>> {
    RANKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Initialises the status of the ranks on `hosts`, in rank order: none has reported yet.
pub(crate) fn init(hosts: &[String]) {
    let status = RankStatus { step: 0, phase: Phase::StartUp, operation: 0 };
    *ranks() =
        hosts.iter().map(|host| LastSeen { host: host.clone(), status, since: Instant::now() }).collect();
}

/// Records the reported status of `rank`.
pub(crate) fn update(rank: usize, status: RankStatus) {
    if let Some(entry) = ranks().get_mut(rank)
        && entry.status != status
    {
        (entry.status, entry.since) = (status, Instant::now());
    }
}

/// Returns the last reported status of `rank`.
pub(crate) fn of(rank: usize) -> Option<RankStatus> {
    ranks().get(rank).map(|entry| entry.status)
}

/// Returns the last known location of `rank`.
pub(crate) fn last_location(rank: usize) -> Option<RankLocation> {
    ranks().get(rank).map(|entry| entry.of(rank))
}

/// Returns the current status of this rank.
pub(crate) fn current() -> RankStatus {
    let (step, phase) = super::phase::now();
    RankStatus { step, phase, operation: WAITING.load(Relaxed) }
}

/// Records that this rank waits for the others in operation `number`.
pub(crate) fn begin_wait(number: u64) {
    WAITING.store(number, Relaxed);
}

/// Records that this rank no longer waits.
pub(crate) fn end_wait() {
    WAITING.store(0, Relaxed);
}

/// Lists the ranks that have not reached operation `number`, as a suffix for a message; "" if unknown.
pub(crate) fn missing(rank: usize, number: u64) -> String {
    let ranks = ranks();
    let names: Vec<String> = (ranks.iter().enumerate())
        .filter(|(other, entry)| *other != rank && entry.status.operation < number)
        .map(|(rank, entry)| entry.since(rank))
        .collect();
    match names.len() {
        0 => String::new(),
        1..=4 => format!(" (missing: {})", names.join("; ")),
        count => format!(" (missing: {}; {} more)", names[..4].join("; "), count - 4),
    }
}

/// Names the rank furthest behind this one, as a suffix for a message; "" if there is none. For collectives on GPUs, in
/// which the host does not wait for each operation.
pub(crate) fn furthest_behind(rank: usize) -> String {
    let ranks = ranks();
    let place = |status: &RankStatus| (status.step, status.phase as u8);
    let others = ranks.iter().enumerate().filter(|(other, _)| *other != rank);
    match others.min_by_key(|(_, entry)| place(&entry.status)) {
        Some((rank, entry)) if place(&entry.status) < place(&current()) => {
            format!(", furthest behind: {}", entry.since(rank))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ranks_waiting_elsewhere_are_missing() {
        assert_eq!(missing(0, 7), "");
        init(&["a", "b", "b"].map(String::from));
        update(1, RankStatus { step: 4, phase: Phase::AllReduce, operation: 7 });
        update(2, RankStatus { step: 4, phase: Phase::Forward, operation: 0 });
        assert_eq!(missing(0, 7), " (missing: rank 2 on b, step 4, forward for 0 s)");
        // Rank 1 has completed the operation and waits in the next one.
        update(1, RankStatus { step: 5, phase: Phase::AllReduce, operation: 8 });
        assert!(!missing(0, 7).contains("rank 1"), "{}", missing(0, 7));
        // A repeated status does not reset the time.
        ranks()[2].since -= Duration::from_secs(7);
        update(2, RankStatus { step: 4, phase: Phase::Forward, operation: 0 });
        assert!(missing(0, 7).contains("rank 2 on b, step 4, forward for 7 s"), "{}", missing(0, 7));
        update(9, current());
        assert_eq!(last_location(2).unwrap().to_string(), "rank 2 on b, step 4, forward");
        *ranks() = Vec::new();
    }
}
