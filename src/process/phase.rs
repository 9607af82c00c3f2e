//! The current step and phase of this rank: sent in heartbeats and named in error messages.
//!
//! There is one per process; the main thread sets it, and watchdog threads read it at any time, without a lock.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

static STEP: AtomicU64 = AtomicU64::new(0);
static PHASE: AtomicU8 = AtomicU8::new(0);
static HOOK: OnceLock<Hook> = OnceLock::new();
static IDENTITY: OnceLock<(usize, String)> = OnceLock::new();

/// What a rank is doing, in the order of start-up, a step, and the work between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Before the first step.
    StartUp,
    /// Waiting for a batch.
    Data,
    /// The forward pass.
    Forward,
    /// The backward pass.
    Backward,
    /// Waiting for the gradients of the other ranks.
    AllReduce,
    /// Updating weights or eta.
    Optimiser,
    /// Reading back losses.
    Metrics,
    /// Evaluating held-out images.
    Test,
    /// Pruning and widening.
    StageChange,
    /// Comparing the state with the other ranks.
    Comparison,
    /// Writing or reading a checkpoint.
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

    /// Returns the phase with the discriminant `number`, or `StartUp` if there is none.
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

/// A rank, its host, and its step and phase. Displayed as "rank 3 on node7, step 120, backward".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankLocation {
    /// 0..size; 0 before [`set_identity`].
    pub rank: usize,
    /// Host name; empty before [`set_identity`].
    pub host: String,
    /// The current step, from 1; 0 before the first.
    pub step: u64,
    /// The current phase.
    pub phase: Phase,
}

impl fmt::Display for RankLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} on {}, step {}, {}", self.rank, self.host, self.step, self.phase)
    }
}

/// Sets the rank and host of this process. Called once, as soon as they are known; later calls have no effect.
pub fn set_identity(rank: usize, host: &str) {
    let _ = IDENTITY.set((rank, host.to_owned()));
}

/// Sets the current step (from 1).
pub fn set_step(step: u64) {
    STEP.store(step, Relaxed);
}

/// Sets the current phase.
pub fn enter(phase: Phase) {
    PHASE.store(phase as u8, Relaxed);
}

/// Sets the current phase and calls the hook set by [`set_begin_hook`], if any. Errors: those of the hook.
pub fn begin(phase: Phase) -> Result<(), InjectedFailure> {
    enter(phase);
    match HOOK.get() {
        Some(hook) => hook(STEP.load(Relaxed), phase),
        None => Ok(()),
    }
}

/// Fault injection in tests: called at the start of a phase with step and phase, to kill, stop or fail the rank.
pub type Hook = Box<dyn Fn(u64, Phase) -> Result<(), InjectedFailure> + Send + Sync>;

/// An error returned by a hook.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct InjectedFailure(Box<dyn std::error::Error + Send + Sync>);

impl InjectedFailure {
    /// Wraps `error`.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> InjectedFailure {
        InjectedFailure(error.into())
    }
}

/// For tests: sets the hook that [`begin`] calls. Only the first call has an effect.
pub fn set_begin_hook(hook: Hook) {
    let _ = HOOK.set(hook);
}

/// Returns the current step and phase.
pub fn now() -> (u64, Phase) {
    (STEP.load(Relaxed), Phase::from_u8(PHASE.load(Relaxed)))
}

/// Returns ", step 120, backward" for an error message, or "" before the first step.
pub fn step_suffix() -> String {
    match now() {
        (0, _) => String::new(),
        (step, phase) => format!(", step {step}, {phase}"),
    }
}

/// Returns this rank's current location.
pub fn here() -> RankLocation {
    let (rank, host) = IDENTITY.get().cloned().unwrap_or_default();
    let (step, phase) = now();
    RankLocation { rank, host, step, phase }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_round_trip_through_their_numbers() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_u8(phase as u8), phase);
        }
        assert_eq!(Phase::from_u8(200), Phase::StartUp);
    }

    #[test]
    fn a_location_names_rank_host_step_and_phase() {
        set_identity(3, "node7");
        set_identity(4, "node8");
        set_step(120);
        enter(Phase::Backward);
        assert_eq!(now(), (120, Phase::Backward));
        assert_eq!(here().to_string(), "rank 3 on node7, step 120, backward");
    }
}
