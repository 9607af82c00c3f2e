//! Where this rank is in its work: what a heartbeat carries and what the line names when the rank has to end.
//!
//! One per process, written by the main thread and read by watching threads at any time, without waiting.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

static STEP: AtomicU64 = AtomicU64::new(0);
static PHASE: AtomicU8 = AtomicU8::new(0);
static HOOK: OnceLock<Hook> = OnceLock::new();
static IDENTITY: OnceLock<(usize, String)> = OnceLock::new();

/// What a rank does at a moment, in the order of a step and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Before the first step.
    StartUp,
    /// Waits for a batch.
    Data,
    /// Computes the network.
    Forward,
    /// Differentiates it.
    Backward,
    /// Waits for gradients of the other ranks.
    AllReduce,
    /// Changes weights or eta.
    Optimiser,
    /// Reads the losses of steps.
    Metrics,
    /// Looks at held-out images.
    Test,
    /// Prunes and widens.
    StageChange,
    /// Compares its state with that of the other ranks.
    Comparison,
    /// Writes or reads a checkpoint.
    Checkpoint,
    /// After the last step.
    End,
}

impl Phase {
    const ALL: [Phase; 12] = [
        Phase::StartUp,
        Phase::Data,
        Phase::Forward,
        Phase::Backward,
        Phase::AllReduce,
        Phase::Optimiser,
        Phase::Metrics,
        Phase::Test,
        Phase::StageChange,
        Phase::Comparison,
        Phase::Checkpoint,
        Phase::End,
    ];

    /// The phase whose `as u8` is `number`; `StartUp` for any other number.
    pub fn from_u8(number: u8) -> Phase {
        Self::ALL.get(number as usize).copied().unwrap_or(Phase::StartUp)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::StartUp => "start-up",
            Phase::Data => "data",
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::AllReduce => "all-reduce",
            Phase::Optimiser => "optimiser",
            Phase::Metrics => "metrics",
            Phase::Test => "test",
            Phase::StageChange => "stage change",
            Phase::Comparison => "comparison",
            Phase::Checkpoint => "checkpoint",
            Phase::End => "end",
        })
    }
}

/// A rank and where it is. Shown as "rank 3 on node7, step 120, backward".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    /// 0..size; 0 before [`set_identity`].
    pub rank: usize,
    /// Its machine; empty before [`set_identity`].
    pub host: String,
    /// The step under way, from 1; 0 before the first.
    pub step: u64,
    /// What is done in it.
    pub phase: Phase,
}

impl fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} on {}, step {}, {}", self.rank, self.host, self.step, self.phase)
    }
}

/// Says which rank this process is. Once, when the ranks are joined; later calls change nothing.
pub fn set_identity(rank: usize, host: &str) {
    let _ = IDENTITY.set((rank, host.to_owned()));
}

/// Says that the work of step `step` (from 1) begins.
pub fn set_step(step: u64) {
    STEP.store(step, Relaxed);
}

/// Says that `phase` begins.
pub fn enter(phase: Phase) {
    PHASE.store(phase as u8, Relaxed);
}

/// Says that `phase` begins; the hook of [`on_begin`] may let it fail.
pub fn begin(phase: Phase) -> Result<(), PlannedFailure> {
    enter(phase);
    match HOOK.get() {
        Some(hook) => hook(STEP.load(Relaxed), phase),
        None => Ok(()),
    }
}

/// What a test does when a rank begins a phase, given the step: kill it, stop it, let it fail.
pub type Hook = Box<dyn Fn(u64, Phase) -> Result<(), PlannedFailure> + Send + Sync>;

/// The error with which a hook lets a phase fail.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct PlannedFailure(Box<dyn std::error::Error + Send + Sync>);

impl PlannedFailure {
    /// The phase fails with `error`.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PlannedFailure {
        PlannedFailure(error.into())
    }
}

/// For tests: `hook` is called at every [`begin`]. Once; later calls change nothing.
pub fn on_begin(hook: Hook) {
    let _ = HOOK.set(hook);
}

/// Step and phase of this moment.
pub fn now() -> (u64, Phase) {
    (STEP.load(Relaxed), Phase::from_u8(PHASE.load(Relaxed)))
}

/// ", step 120, backward" for the line in which a rank fails; "" before the first step, where the error says it all.
pub fn in_step() -> String {
    match now() {
        (0, _) => String::new(),
        (step, phase) => format!(", step {step}, {phase}"),
    }
}

/// This rank at this moment.
pub fn here() -> Whereabouts {
    let (rank, host) = IDENTITY.get().cloned().unwrap_or_default();
    let (step, phase) = now();
    Whereabouts { rank, host, step, phase }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_survive_their_numbers() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_u8(phase as u8), phase);
        }
        assert_eq!(Phase::from_u8(200), Phase::StartUp);
    }

    #[test]
    fn a_rank_says_where_it_is() {
        set_identity(3, "node7");
        set_identity(4, "node8");
        set_step(120);
        enter(Phase::Backward);
        assert_eq!(now(), (120, Phase::Backward));
        assert_eq!(here().to_string(), "rank 3 on node7, step 120, backward");
    }
}
