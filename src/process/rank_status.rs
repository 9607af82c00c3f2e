//! The roll: where every rank was when it was last heard of, so that whoever waits in vain can name who is missing.
//!
//! Heartbeats fill it (`world::heartbeat`); without them (one process, or watching is off) it is empty and says nothing.

use super::phase::{Phase, Whereabouts};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The collective operation in which this rank waits now, by its number; 0 while it computes.
static WAITING: AtomicU64 = AtomicU64::new(0);
static ROLL: Mutex<Vec<LastHeard>> = Mutex::new(Vec::new());

/// What a rank said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) step: u64,
    pub(crate) phase: Phase,
    /// The operation in which it waits; 0 for none.
    pub(crate) operation: u64,
}

struct LastHeard {
    host: String,
    word: Word,
    /// When the word was first heard.
    since: Instant,
}

impl LastHeard {
    fn of(&self, rank: usize) -> Whereabouts {
        Whereabouts { rank, host: self.host.clone(), step: self.word.step, phase: self.word.phase }
    }

    /// "rank 2 on b, step 4, forward for 7 s".
    fn since(&self, rank: usize) -> String {
        format!("{} for {:.0} s", self.of(rank), self.since.elapsed().as_secs_f64())
    }
}

fn roll() -> MutexGuard<'static, Vec<LastHeard>> {
    ROLL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins with the ranks of `hosts`, in rank order: nobody has been heard of.
pub(crate) fn begin(hosts: &[String]) {
    let word = Word { step: 0, phase: Phase::StartUp, operation: 0 };
    *roll() =
        hosts.iter().map(|host| LastHeard { host: host.clone(), word, since: Instant::now() }).collect();
}

/// Notes what `rank` says of itself.
pub(crate) fn note(rank: usize, word: Word) {
    if let Some(entry) = roll().get_mut(rank)
        && entry.word != word
    {
        (entry.word, entry.since) = (word, Instant::now());
    }
}

/// What `rank` last said.
pub(crate) fn word_of(rank: usize) -> Option<Word> {
    roll().get(rank).map(|entry| entry.word)
}

/// Where `rank` was when it was last heard of.
pub(crate) fn last_of(rank: usize) -> Option<Whereabouts> {
    roll().get(rank).map(|entry| entry.of(rank))
}

/// What this rank says of itself.
pub(crate) fn mine() -> Word {
    let (step, phase) = super::phase::now();
    Word { step, phase, operation: WAITING.load(Relaxed) }
}

/// Says that this rank waits for the others in operation `number`.
pub(crate) fn wait_in(number: u64) {
    WAITING.store(number, Relaxed);
}

/// Says that it waits no more.
pub(crate) fn go_on() {
    WAITING.store(0, Relaxed);
}

/// Who has not come to operation `number`, as the end of a sentence; "" if that is not known.
pub(crate) fn missing(rank: usize, number: u64) -> String {
    let roll = roll();
    let names: Vec<String> = (roll.iter().enumerate())
        .filter(|(other, entry)| *other != rank && entry.word.operation != number)
        .map(|(rank, entry)| entry.since(rank))
        .collect();
    match names.len() {
        0 => String::new(),
        1..=4 => format!(" (missing: {})", names.join("; ")),
        count => format!(" (missing: {}; {} more)", names[..4].join("; "), count - 4),
    }
}

/// Who was furthest behind this rank when last heard of, as the end of a sentence; "" if nobody was. For collectives on
/// cards, which hosts do not wait for one by one.
pub(crate) fn furthest_behind(rank: usize) -> String {
    let roll = roll();
    let place = |word: &Word| (word.step, word.phase as u8);
    let others = roll.iter().enumerate().filter(|(other, _)| *other != rank);
    match others.min_by_key(|(_, entry)| place(&entry.word)) {
        Some((rank, entry)) if place(&entry.word) < place(&mine()) => {
            format!(" (furthest behind: {})", entry.since(rank))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn those_who_wait_elsewhere_are_missing() {
        assert_eq!(missing(0, 7), "");
        begin(&["a", "b", "b"].map(String::from));
        note(1, Word { step: 4, phase: Phase::AllReduce, operation: 7 });
        note(2, Word { step: 4, phase: Phase::Forward, operation: 0 });
        assert_eq!(missing(0, 7), " (missing: rank 2 on b, step 4, forward for 0 s)");
        // It came, and went on to the next one: that is not where it is waited for.
        note(1, Word { step: 5, phase: Phase::AllReduce, operation: 8 });
        assert!(missing(0, 7).contains("rank 1 on b, step 5, all-reduce"));
        // Said again, it is no news.
        roll()[2].since -= Duration::from_secs(7);
        note(2, Word { step: 4, phase: Phase::Forward, operation: 0 });
        assert!(missing(0, 7).contains("rank 2 on b, step 4, forward for 7 s"), "{}", missing(0, 7));
        note(9, mine());
        assert_eq!(last_of(2).unwrap().to_string(), "rank 2 on b, step 4, forward");
        *roll() = Vec::new();
    }
}
