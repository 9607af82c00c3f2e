//! Maps steps to stages and epochs. Configuration files count epochs, the search counts steps.

use crate::config::{Config, StageSection};
use std::ops::Range;

/// Stages and epochs of a run, in steps.
#[derive(Clone, Debug)]
pub struct Timeline {
    stages: Vec<StageSection>,
    /// Steps per epoch.
    pub steps_per_epoch: u64,
    architecture_from_epoch: u64,
}

/// Stage and epoch of a step, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPosition {
    /// Stage.
    pub stage: usize,
    /// Epoch of the run.
    pub epoch: u64,
    /// Whether the step also trains eta: not in the first epochs of each stage, in which the widened weights settle.
    pub architecture: bool,
}

impl Timeline {
    /// `steps_of_data`: steps per pass over the training set; `search.steps_per_epoch` may end epochs earlier.
    pub fn new(config: &Config, steps_of_data: u64) -> Timeline {
        let bound = config.search.steps_per_epoch;
        Timeline {
            stages: config.search.stages.clone(),
            steps_per_epoch: if bound == 0 { steps_of_data } else { steps_of_data.min(bound) },
            architecture_from_epoch: config.search.architecture_from_epoch,
        }
    }

    /// Epochs of the run.
    pub fn num_epochs(&self) -> u64 {
        self.stages.iter().map(|stage| stage.epochs).sum()
    }

    /// Steps of the run.
    pub fn num_steps(&self) -> u64 {
        self.num_epochs() * self.steps_per_epoch
    }

    /// The stages.
    pub fn stages(&self) -> &[StageSection] {
        &self.stages
    }

    /// Returns the steps of stage `stage`.
    pub fn steps_of(&self, stage: usize) -> Range<u64> {
        let epochs: u64 = self.stages[..stage].iter().map(|stage| stage.epochs).sum();
        epochs * self.steps_per_epoch..(epochs + self.stages[stage].epochs) * self.steps_per_epoch
    }

    /// Returns the stage and epoch of step `step` (from 0, below `num_steps`).
    pub fn position(&self, step: u64) -> StepPosition {
        let stage = (0..self.stages.len()).find(|&stage| step < self.steps_of(stage).end);
        let stage = stage.expect("a step of the run");
        let epoch_in_stage = (step - self.steps_of(stage).start) / self.steps_per_epoch;
        StepPosition {
            stage,
            epoch: step / self.steps_per_epoch,
            architecture: epoch_in_stage >= self.architecture_from_epoch,
        }
    }

    /// Returns the number of architecture steps among the first `step` steps: the position in the second data set.
    pub fn architecture_steps_before(&self, step: u64) -> u64 {
        (0..self.stages.len())
            .map(|stage| {
                let steps = self.steps_of(stage);
                let first = steps.start + self.architecture_from_epoch * self.steps_per_epoch;
                step.min(steps.end).saturating_sub(first)
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_belong_to_stages_and_epochs() {
        let mut config = Config::default();
        config.search.stages = vec![
            StageSection { k: 6, ops_kept: 7, epochs: 3 },
            StageSection { k: 3, ops_kept: 4, epochs: 2 },
        ];
        config.search.architecture_from_epoch = 1;
        config.search.steps_per_epoch = 4;
        let timeline = Timeline::new(&config, 10);
        assert_eq!((timeline.num_epochs(), timeline.num_steps()), (5, 20));
        assert_eq!(timeline.position(0), StepPosition { stage: 0, epoch: 0, architecture: false });
        assert_eq!(timeline.position(4), StepPosition { stage: 0, epoch: 1, architecture: true });
        assert_eq!(timeline.position(11), StepPosition { stage: 0, epoch: 2, architecture: true });
        assert_eq!(timeline.position(12), StepPosition { stage: 1, epoch: 3, architecture: false });
        assert_eq!(timeline.position(19), StepPosition { stage: 1, epoch: 4, architecture: true });
        let counted = |step| (0..step).filter(|&step| timeline.position(step).architecture).count() as u64;
        for step in 0..=20 {
            assert_eq!(timeline.architecture_steps_before(step), counted(step), "{step}");
        }
        assert_eq!(Timeline::new(&config, 3).steps_per_epoch, 3);
    }
}
