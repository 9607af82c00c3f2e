//! Learning-rate schedules, constant within an epoch, as published.
//!
//! The cosine is the closed form. The published ImageNet search uses PyTorch's recursive form and overwrites the
//! learning rate during warm-up, so that all later rates are 2 / (1 + cos(4 pi / 50)) = 1.016 times these; the closed
//! form is what its authors intended, and what `tests/golden/schedules.json` contains.

use crate::config::{Config, DecayKind, EvaluateConfig};
use std::f64::consts::PI;

/// Decay after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// Half a cosine over all epochs, from `lr` to `lr_min`. Warm-up replaces its beginning and does not shift it.
    Cosine {
        /// Learning rate that the cosine would reach after the last epoch.
        lr_min: f64,
    },
    /// Linear to almost 0 until the last five epochs, which divide the rate that one more epoch would have (in runs of
    /// up to ten epochs: linear to the end).
    Linear,
}

/// Learning rate by epoch, over all stages of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Peak learning rate.
    pub lr: f64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Epochs of linear warm-up, the last of which has rate `lr`; 0 = none.
    pub warmup_epochs: u64,
    /// Decay after the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// Returns the schedule of a search: one cosine over all stages, without restarts.
    pub fn of_search(config: &Config) -> Schedule {
        Schedule {
            lr: config.weights.lr,
            epochs: config.num_epochs(),
            warmup_epochs: config.weights.warmup_epochs,
            decay: Decay::Cosine { lr_min: config.weights.lr_min },
        }
    }

    /// Returns the schedule of an evaluation.
    pub fn of_evaluation(config: &EvaluateConfig) -> Schedule {
        Schedule {
            lr: config.lr(),
            epochs: config.evaluate.epochs,
            warmup_epochs: config.weights.warmup_epochs,
            decay: match config.evaluate.decay {
                DecayKind::Linear => Decay::Linear,
                DecayKind::Cosine => Decay::Cosine { lr_min: config.weights.lr_min },
            },
        }
    }

    /// Returns the learning rate of `epoch`, counted from 0 over the whole run; constant after the last epoch.
    pub fn lr(&self, epoch: u64) -> f64 {
        let Schedule { lr, epochs, .. } = *self;
        let epoch = epoch.min(epochs.saturating_sub(1));
        if epoch < self.warmup_epochs {
            return lr * (epoch + 1) as f64 / self.warmup_epochs as f64;
        }
        match self.decay {
            Decay::Cosine { lr_min } => {
                let angle = PI * epoch as f64 / epochs as f64;
                lr_min + (lr - lr_min) * (1.0 + angle.cos()) / 2.0
            }
            Decay::Linear => {
                // A short run has a single slope.
                let slow = if epochs > 2 * LAST_EPOCHS { LAST_EPOCHS } else { 0 };
                let (left, sloped) = (epochs - epoch, (epochs - slow) as f64);
                match left > slow {
                    true => lr * ((left - slow) as f64 / sloped),
                    false => lr * (left as f64 / (sloped * slow as f64)),
                }
            }
        }
    }
}

/// Epochs at the end of the linear decay with the smaller slope.
const LAST_EPOCHS: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_short_runs_are_positive_and_decrease() {
        for decay in [Decay::Cosine { lr_min: 0.0 }, Decay::Linear] {
            for epochs in 1..14 {
                let schedule = Schedule { lr: 0.1, epochs, warmup_epochs: 0, decay };
                let rates: Vec<f64> = (0..epochs + 2).map(|epoch| schedule.lr(epoch)).collect();
                let good = |lr: &f64| *lr > 0.0 && *lr <= 0.1;
                assert!(rates.iter().all(good), "{schedule:?}: {rates:?}");
                assert!(rates.is_sorted_by(|a, b| a >= b), "{schedule:?}: {rates:?}");
            }
        }
    }
}
