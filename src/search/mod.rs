//! The search: its state, and one bilevel step.
//!
//! A run is defined over R logical replicas. The global batch is split over them; each draws its own theta (or all share
//! one draw), has its own batch statistics and its own random streams; gradients are averaged. A rank computes its share
//! of the replicas one after another, so the result does not depend on the number of ranks.

pub mod dirichlet;
pub mod stage;
pub mod state;
pub mod timeline;
pub mod unrolled;

use crate::comm::Communicator;
use crate::config::{self, Config, GradientOrder, Regulariser};
use crate::data::{Loader, Upload};
use crate::error::Result;
use crate::net::bucket::sum_kind;
use crate::net::loss::cross_entropy;
use crate::net::placement::Placement;
use crate::net::supernet::{Supernet, SupernetShape};
use crate::process::phase::{Phase, begin};
use crate::random::Purpose;
use crate::space::found::Found;
use crate::space::genotype::mean_weights;
use crate::space::{Mask, SearchSpace};
use crate::train::optimiser::{Adam, Sgd, clip_coefficient};
use crate::train::schedule::Schedule;
use crate::train::step;
use crate::train::tally::{StepOutcome, measure, timed};
use dirichlet::ThetaSample;
use std::ops::Range;
use tch::{Device, Kind, Tensor};
use timeline::Timeline;
use unrolled::{Share, Unrolled};

/// Everything that a step changes, and what it is done with. The same on all ranks but for `replicas`.
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
    /// Number of the stage, from 0.
    stage: usize,
}

impl Search {
    /// The beginning of a run: the same weights and eta on every rank. Local.
    pub fn new(config: &Config, timeline: Timeline, replicas: Range<usize>, device: Device) -> Search {
        let space = config.model.space;
        let first = config.search.stages[0];
        let (edges, operations) = (space.num_edges(), space.operations().len());
        let kind = config.precision.weights();
        let tables = space.tables().len();
        let masks = vec![Mask::full(edges, operations); tables];
        let mut net = supernet(config, first.k, masks, replicas.len(), device);
        net.params.initialise(config.seed);
        let tables: Vec<Tensor> =
            (0..tables).map(|table| dirichlet::initial_eta(edges, operations, config.seed, table)).collect();
        let eta = Tensor::stack(&tables, 0).to_kind(kind).to_device(device);
        // KL takes the place of the weight decay.
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

    /// Number of the stage, from 0.
    pub fn stage(&self) -> usize {
        self.stage
    }

    /// The network.
    pub fn net(&self) -> &Supernet {
        &self.net
    }

    /// eta, [T, E, O]. For tests that disturb it.
    pub fn eta_mut(&mut self) -> &mut Tensor {
        &mut self.eta
    }

    /// One bilevel step: eta on a batch of the second set (when its time has come), then the weights on a batch of the
    /// first. Collective; gradients are averaged over all replicas.
    pub fn bilevel_step(
        &mut self,
        weights: &mut Loader,
        architecture: &mut Loader,
        comm: &dyn Communicator,
    ) -> Result<StepOutcome> {
        let mut outcome = StepOutcome::default();
        let mut batches = None;
        if self.timeline.moment(self.step).architecture {
            let grad = match self.config.search.order {
                GradientOrder::First => self.first_order(architecture, &mut outcome)?,
                GradientOrder::Second => {
                    // The virtual step sees the batch that the real one sees.
                    let batches = batches.insert(self.local_batches(weights, &mut outcome)?);
                    self.second_order(batches, architecture, comm, &mut outcome)?
                }
            };
            self.architecture_step(grad, comm, &mut outcome)?;
        }
        self.weight_step(batches, weights, comm, &mut outcome)?;
        self.step += 1;
        outcome.data_wait_ms = weights.wait_ms() + architecture.wait_ms();
        Ok(outcome)
    }

    /// Gradients of theta alone, carried to eta along the sample's path: their sum over the local replicas.
    fn first_order(&mut self, loader: &mut Loader, outcome: &mut StepOutcome) -> Result<Tensor> {
        let grad = self.eta.to_kind(sum_kind(self.eta.kind(), self.eta.device())).zeros_like();
        for local in 0..self.replicas.len() {
            let (images, labels) = self.prepare(loader, outcome)?;
            let samples = self.draw(Purpose::ThetaArchitectureStep, local);
            let theta: Vec<Tensor> =
                samples.iter().map(|sample| sample.theta.detach().set_requires_grad(true)).collect();
            let tape = self.net.forward_theta(&images, &theta, local);
            let loss = cross_entropy(tape.logits(), &labels);
            outcome.architecture.push(measure(tape.logits(), &labels, &loss));
            begin(Phase::Backward)?;
            let grads = tape.backward(&loss)?;
            for (table, (sample, grad_theta)) in samples.iter().zip(&grads).enumerate() {
                let table = table as i64;
                let _ = grad.get(table).g_add_(&sample.grad_eta(&self.eta.get(table), grad_theta));
            }
        }
        Ok(grad)
    }

    /// The same through a virtual weight step on `batches`.
    fn second_order(
        &mut self,
        batches: &[(Tensor, Tensor)],
        loader: &mut Loader,
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<Tensor> {
        let mut shares = Vec::with_capacity(batches.len());
        for (local, (images, labels)) in batches.iter().enumerate() {
            shares.push(Share {
                train: (images.shallow_clone(), labels.shallow_clone()),
                train_samples: self.draw(Purpose::ThetaVirtualStep, local),
                valid: self.prepare(loader, outcome)?,
                valid_samples: self.draw(Purpose::ThetaArchitectureStep, local),
            });
        }
        let (net, eta) = (&self.net, &self.eta);
        let step = Unrolled { net, eta, sgd: self.sgd, lr: self.lr(), length: unrolled::LENGTH };
        step.grad(&shares, comm, outcome)
    }

    /// Averages the gradient of eta, pulls eta towards the uniform Dirichlet, takes one step of Adam.
    fn architecture_step(
        &mut self,
        sum: Tensor,
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        let mut grad = sum / self.replicas.len() as f64;
        comm.start_mean(&grad)?;
        begin(Phase::AllReduce)?;
        timed(&mut outcome.reduce_wait_ms, || comm.finish())?;
        begin(Phase::Optimiser)?;
        if self.config.eta.regulariser == Regulariser::Kl {
            for table in 0..grad.size()[0] {
                let pull = dirichlet::kl_grad(&self.eta.get(table)) * self.config.eta.kl_scale;
                let _ = grad.get(table).g_add_(&pull);
            }
        }
        let coefficient = clip_coefficient(std::iter::once(&grad), self.config.eta.grad_clip);
        let _ = grad.g_mul_(&coefficient);
        let grad = grad.to_kind(self.eta.kind());
        self.adam.step(&mut self.eta, &grad);
        Ok(())
    }

    /// `batches`: the local ones, if they have been taken already.
    fn weight_step(
        &mut self,
        batches: Option<Vec<(Tensor, Tensor)>>,
        loader: &mut Loader,
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        let mut batches = batches.map(Vec::into_iter);
        for local in 0..self.replicas.len() {
            let (images, labels) = match &mut batches {
                Some(batches) => {
                    begin(Phase::Forward)?;
                    batches.next().expect("a batch per local replica")
                }
                None => self.prepare(loader, outcome)?,
            };
            let theta: Vec<Tensor> =
                self.draw(Purpose::ThetaWeightStep, local).into_iter().map(|sample| sample.theta).collect();
            let tape = self.net.forward(&images, &theta, local);
            let loss = cross_entropy(tape.logits(), &labels);
            outcome.weights.push(measure(tape.logits(), &labels, &loss));
            let turn = (local, self.replicas.len());
            step::backward(tape, &loss, &self.net.params.buckets, turn, comm)?;
        }
        let lr = self.lr();
        let (buckets, grad_clip) = (&mut self.net.params.buckets, self.config.search.grad_clip);
        step::descend(buckets, &self.sgd, (lr, grad_clip), comm, outcome)
    }

    /// The batch of every local replica, taken from `loader`.
    fn local_batches(
        &mut self,
        loader: &mut Loader,
        outcome: &mut StepOutcome,
    ) -> Result<Vec<(Tensor, Tensor)>> {
        (0..self.replicas.len()).map(|_| self.prepare(loader, outcome)).collect()
    }

    /// Learning rate of the weights in the next step.
    fn lr(&self) -> f64 {
        self.schedule.lr(self.timeline.moment(self.step).epoch)
    }

    /// The mixing weights of local replica `local` for this step, one sample per table.
    fn draw(&self, purpose: Purpose, local: usize) -> Vec<ThetaSample> {
        let replica = match self.config.search.theta {
            config::Theta::PerReplica => (self.replicas.start + local) as u64,
            config::Theta::Shared => 0,
        };
        (0..self.eta.size()[0])
            .map(|table| {
                let seed = dirichlet::theta_seed(self.config.seed, purpose, self.step, replica, table as u64);
                dirichlet::sample(&self.eta.get(table), self.net.masks().table(table as usize), seed)
            })
            .collect()
    }

    /// The next batch on the device: normalised images, labels.
    fn prepare(&mut self, loader: &mut Loader, outcome: &mut StepOutcome) -> Result<(Tensor, Tensor)> {
        step::prepare(loader, &mut self.upload, outcome)
    }

    /// Goes to the next stage: prune, widen, carry the optimisers over. Local; the same on all ranks.
    pub fn advance(&mut self) -> Result<()> {
        self.stage += 1;
        let next = self.config.search.stages[self.stage];
        let mut eta = self.eta_on_host()?;
        let masks = stage::pruned(&mut eta, &self.net.shape().masks, next.ops_kept);
        let tables: Vec<Tensor> = eta
            .iter()
            .map(|table| {
                Tensor::stack(&table.iter().map(|row| Tensor::from_slice(row)).collect::<Vec<_>>(), 0)
            })
            .collect();
        self.eta.copy_(&Tensor::stack(&tables, 0));
        self.net = stage::next_network(&self.net, masks, next.k, self.config.seed, self.stage as u64)?;
        Ok(())
    }

    /// eta as numbers, `[T][E][O]`.
    pub fn eta_on_host(&self) -> Result<Vec<Vec<Vec<f64>>>> {
        let eta = self.eta.to_device(Device::Cpu).to_kind(Kind::Double);
        (0..eta.size()[0]).map(|table| Ok(Vec::<Vec<f64>>::try_from(eta.get(table))?)).collect()
    }

    /// The weights that choose the architecture, `[T][E][O]`: softmax of eta over the kept operations.
    pub fn mean_weights(&self) -> Result<Vec<Vec<Vec<f64>>>> {
        let eta = self.eta_on_host()?;
        Ok(eta.iter().zip(&self.net.shape().masks).map(|(eta, mask)| mean_weights(eta, mask)).collect())
    }

    /// The architecture chosen now.
    pub fn found(&self) -> Result<Found> {
        Ok(Found::from_weights(self.space(), &self.mean_weights()?))
    }

    /// The space that is searched.
    pub fn space(&self) -> SearchSpace {
        self.config.model.space
    }
}

/// The supernet of one stage.
fn supernet(config: &Config, k: i64, masks: Vec<Mask>, replicas: usize, device: Device) -> Supernet {
    let shape = SupernetShape {
        space: config.model.space,
        init_channels: config.model.init_channels,
        layers: config.model.layers as usize,
        num_classes: config.model.num_classes,
        k,
        masks,
    };
    Supernet::new(shape, Placement::of(config, device, replicas))
}
