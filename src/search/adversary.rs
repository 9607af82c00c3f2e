//! The attack of SDARTS-ADV: moves mixing weights to where the loss of a batch is higher.
//!
//! Source: SDARTS (ICML 2020). The loss is that of the weight step's batches in evaluation mode, so the attack does not
//! update running statistics.

use super::shared;
use crate::comm::Communicator;
use crate::config::Attack;
use crate::error::Result;
use crate::method::perturbation::{ATTACK_STEPS, ascend};
use crate::net::bucket::sum_kind;
use crate::net::loss::cross_entropy;
use crate::net::mixing::MixingWeights;
use crate::net::ops::Mode;
use crate::net::supernet::Supernet;
use crate::process::phase::{Phase, begin};
use tch::Tensor;

/// An attack on the mixing weights of every local replica. A point is one table [E, O] per kind of cell.
pub struct Adversary<'a> {
    /// The network.
    pub net: &'a Supernet,
    /// Normalised images with labels, one batch per local replica.
    pub batches: &'a [(Tensor, Tensor)],
    /// The weights without perturbation, one [E, O] per table.
    pub p: &'a [Tensor],
    /// Largest change of an entry, before rows are normalised.
    pub epsilon: f64,
    /// The gradients to follow.
    pub attack: Attack,
    /// Seeds of `noise` operations, one per local replica: those of the pass that is attacked.
    pub noise_seeds: &'a [u64],
}

impl Adversary<'_> {
    /// Moves the point of each local replica from `starts`; returns `p` where the loss became smaller. Collective for a
    /// shared attack.
    pub fn attack(&self, starts: Vec<Vec<Tensor>>, comm: &dyn Communicator) -> Result<Vec<Vec<Tensor>>> {
        let plain: Vec<Vec<Tensor>> = self.batches.iter().map(|_| shared(self.p)).collect();
        let before = self.losses(&plain, comm)?;
        let mut points = starts;
        for _ in 0..ATTACK_STEPS {
            let grads = self.grads(&points, comm)?;
            points = self.ascend(&points, &grads);
        }
        let after = self.losses(&points, comm)?;
        let chosen = |(local, point): (usize, Vec<Tensor>)| -> Vec<Tensor> {
            // NaN counts as success, so that it is not hidden.
            let failed = before[local].gt_tensor(&after[local]);
            point.iter().zip(self.p).map(|(q, p)| p.where_self(&failed, q)).collect()
        };
        Ok(points.into_iter().enumerate().map(chosen).collect())
    }

    /// Returns the next point of each local replica, given the gradients at `points`.
    pub fn ascend(&self, points: &[Vec<Tensor>], grads: &[Vec<Tensor>]) -> Vec<Vec<Tensor>> {
        let next = |(point, grads): (&Vec<Tensor>, &Vec<Tensor>)| -> Vec<Tensor> {
            let tables = point.iter().zip(grads).zip(self.p);
            tables.map(|((q, grad), p)| ascend(q, grad, p, self.epsilon)).collect()
        };
        points.iter().zip(grads).map(next).collect()
    }

    /// Returns the loss that each local replica compares: that of its batch, or the mean of all for a shared attack.
    pub fn losses(&self, points: &[Vec<Tensor>], comm: &dyn Communicator) -> Result<Vec<Tensor>> {
        begin(Phase::Forward)?;
        let losses = self.batches.iter().zip(points).enumerate().map(|(local, ((images, labels), point))| {
            tch::no_grad(|| {
                let theta = self.weights(point, local);
                cross_entropy(&self.net.logits(images, &theta, Mode::Eval, local), labels)
            })
        });
        self.shared_mean(losses.map(|loss| vec![loss]).collect(), comm)
            .map(|losses| losses.into_iter().map(|mut loss| loss.remove(0)).collect())
    }

    /// Returns dL/dq that each local replica follows, one [E, O] per table: that of its batch, or the mean of all for a
    /// shared attack.
    pub fn grads(&self, points: &[Vec<Tensor>], comm: &dyn Communicator) -> Result<Vec<Vec<Tensor>>> {
        let mut grads = Vec::with_capacity(self.batches.len());
        for (local, ((images, labels), point)) in self.batches.iter().zip(points).enumerate() {
            begin(Phase::Forward)?;
            let theta = self.weights(point, local).leaves();
            let tape = self.net.forward_theta(images, &theta, Mode::Eval, local);
            let loss = cross_entropy(tape.logits(), labels);
            begin(Phase::Backward)?;
            grads.push(tape.backward(&loss)?);
        }
        self.shared_mean(grads, comm)
    }

    fn weights(&self, point: &[Tensor], local: usize) -> MixingWeights {
        MixingWeights { noise_seed: self.noise_seeds[local], ..MixingWeights::of(shared(point)) }
    }

    /// For a shared attack, replaces the tensors of every local replica by their mean over all replicas. Collective then.
    fn shared_mean(&self, of_locals: Vec<Vec<Tensor>>, comm: &dyn Communicator) -> Result<Vec<Vec<Tensor>>> {
        if self.attack == Attack::PerReplica {
            return Ok(of_locals);
        }
        let num_local = of_locals.len();
        let kind = of_locals[0][0].kind();
        let sum_kind = sum_kind(kind, of_locals[0][0].device());
        let means: Vec<Tensor> = (0..of_locals[0].len())
            .map(|at| {
                let terms = of_locals.iter().map(|tensors| tensors[at].to_kind(sum_kind));
                terms.reduce(|sum, term| sum + term).expect("a replica") / num_local as f64
            })
            .collect();
        means.iter().try_for_each(|mean| comm.start_mean(mean))?;
        begin(Phase::AllReduce)?;
        comm.finish()?;
        let means: Vec<Tensor> = means.iter().map(|mean| mean.to_kind(kind)).collect();
        Ok((0..num_local).map(|_| shared(&means)).collect())
    }
}
