//! Search: its state and the bilevel step.
//!
//! A run is defined over R logical replicas. The global batch is split over them; each draws its own theta (or all use
//! the same draw) and has its own batch statistics and random streams; gradients are averaged. A rank computes its
//! replicas one after another, so the result does not depend on the number of ranks.

mod architecture;
pub mod dirichlet;
pub mod gamma;
pub mod stage;
pub mod state;
pub mod timeline;
pub mod unrolled;

use crate::comm::Communicator;
use crate::config::{self, Config, GradientOrder, Regulariser};
use crate::data::{Loader, Upload};
use crate::error::Result;
use crate::net::loss::cross_entropy;
use crate::net::supernet::Supernet;
use crate::process::phase::{Phase, begin};
use crate::random::Purpose;
use crate::space::found::Found;
use crate::space::genotype::mean_weights;
use crate::space::{Mask, SearchSpace};
use crate::train::optimiser::{Adam, Sgd};
use crate::train::schedule::Schedule;
use crate::train::step;
use crate::train::tally::{StepOutcome, measure};
use dirichlet::ThetaSample;
use std::ops::Range;
use tch::{Device, Kind, Tensor};
use timeline::Timeline;

/// State of a search and what a step needs. Equal on all ranks except for the replicas.
pub struct Search {
    config: Config,
    schedule: Schedule,
    timeline: Timeline,
    /// The replicas that this rank computes.
    replicas: Range<usize>,
    net: Supernet,
    upload: Upload,
    /// [T, E, O]: one table per kind of cell.
    eta: Tensor,
    adam: Adam,
    sgd: Sgd,
    /// Steps done.
    step: u64,
    /// Index of the stage, from 0.
    stage: usize,
}

impl Search {
    /// Creates the initial state, with the same weights and eta on every rank. Local.
    pub fn new(config: &Config, timeline: Timeline, replicas: Range<usize>, device: Device) -> Search {
        let space = config.model.space;
        let first = config.search.stages[0];
        let (edges, operations) = (space.num_edges(), space.operations().len());
        let kind = config.precision.weights();
        let tables = space.tables().len();
        let masks = vec![Mask::full(edges, operations); tables];
        let mut net = stage::supernet(config, first.k, masks, replicas.len(), device);
        net.params.initialise(config.seed);
        let tables: Vec<Tensor> =
            (0..tables).map(|table| dirichlet::initial_eta(edges, operations, config.seed, table)).collect();
        let eta = Tensor::stack(&tables, 0).to_kind(kind).to_device(device);
        // The KL regulariser replaces weight decay.
        let weight_decay = match config.eta.regulariser {
            Regulariser::L2 => config.eta.weight_decay,
            Regulariser::Kl => 0.0,
        };
        Search {
            adam: Adam::new(&eta, config.eta.lr, config.eta.betas, weight_decay),
            sgd: Sgd { momentum: config.weights.momentum, weight_decay: config.weights.weight_decay },
            schedule: Schedule::of_search(config),
            config: config.clone(),
            timeline,
            replicas,
            net,
            upload: Upload::new(&config.data.mean, &config.data.std, device),
            eta,
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

    /// Returns eta, [T, E, O], for tests that modify it.
    pub fn eta_mut(&mut self) -> &mut Tensor {
        &mut self.eta
    }

    /// Takes one bilevel step: eta on a batch of the second data set (if due), then the weights on a batch of the
    /// first. Gradients are averaged over all replicas. Collective.
    pub fn bilevel_step(
        &mut self,
        weights: &mut Loader,
        architecture: &mut Loader,
        comm: &dyn Communicator,
    ) -> Result<StepOutcome> {
        let mut outcome = StepOutcome::default();
        let num_local = self.replicas.len();
        let mut taken = None;

        // Architecture: gradients of theta, propagated to eta, averaged; one step of Adam.
        if self.timeline.position(self.step).architecture {
            let sum = match self.config.search.order {
                GradientOrder::First => self.first_order(architecture, &mut outcome)?,
                GradientOrder::Second => {
                    // The virtual step uses the same batches as the real one.
                    let batches = self.local_batches(weights, &mut outcome)?;
                    let sum = self.second_order(&batches, architecture, comm, &mut outcome)?;
                    taken = Some(batches.into_iter());
                    sum
                }
            };
            let grad = sum / num_local as f64;
            comm.start_mean(&grad)?;
            begin(Phase::AllReduce)?;
            outcome.reduce_waits.push(comm.finish()?);
            begin(Phase::Optimiser)?;
            self.descend_eta(grad);
        }

        // Weights: each replica draws its own theta; a bucket is reduced while the segments before it are
        // differentiated.
        for local in 0..num_local {
            let (images, labels) = self.batch(&mut taken, weights, &mut outcome)?;
            let theta = mixing_weights(self.draw(Purpose::ThetaWeightStep, local));
            let tape = self.net.forward(&images, &theta, local);
            let loss = cross_entropy(tape.logits(), &labels);
            outcome.weights.push(measure(tape.logits(), &labels, &loss));
            step::backward(tape, &loss, &self.net.params.buckets, (local, num_local), comm)?;
        }
        let rates = (self.lr(), self.config.search.grad_clip);
        step::descend(&mut self.net.params.buckets, &self.sgd, rates, comm, &mut outcome)?;

        self.step += 1;
        outcome.data_wait_ms = weights.wait_ms() + architecture.wait_ms();
        Ok(outcome)
    }

    /// Returns the next batch for the weights: one already `taken` for the virtual step, or a new one.
    fn batch(
        &mut self,
        taken: &mut Option<std::vec::IntoIter<(Tensor, Tensor)>>,
        loader: &mut Loader,
        outcome: &mut StepOutcome,
    ) -> Result<(Tensor, Tensor)> {
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

    /// Draws the mixing weights of local replica `local` for this step, one sample per table.
    fn draw(&self, purpose: Purpose, local: usize) -> Vec<ThetaSample> {
        let replica = match self.config.search.theta {
            config::Theta::PerReplica => (self.replicas.start + local) as u64,
            config::Theta::Shared => 0,
        };
        (0..self.eta.size()[0])
            .map(|table| {
                let mut random =
                    dirichlet::theta_stream(self.config.seed, purpose, self.step, replica, table as u64);
                dirichlet::sample(&self.eta.get(table), self.net.masks().table(table as usize), &mut random)
            })
            .collect()
    }

    /// Returns the next batch on the device: normalised images, labels.
    fn prepare(&mut self, loader: &mut Loader, outcome: &mut StepOutcome) -> Result<(Tensor, Tensor)> {
        step::prepare(loader, &mut self.upload, outcome)
    }

    /// Copies eta to the host, `[T][E][O]`.
    pub fn eta_on_host(&self) -> Result<Vec<Vec<Vec<f64>>>> {
        let eta = self.eta.to_device(Device::Cpu).to_kind(Kind::Double);
        (0..eta.size()[0]).map(|table| Ok(Vec::<Vec<f64>>::try_from(eta.get(table))?)).collect()
    }

    /// Returns the mean mixing weights, which select the architecture, `[T][E][O]`: softmax of eta over the kept
    /// operations.
    pub fn mean_weights(&self) -> Result<Vec<Vec<Vec<f64>>>> {
        let eta = self.eta_on_host()?;
        Ok(eta.iter().zip(&self.net.shape().masks).map(|(eta, mask)| mean_weights(eta, mask)).collect())
    }

    /// Returns the currently selected architecture.
    pub fn found(&self) -> Result<Found> {
        Ok(Found::from_weights(self.space(), &self.mean_weights()?))
    }

    /// Returns the search space.
    pub fn space(&self) -> SearchSpace {
        self.config.model.space
    }
}

/// Returns the mixing weights of `samples`, one per table.
fn mixing_weights(samples: Vec<ThetaSample>) -> Vec<Tensor> {
    samples.into_iter().map(|sample| sample.theta).collect()
}
