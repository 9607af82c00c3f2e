//! Architecture part of a bilevel step: the first- and second-order gradient of the architecture parameters.

use super::unrolled::{self, ReplicaInput, Unrolled};
use super::{Batch, Search};
use crate::comm::Communicator;
use crate::data::Loader;
use crate::error::Result;
use crate::net::loss::cross_entropy;
use crate::net::ops::Mode;
use crate::process::phase::{Phase, begin};
use crate::random::Purpose;
use crate::train::tally::{StepOutcome, measure};
use tch::Tensor;

impl Search {
    /// Computes the first-order gradients of the architecture parameters, summed over the local replicas: gradients of the
    /// mixing weights, propagated to the parameters. One tensor per parameter. Local.
    pub(super) fn first_order(
        &mut self,
        loader: &mut Loader,
        outcome: &mut StepOutcome,
    ) -> Result<Vec<Tensor>> {
        let sums = self.architecture.zero_sums();
        for local in 0..self.replicas.len() {
            let (images, labels) = self.prepare(loader, outcome)?;
            let sample = self.draw(Purpose::ThetaArchitectureStep, local);
            let theta = sample.weights.leaves();
            let tape = self.net.forward_theta(&images, &theta, Mode::Train, local);
            let loss = cross_entropy(tape.logits(), &labels);
            outcome.architecture.push(measure(tape.logits(), &labels, &loss));
            begin(Phase::Backward)?;
            let grads = tape.backward(&loss)?;
            sample.add_grads(self.architecture.values(), &grads, 1.0, &sums);
        }
        Ok(sums)
    }

    /// Computes the second-order gradients of the architecture parameters, summed over the local replicas, through a
    /// virtual weight step on `batches`. One tensor per parameter. Collective.
    pub(super) fn second_order(
        &mut self,
        batches: &[Batch],
        loader: &mut Loader,
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<Vec<Tensor>> {
        let mut replicas = Vec::with_capacity(batches.len());
        for (local, (images, labels)) in batches.iter().enumerate() {
            replicas.push(ReplicaInput {
                train: (images.shallow_clone(), labels.shallow_clone()),
                train_sample: self.draw(Purpose::ThetaVirtualStep, local),
                valid: self.prepare(loader, outcome)?,
                valid_sample: self.draw(Purpose::ThetaArchitectureStep, local),
            });
        }
        let sums = self.architecture.zero_sums();
        let (net, values) = (&self.net, self.architecture.values());
        let step = Unrolled { net, values, sgd: self.sgd, lr: self.lr(), length: unrolled::LENGTH };
        step.add_grads(&replicas, &sums, comm, outcome)?;
        Ok(sums)
    }

    /// Takes a batch for every local replica from `loader`.
    pub(super) fn local_batches(
        &mut self,
        loader: &mut Loader,
        outcome: &mut StepOutcome,
    ) -> Result<Vec<Batch>> {
        (0..self.replicas.len()).map(|_| self.prepare(loader, outcome)).collect()
    }
}
