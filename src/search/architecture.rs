//! Architecture part of a bilevel step: the first- and second-order gradient of eta, and the step of Adam.

use super::Search;
use super::dirichlet;
use super::unrolled::{self, ReplicaInput, Unrolled};
use crate::comm::Communicator;
use crate::config::Regulariser;
use crate::data::Loader;
use crate::error::Result;
use crate::net::bucket::sum_kind;
use crate::net::loss::cross_entropy;
use crate::process::phase::{Phase, begin};
use crate::random::Purpose;
use crate::train::optimiser::clip_coefficient;
use crate::train::tally::{StepOutcome, measure};
use tch::Tensor;

impl Search {
    /// Computes the first-order gradient of eta, summed over the local replicas: gradients of theta, propagated to eta
    /// by the pathwise derivative of the sample. Local.
    pub(super) fn first_order(&mut self, loader: &mut Loader, outcome: &mut StepOutcome) -> Result<Tensor> {
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

    /// Computes the second-order gradient of eta, summed over the local replicas, through a virtual weight step on
    /// `batches`. Collective.
    pub(super) fn second_order(
        &mut self,
        batches: &[(Tensor, Tensor)],
        loader: &mut Loader,
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<Tensor> {
        let mut replicas = Vec::with_capacity(batches.len());
        for (local, (images, labels)) in batches.iter().enumerate() {
            replicas.push(ReplicaInput {
                train: (images.shallow_clone(), labels.shallow_clone()),
                train_samples: self.draw(Purpose::ThetaVirtualStep, local),
                valid: self.prepare(loader, outcome)?,
                valid_samples: self.draw(Purpose::ThetaArchitectureStep, local),
            });
        }
        let (net, eta) = (&self.net, &self.eta);
        let step = Unrolled { net, eta, sgd: self.sgd, lr: self.lr(), length: unrolled::LENGTH };
        step.grad(&replicas, comm, outcome)
    }

    /// Takes a batch for every local replica from `loader`.
    pub(super) fn local_batches(
        &mut self,
        loader: &mut Loader,
        outcome: &mut StepOutcome,
    ) -> Result<Vec<(Tensor, Tensor)>> {
        (0..self.replicas.len()).map(|_| self.prepare(loader, outcome)).collect()
    }

    /// Adds the KL regulariser, clips the averaged gradient and takes a step of Adam.
    pub(super) fn descend_eta(&mut self, mut grad: Tensor) {
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
    }
}
