//! Training: what a run needs of the thing it trains, be it a search or an evaluation.

use crate::comm::Communicator;
use crate::config::Settings;
use crate::error::Result;
use crate::report::{EpochSummary, LogRecord, StepRecord};
use crate::train::state::State;
use crate::train::tally::StepOutcome;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Something that is trained step by step over all ranks, with a state that can be saved at any step. Collective methods
/// are called by all ranks in the same order.
pub trait Training {
    /// Its configuration.
    type Settings: Settings;

    /// The configuration of this run.
    fn settings(&self) -> &Self::Settings;

    /// What it was given on the command line: option and content. A run goes on with what it began with.
    fn sets(&self) -> Vec<(&'static str, u64)>;

    /// Names of the classes that it is trained on, in order of the labels.
    fn classes(&self) -> &[String];

    /// Steps of every epoch.
    fn steps_per_epoch(&self) -> u64;

    /// Steps of the run, a multiple of `steps_per_epoch`.
    fn num_steps(&self) -> u64;

    /// Steps done.
    fn step(&self) -> u64;

    /// Where a step (0-based, below `num_steps`) stands.
    fn place(&self, step: u64) -> StepPlace;

    /// Opens the streams of images for the next step: before the first one, after `restore` if there was one. Local.
    fn open_data(&mut self) -> Result<()>;

    /// One step; gradients are averaged over all replicas. Collective.
    fn train_step(&mut self, comm: &dyn Communicator) -> Result<StepOutcome>;

    /// After the last step of an epoch: tests, for one. Collective.
    fn end_epoch(&mut self, _comm: &dyn Communicator) -> Result<()> {
        Ok(())
    }

    /// Whether a stage ends with the step just done; the run's last step ends one.
    fn stage_ends(&self) -> bool {
        self.step() == self.num_steps()
    }

    /// Goes to the next stage. Local; the same on all ranks.
    fn advance(&mut self) -> Result<()> {
        Ok(())
    }

    /// What its steps change.
    fn state(&self) -> &dyn State;

    /// The same, to be put back where a checkpoint was.
    fn state_mut(&mut self) -> &mut dyn State;

    /// What it was given beside the configuration, as files of the run folder: name and text.
    fn inputs(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }

    /// What is told when the run, or a stage of it, begins. Rank 0.
    fn tell_stage(&self) -> Told;

    /// What is told after the last step of an epoch, and after `end_epoch`. Rank 0.
    fn tell_epoch(&self, summary: EpochSummary) -> Result<Told>;

    /// Writes the results into the run folder; what is told at the end: the record, and a report for people. Rank 0.
    fn finish(&self, out: &Path, totals: &Totals) -> Result<Told>;
}

/// Sums since the beginning of the run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Images of all sets.
    pub images: u64,
    /// Seconds in steps.
    pub wall_s: f64,
    /// Ranks of the last part of the run.
    pub ranks: u64,
    /// How often an image that could not be decoded was replaced.
    #[serde(default)]
    pub replaced_images: u64,
}

/// A line of the log, and the same for people.
pub struct Told {
    /// For the log.
    pub record: LogRecord,
    /// For people.
    pub text: String,
}

/// Where a step stands; stage and epoch count from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPlace {
    /// Stage.
    pub stage: u64,
    /// Stages of the run.
    pub num_stages: u64,
    /// Epoch of the run.
    pub epoch: u64,
    /// Learning rate of the weights.
    pub lr: f64,
    /// Learning rate of eta if the step trains it.
    pub eta_lr: Option<f64>,
}

impl StepPlace {
    /// The log's line of a step, with what the place knows filled in.
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

/// What the run was given, as files of the run folder: name and text.
pub(super) fn inputs(training: &impl Training) -> Result<Vec<(&'static str, String)>> {
    let mut inputs = vec![("config.toml", training.settings().to_toml())];
    inputs.extend(training.inputs()?);
    Ok(inputs)
}
