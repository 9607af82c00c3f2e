//! Perturbed mixing weights of the weight step: SDARTS-RS and SDARTS-ADV.
//!
//! Source: SDARTS (ICML 2020).

use super::adversary::Adversary;
use super::{Batch, Search};
use crate::comm::Communicator;
use crate::config::{Attack, Ramp};
use crate::data::Loader;
use crate::error::Result;
use crate::method::parameters::ramp;
use crate::method::perturbation::{noise, start};
use crate::method::rules::Perturbation;
use crate::process::torch;
use crate::random::{Purpose, stream};
use crate::train::tally::StepOutcome;
use std::vec::IntoIter;
use tch::Tensor;

impl Search {
    /// Returns the mixing weights of the weight step, one [E, O] per table for every local replica, or `None` if the
    /// method does not perturb them. An attack takes its batches from `taken` or from `loader` and leaves them in
    /// `taken`. Collective.
    pub(super) fn perturbed(
        &mut self,
        taken: &mut Option<IntoIter<Batch>>,
        loader: &mut Loader,
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<Option<Vec<Vec<Tensor>>>> {
        let perturbation = self.architecture.rules().perturbation;
        if perturbation == Perturbation::None {
            return Ok(None);
        }
        let position = self.timeline.position(self.step);
        let epsilon =
            ramp(self.config.architecture.epsilon, Ramp::Start, position.epoch, self.timeline.num_epochs());
        let p = self.draw(Purpose::Perturbation, 0).weights.operations;
        let shared =
            perturbation == Perturbation::Adversarial && self.config.architecture.attack == Attack::Shared;
        let starts = (0..self.replicas.len()).map(|local| {
            let replica = if shared { 0 } else { self.drawn_replica(local) };
            self.perturbation_start(&p, epsilon, replica)
        });
        let starts: Vec<Vec<Tensor>> = starts.collect();
        if perturbation == Perturbation::Random {
            return Ok(Some(starts));
        }
        let batches: Vec<Batch> = match taken.take() {
            Some(batches) => batches.collect(),
            None => self.local_batches(loader, outcome)?,
        };
        let noise_seeds: Vec<u64> = (0..batches.len()).map(|local| self.noise_seed(local)).collect();
        let adversary = Adversary {
            net: &self.net,
            batches: &batches,
            p: &p,
            epsilon,
            attack: self.config.architecture.attack,
            noise_seeds: &noise_seeds,
        };
        let attacked = adversary.attack(starts, comm)?;
        *taken = Some(batches.into_iter());
        Ok(Some(attacked))
    }

    /// Returns `p`, one [E, O] per table, with noise in -epsilon..epsilon on the kept operations.
    fn perturbation_start(&self, p: &[Tensor], epsilon: f64, replica: u64) -> Vec<Tensor> {
        let table = |(table, p): (usize, &Tensor)| {
            let place = [self.step, replica, table as u64];
            let mut random = stream(self.config.seed, Purpose::Perturbation, &place);
            let noise = noise(&p.size(), &mut random) * epsilon;
            let noise = torch::upload(&noise.to_kind(p.kind()), p.device());
            start(p, &(noise * self.net.masks().table(table)))
        };
        p.iter().enumerate().map(table).collect()
    }
}
