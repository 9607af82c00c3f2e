//! Search: its state and its steps.
//!
//! A run is defined over R logical replicas. The global batch is split over them; each draws its own theta (or all use
//! the same draw) and has its own batch statistics and random streams; gradients are averaged. A rank computes its
//! replicas one after another, so the result does not depend on the number of ranks.

pub mod adversary;
mod architecture;
mod attack;
pub mod stage;
pub mod state;
pub mod timeline;
pub mod unrolled;

use crate::comm::Communicator;
use crate::config::{self, Config, FirstPart, GradientOrder};
use crate::data::{Loader, Upload};
use crate::error::Result;
use crate::method::Sample;
use crate::method::parameters::{ArchitectureParameters, DrawPlace, HostTable};
use crate::net::loss::cross_entropy;
use crate::net::mixing::MixingWeights;
use crate::net::supernet::Supernet;
use crate::process::phase::{Phase, begin};
use crate::random::Purpose;
use crate::space::SearchSpace;
use crate::space::found::Found;
use crate::train::optimiser::Sgd;
use crate::train::schedule::Schedule;
use crate::train::step;
use crate::train::tally::{StepOutcome, measure};
use std::ops::Range;
use std::vec::IntoIter;
use tch::{Device, Tensor};
use timeline::Timeline;

/// Images and labels of one replica.
type Batch = (Tensor, Tensor);

/// State of a search and what a step needs. Equal on all ranks except for the replicas.
pub struct Search {
    config: Config,
    schedule: Schedule,
    timeline: Timeline,
    /// The replicas that this rank computes.
    replicas: Range<usize>,
    net: Supernet,
    upload: Upload,
    architecture: ArchitectureParameters,
    sgd: Sgd,
    /// Steps done.
    step: u64,
    /// Index of the stage, from 0.
    stage: usize,
}

impl Search {
    /// Creates the initial state, with the same weights and architecture parameters on every rank. Local.
    pub fn new(config: &Config, timeline: Timeline, replicas: Range<usize>, device: Device) -> Search {
        let first = config.search.stages[0];
        let masks = config.masks().expect("a checked configuration");
        let mut net = stage::supernet(config, first.k, masks, replicas.len(), device);
        net.params.initialise(config.seed);
        Search {
            architecture: ArchitectureParameters::new(config, device),
            sgd: Sgd::of(&config.weights),
            schedule: Schedule::of_search(config),
            config: config.clone(),
            timeline,
            replicas,
            net,
            upload: Upload::new(&config.data.mean, &config.data.std, device),
            step: 0,
            stage: 0,
        }
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Index of the stage, from 0.
    pub fn stage(&self) -> usize {
        self.stage
    }

    /// The network.
    pub fn net(&self) -> &Supernet {
        &self.net
    }

    /// The architecture parameters.
    pub fn architecture(&self) -> &ArchitectureParameters {
        &self.architecture
    }

    /// The architecture parameters, for tests that modify them.
    pub fn architecture_mut(&mut self) -> &mut ArchitectureParameters {
        &mut self.architecture
    }

    /// Takes one bilevel step: the architecture parameters on a batch of the second data set (if due), the weights on a
    /// batch of the first. Gradients are averaged over all replicas. Collective.
    pub fn bilevel_step(
        &mut self,
        weights: &mut Loader,
        architecture: &mut Loader,
        comm: &dyn Communicator,
    ) -> Result<StepOutcome> {
        let mut outcome = StepOutcome::default();
        match (self.architecture_is_due(), self.config.search.first) {
            (false, _) => self.weight_step(None, weights, comm, &mut outcome)?,
            (true, FirstPart::Architecture) => {
                let taken = self.architecture_step(weights, architecture, comm, &mut outcome)?;
                self.weight_step(taken, weights, comm, &mut outcome)?;
            }
            (true, FirstPart::Weights) => {
                self.weight_step(None, weights, comm, &mut outcome)?;
                self.architecture_step(weights, architecture, comm, &mut outcome)?;
            }
        }
        self.step += 1;
        outcome.data_wait_ms = weights.wait_ms() + architecture.wait_ms();
        Ok(outcome)
    }

    /// Takes one single-level step: the weights and (if due) the architecture parameters on the same batch, from one loss.
    /// Gradients are averaged over all replicas. Collective.
    pub fn single_level_step(&mut self, loader: &mut Loader, comm: &dyn Communicator) -> Result<StepOutcome> {
        let mut outcome = StepOutcome::default();
        match self.architecture_is_due() {
            true => self.joint_step(loader, comm, &mut outcome)?,
            false => self.weight_step(None, loader, comm, &mut outcome)?,
        }
        self.step += 1;
        outcome.data_wait_ms = loader.wait_ms();
        Ok(outcome)
    }

    fn architecture_is_due(&self) -> bool {
        self.timeline.position(self.step).architecture
    }

    /// Trains the architecture parameters: gradients of the mixing weights, propagated to the parameters, averaged; one step
    /// of Adam. A virtual weight step takes the next batches of `weights`, which are returned. Collective.
    fn architecture_step(
        &mut self,
        weights: &mut Loader,
        architecture: &mut Loader,
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<Option<IntoIter<Batch>>> {
        let (sums, taken) = match self.config.search.order {
            GradientOrder::First => (self.first_order(architecture, outcome)?, None),
            GradientOrder::Second => {
                // The virtual step uses the same batches as the real one.
                let batches = self.local_batches(weights, outcome)?;
                let sums = self.second_order(&batches, architecture, comm, outcome)?;
                (sums, Some(batches.into_iter()))
            }
        };
        let grads = self.start_mean(sums, comm)?;
        begin(Phase::AllReduce)?;
        outcome.reduce_waits.push(comm.finish()?);
        begin(Phase::Optimiser)?;
        self.architecture.descend(grads);
        Ok(taken)
    }

    /// Trains the weights. Each replica has its own mixing weights; a bucket is reduced while the segments before it are
    /// differentiated. `taken`: batches that an earlier part of the step has read. Collective.
    fn weight_step(
        &mut self,
        mut taken: Option<IntoIter<Batch>>,
        loader: &mut Loader,
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        let num_local = self.replicas.len();
        let perturbed = self.perturbed(&mut taken, loader, comm, outcome)?;
        for local in 0..num_local {
            let (images, labels) = self.batch(&mut taken, loader, outcome)?;
            let theta = match &perturbed {
                Some(perturbed) => self.constant_weights(&perturbed[local], local),
                None => self.draw(Purpose::ThetaWeightStep, local).weights,
            };
            let tape = self.net.forward(&images, &theta, local);
            let loss = cross_entropy(tape.logits(), &labels);
            outcome.weights.push(measure(tape.logits(), &labels, &loss));
            step::backward(tape, &loss, &self.net.params.buckets, (local, num_local), comm)?;
        }
        self.descend(comm, outcome)
    }

    /// Trains the weights and the architecture parameters with the gradients of one loss. Collective.
    fn joint_step(
        &mut self,
        loader: &mut Loader,
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        let num_local = self.replicas.len();
        let sums = self.architecture.zero_sums();
        for local in 0..num_local {
            let (images, labels) = self.prepare(loader, outcome)?;
            let sample = self.draw(Purpose::ThetaWeightStep, local);
            let theta = sample.weights.leaves();
            let tape = self.net.forward(&images, &theta, local);
            let loss = cross_entropy(tape.logits(), &labels);
            outcome.weights.push(measure(tape.logits(), &labels, &loss));
            let pass = step::backward(tape, &loss, &self.net.params.buckets, (local, num_local), comm)?;
            sample.add_grads(self.architecture.values(), &pass.theta_grads(&theta)?, 1.0, &sums);
        }
        let grads = self.start_mean(sums, comm)?;
        self.descend(comm, outcome)?;
        self.architecture.descend(grads);
        Ok(())
    }

    /// Starts the average over all replicas of gradients that are summed over the local ones. Collective.
    fn start_mean(&self, sums: Vec<Tensor>, comm: &dyn Communicator) -> Result<Vec<Tensor>> {
        let grads: Vec<Tensor> = sums.into_iter().map(|sum| sum / self.replicas.len() as f64).collect();
        grads.iter().try_for_each(|grad| comm.start_mean(grad))?;
        Ok(grads)
    }

    /// Waits for the averaged gradients and updates the weights. Collective.
    fn descend(&mut self, comm: &dyn Communicator, outcome: &mut StepOutcome) -> Result<()> {
        let rates = (self.lr(), self.config.search.grad_clip);
        step::descend(&mut self.net.params.buckets, &self.sgd, rates, comm, outcome)
    }

    /// Returns the next batch for the weights: one already `taken` for the virtual step, or a new one.
    fn batch(
        &mut self,
        taken: &mut Option<IntoIter<Batch>>,
        loader: &mut Loader,
        outcome: &mut StepOutcome,
    ) -> Result<Batch> {
        match taken {
            Some(batches) => {
                begin(Phase::Forward)?;
                Ok(batches.next().expect("a batch per local replica"))
            }
            None => self.prepare(loader, outcome),
        }
    }

    /// Returns the learning rate of the weights in the next step.
    fn lr(&self) -> f64 {
        self.schedule.lr(self.timeline.position(self.step).epoch)
    }

    /// Draws the mixing weights of local replica `local` for this step.
    fn draw(&self, purpose: Purpose, local: usize) -> Sample {
        let epoch = self.timeline.position(self.step).epoch;
        let place = self.draw_place(purpose, local);
        self.architecture.draw(self.net.masks(), place, (epoch, self.timeline.num_epochs()))
    }

    fn draw_place(&self, purpose: Purpose, local: usize) -> DrawPlace {
        DrawPlace { purpose, step: self.step, replica: self.drawn_replica(local) }
    }

    /// Returns the mixing weights `tables` for the weight step of local replica `local`.
    fn constant_weights(&self, tables: &[Tensor], local: usize) -> MixingWeights {
        MixingWeights { noise_seed: self.noise_seed(local), ..MixingWeights::of(shared(tables)) }
    }

    /// Returns the seed of `noise` operations in the weight step of local replica `local`.
    fn noise_seed(&self, local: usize) -> u64 {
        self.architecture.noise_seed(self.draw_place(Purpose::ThetaWeightStep, local))
    }

    /// Returns the logical replica whose draws local replica `local` uses.
    fn drawn_replica(&self, local: usize) -> u64 {
        match self.config.search.theta {
            config::Theta::PerReplica => (self.replicas.start + local) as u64,
            config::Theta::Shared => 0,
        }
    }

    /// Returns the next batch on the device: normalised images, labels.
    fn prepare(&mut self, loader: &mut Loader, outcome: &mut StepOutcome) -> Result<Batch> {
        step::prepare(loader, &mut self.upload, outcome)
    }

    /// Returns the mean mixing weights; see [`ArchitectureParameters::mean_weights`].
    pub fn mean_weights(&self) -> Result<Vec<HostTable>> {
        self.architecture.mean_weights(&self.net.shape().masks)
    }

    /// Returns the scores that select the architecture; see [`ArchitectureParameters::scores`].
    pub fn scores(&self) -> Result<Vec<HostTable>> {
        self.architecture.scores(&self.net.shape().masks)
    }

    /// Returns the currently selected architecture.
    pub fn found(&self) -> Result<Found> {
        Ok(Found::from_scores(self.space(), &self.config.operations(), &self.scores()?))
    }

    /// Returns the search space.
    pub fn space(&self) -> SearchSpace {
        self.config.model.space
    }
}

fn shared(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(Tensor::shallow_clone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_has_its_own_noise() {
        let mut config = Config::default();
        (config.model.init_channels, config.model.layers) = (12, 3);
        let mut search = Search::new(&config, Timeline::new(&config, 10), 2..4, Device::Cpu);
        let seeds = |search: &Search| {
            [
                (Purpose::ThetaWeightStep, 0),
                (Purpose::ThetaWeightStep, 1),
                (Purpose::ThetaArchitectureStep, 0),
            ]
            .map(|(purpose, local)| search.draw(purpose, local).weights.noise_seed)
        };
        let first = seeds(&search);
        assert_eq!(first, seeds(&search));
        search.step += 1;
        let mut all = [first, seeds(&search)].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6, "{all:?}");
    }
}
