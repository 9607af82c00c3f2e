//! Interface between a run and what it trains: a search or an evaluation.

use crate::comm::Communicator;
use crate::config::Settings;
use crate::error::Result;
use crate::report::{EpochSummary, LogRecord, StepRecord};
use crate::train::state::State;
use crate::train::tally::StepOutcome;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A training that runs step by step on all ranks and whose state can be saved after any step. Collective methods are
/// called by all ranks in the same order.
pub trait Training {
    /// Type of the configuration.
    type Settings: Settings;

    /// The configuration.
    fn settings(&self) -> &Self::Settings;

    /// Command-line options of the inputs with the hashes of their contents. They must not change when a run resumes.
    fn input_hashes(&self) -> Vec<(&'static str, u64)>;

    /// Class names, in the order of the labels.
    fn classes(&self) -> &[String];

    /// Steps per epoch.
    fn steps_per_epoch(&self) -> u64;

    /// Steps of the run, a multiple of `steps_per_epoch`.
    fn num_steps(&self) -> u64;

    /// Steps done.
    fn step(&self) -> u64;

    /// Returns the stage, the epoch and the learning rates of `step` (from 0, below `num_steps`).
    fn place(&self, step: u64) -> StepPlace;

    /// Opens the streams of images at the next step. Called before the first step, after `restore` if a run resumes.
    /// Local.
    fn open_data(&mut self) -> Result<()>;

    /// Trains one step; gradients are averaged over all replicas. Collective.
    fn train_step(&mut self, comm: &dyn Communicator) -> Result<StepOutcome>;

    /// Called after the last step of an epoch, for example to test. Collective.
    fn end_epoch(&mut self, _comm: &dyn Communicator) -> Result<()> {
        Ok(())
    }

    /// Returns whether a stage ends with the step just done; the last step of the run ends one.
    fn stage_ends(&self) -> bool {
        self.step() == self.num_steps()
    }

    /// Advances to the next stage. Local; the same on all ranks.
    fn advance(&mut self) -> Result<()> {
        Ok(())
    }

    /// State that steps change.
    fn state(&self) -> &dyn State;

    /// State that steps change, for `restore`.
    fn state_mut(&mut self) -> &mut dyn State;

    /// Inputs other than the configuration, as files of the run folder: name and text.
    fn inputs(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }

    /// Announcement at the start of the run or of a stage. Rank 0.
    fn announce_stage(&self) -> Announcement;

    /// Announcement after the last step of an epoch and after `end_epoch`. Rank 0.
    fn announce_epoch(&self, summary: EpochSummary) -> Result<Announcement>;

    /// Writes the results to the run folder; returns the last log record and the final report. Rank 0.
    fn finish(&self, out: &Path, totals: &Totals) -> Result<Announcement>;
}

/// Sums since the start of the run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Images of all data sets.
    pub images: u64,
    /// Time in steps, seconds.
    pub wall_s: f64,
    /// Number of ranks since the run was last started or resumed.
    pub ranks: u64,
    /// Number of replacements of images that could not be decoded.
    #[serde(default)]
    pub replaced_images: u64,
}

/// A log record and the corresponding console text.
pub struct Announcement {
    /// Record for `metrics.jsonl`.
    pub record: LogRecord,
    /// Text for the console.
    pub text: String,
}

/// Stage, epoch and learning rates of a step; stage and epoch count from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPlace {
    /// Stage.
    pub stage: u64,
    /// Number of stages in the run.
    pub num_stages: u64,
    /// Epoch of the run.
    pub epoch: u64,
    /// Learning rate of the weights.
    pub lr: f64,
    /// Learning rate of the architecture parameters; `None` if the step does not train them.
    pub eta_lr: Option<f64>,
}

impl StepPlace {
    /// Returns a log record of `step` with the fields of the place filled in.
    pub fn record(&self, step: u64) -> StepRecord {
        StepRecord {
            stage: self.stage + 1,
            epoch: self.epoch + 1,
            step,
            lr: self.lr,
            eta_lr: self.eta_lr.unwrap_or(0.0),
            ..StepRecord::default()
        }
    }
}

/// Inputs of the run, as files of the run folder: name and text.
pub(super) fn inputs(training: &impl Training) -> Result<Vec<(&'static str, String)>> {
    let mut inputs = vec![("config.toml", training.settings().to_toml())];
    inputs.extend(training.inputs()?);
    Ok(inputs)
}
