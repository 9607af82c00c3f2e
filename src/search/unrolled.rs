//! Second-order architecture step: gradient of the architecture loss at the weights after one virtual SGD step,
//! differentiated through that step.
//!
//! Over R replicas, with L_r and V_r the losses of replica r on its batches of the first and second data set:
//!     w' = w - lr * (momentum * m + mean_r dL_r/dw + decay * w)
//!     d/d eta mean_r V_r(w'(eta), eta) = mean_r dV_r/d eta - lr * d/d eta <mean_r dL_r/dw, v>,   v = mean_r dV_r/dw'
//! The second term is computed by finite differences: the change of dL_r/d eta from w - s v to w + s v, divided by 2 s,
//! with s |v| = 0.01. All means are over all replicas, so there is one virtual network in the whole run, and the result
//! does not depend on the number of ranks.
//!
//! Source: DARTS (ICLR 2019), `architect.py` of the published DrNAS code. Departures: all three passes on the first
//! data set use the same draw of mixing weights (published: each pass draws anew, so that the difference is mostly
//! noise); momentum is included (published for NAS-Bench-201: eta is among the parameters, has no momentum, and the
//! resulting exception drops momentum for all); the virtual networks do not update running statistics.

use crate::comm::Communicator;
use crate::error::Result;
use crate::method::Sample;
use crate::net::bucket::Bucket;
use crate::net::loss::cross_entropy;
use crate::net::supernet::Supernet;
use crate::process::phase::{Phase, begin};
use crate::train::optimiser::Sgd;
use crate::train::step::{backward, start_mean};
use crate::train::tally::{StepOutcome, measure};
use tch::Tensor;

/// Length of the finite-difference step in the weights.
pub const LENGTH: f64 = 1e-2;

/// Inputs of one replica: normalised images with labels of both data sets, and mixing weights for each.
pub struct ReplicaInput {
    /// Batch of the virtual step.
    pub train: (Tensor, Tensor),
    /// Mixing weights on it.
    pub train_sample: Sample,
    /// Batch of the architecture loss.
    pub valid: (Tensor, Tensor),
    /// Mixing weights on it.
    pub valid_sample: Sample,
}

/// Starting point of the virtual step.
pub struct Unrolled<'a> {
    /// The network, with weights and momentum before the step. The weights are restored bit-identical.
    pub net: &'a Supernet,
    /// The architecture parameters, such as eta, `[T, E, O]`.
    pub values: &'a [Tensor],
    /// The optimiser of the weights.
    pub sgd: Sgd,
    /// Current learning rate of the weights.
    pub lr: f64,
    /// See [`LENGTH`].
    pub length: f64,
}

impl Unrolled<'_> {
    /// Adds the gradients of the architecture parameters over the local `replicas` to `sums`, one tensor per parameter.
    /// Collective.
    pub fn add_grads(
        &self,
        replicas: &[ReplicaInput],
        sums: &[Tensor],
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        let buckets = &self.net.params.buckets;
        buckets.iter().for_each(|bucket| bucket.clear());
        let kept: Vec<Tensor> = buckets.iter().map(|bucket| bucket.weights.copy()).collect();
        self.weight_grads(replicas, comm, outcome)?;
        for (bucket, kept) in buckets.iter().zip(&kept) {
            let (momentum, grads) = (&bucket.momentum * self.sgd.momentum, bucket.grads.to_kind(kept.kind()));
            set(bucket, &(kept - (momentum + grads + kept * self.sgd.weight_decay) * self.lr));
            bucket.clear();
        }
        self.add_at_virtual_weights(sums, replicas, comm, outcome)?;

        // The buckets contain v. Nothing is read back; if v is 0, the difference is 0 for any step.
        let norms: Vec<Tensor> = buckets.iter().map(|bucket| bucket.grads.norm()).collect();
        let step = Tensor::stack(&norms, 0).norm().clamp_min(f64::from(f32::MIN_POSITIVE)).reciprocal()
            * self.length;
        for sign in [1.0, -1.0] {
            for (bucket, kept) in buckets.iter().zip(&kept) {
                set(bucket, &(kept + (&bucket.grads * &step * sign).to_kind(kept.kind())));
            }
            self.add_difference(sums, replicas, &step, sign)?;
        }
        for (bucket, kept) in buckets.iter().zip(&kept) {
            set(bucket, kept);
            bucket.clear();
        }
        Ok(())
    }

    /// Computes the gradients of the weights on the first data set into the buckets, averaged over all replicas.
    fn weight_grads(
        &self,
        replicas: &[ReplicaInput],
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        for (local, replica) in replicas.iter().enumerate() {
            begin(Phase::Forward)?;
            let tape = self.net.forward(&replica.train.0, &replica.train_sample.weights, local);
            let loss = cross_entropy(tape.logits(), &replica.train.1);
            backward(tape, &loss, &self.net.params.buckets, (local, replicas.len()), comm)?;
        }
        begin(Phase::AllReduce)?;
        outcome.reduce_waits.push(comm.finish()?);
        Ok(())
    }

    /// Adds the first term to `sums` and computes v into the buckets.
    fn add_at_virtual_weights(
        &self,
        sums: &[Tensor],
        replicas: &[ReplicaInput],
        comm: &dyn Communicator,
        outcome: &mut StepOutcome,
    ) -> Result<()> {
        let params = &self.net.params;
        for (local, replica) in replicas.iter().enumerate() {
            begin(Phase::Forward)?;
            let theta = replica.valid_sample.weights.leaves();
            let logits = self.net.trial_logits(&replica.valid.0, &theta);
            let loss = cross_entropy(&logits, &replica.valid.1);
            outcome.architecture.push(measure(&logits, &replica.valid.1, &loss));
            let weights: Vec<&Tensor> =
                (0..params.buckets.len()).flat_map(|bucket| params.leaves(bucket)).collect();
            let wanted: Vec<&Tensor> = weights.iter().copied().chain(theta.tensors()).collect();
            begin(Phase::Backward)?;
            let mut grads = Tensor::f_run_backward(&[&loss], &wanted, false, false)?;
            let of_theta = grads.split_off(weights.len());
            replica.valid_sample.add_grads(self.values, &of_theta, 1.0, sums);
            for bucket in &params.buckets {
                let rest = grads.split_off(bucket.num_params());
                bucket.add(&std::mem::replace(&mut grads, rest));
                if local + 1 == replicas.len() {
                    start_mean(bucket, replicas.len(), comm)?;
                }
            }
        }
        begin(Phase::AllReduce)?;
        outcome.reduce_waits.push(comm.finish()?);
        Ok(())
    }

    /// Adds one side of the finite difference.
    fn add_difference(
        &self,
        sums: &[Tensor],
        replicas: &[ReplicaInput],
        step: &Tensor,
        sign: f64,
    ) -> Result<()> {
        for replica in replicas {
            begin(Phase::Forward)?;
            let theta = replica.train_sample.weights.leaves();
            let loss = cross_entropy(&self.net.trial_logits(&replica.train.0, &theta), &replica.train.1);
            begin(Phase::Backward)?;
            let grads = Tensor::f_run_backward(&[&loss], &theta.tensors(), false, false)?;
            let scaled: Vec<Tensor> = grads.iter().map(|grad| grad / step).collect();
            let factor = -self.lr * sign / 2.0;
            replica.train_sample.add_grads(self.values, &scaled, factor, sums);
        }
        Ok(())
    }
}

fn set(bucket: &Bucket, weights: &Tensor) {
    tch::no_grad(|| bucket.weights.shallow_clone().copy_(weights));
}
