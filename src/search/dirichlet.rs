//! Dirichlet distribution of the mixing weights: concentration, sample, gradient, KL, pruning.
//!
//! Shapes: E edges, O operations; `eta`, `beta`, `theta`, masks (0 or 1) are all [E, O]. Source: DrNAS (ICLR 2021),
//! beta = ELU(eta) + 1. Everything stays on eta's device; no value is read back.

use crate::random::{Purpose, seed_of, torch_seeded};
use crate::space::Mask;
use rand_distr::{Distribution, StandardNormal};
use tch::{Kind, Tensor};

/// Draws the initial eta, 1e-3 * N(0, 1), in double precision on the CPU; the same on every rank for one seed.
pub fn initial_eta(num_edges: usize, num_operations: usize, seed: u64, table: usize) -> Tensor {
    let mut random = crate::random::stream(seed, Purpose::Eta, &[table as u64]);
    let values: Vec<f64> = (0..num_edges * num_operations)
        .map(|_| {
            let normal: f64 = StandardNormal.sample(&mut random);
            1e-3 * normal
        })
        .collect();
    Tensor::from_slice(&values).view([num_edges as i64, num_operations as i64])
}

/// Returns beta = ELU(eta) + 1 > 0.
pub fn concentration(eta: &Tensor) -> Tensor {
    eta.elu() + 1.0
}

/// Returns d beta / d eta: 1 for eta > 0, otherwise exp(eta) = beta.
fn concentration_slope(eta: &Tensor) -> Tensor {
    eta.clamp_max(0.0).exp()
}

/// A sample as it was drawn, with what its gradient needs.
pub struct ThetaSample {
    /// The full row, before the mask.
    drawn: Tensor,
    beta: Tensor,
    mask: Tensor,
    /// The mixing weights: kept entries of a row sum to 1, pruned ones are 0.
    pub theta: Tensor,
}

/// Draws the mixing weights of every edge from the stream of `seed` (see [`theta_seed`]): the full row is drawn,
/// multiplied by the mask, divided by its sum. Local; every replica draws its own unless it is given another's seed.
pub fn sample(eta: &Tensor, mask: &Tensor, seed: u64) -> ThetaSample {
    let beta = concentration(eta);
    let drawn = torch_seeded(seed, || beta.internal_sample_dirichlet());
    ThetaSample::from_drawn(drawn, beta, mask)
}

/// The seed of one draw: `purpose` tells weight and architecture steps apart.
pub fn theta_seed(seed: u64, purpose: Purpose, step: u64, replica: u64, table: u64) -> u64 {
    seed_of(seed, purpose, &[step, replica, table])
}

impl ThetaSample {
    /// The sample that was drawn elsewhere: `drawn` rows sum to 1.
    pub fn from_drawn(drawn: Tensor, beta: Tensor, mask: &Tensor) -> ThetaSample {
        let kept = &drawn * mask;
        let theta = &kept / kept.sum_dim_intlist(-1, true, None);
        ThetaSample { drawn, beta, mask: mask.shallow_clone(), theta }
    }

    /// Pathwise gradient: dL/d eta from dL/d theta. Per edge, with s the full draw and S the sum of what is kept:
    /// renormalisation  g' = mask * (g - sum(theta * g)) / S
    /// Dirichlet        dL/d beta = dirichlet_grad(s, beta, sum beta) * (g' - sum(s * g'))
    /// (`torch/distributions/dirichlet.py`), then ELU'.
    pub fn grad_eta(&self, eta: &Tensor, grad_theta: &Tensor) -> Tensor {
        let row_sum = |x: &Tensor| x.sum_dim_intlist(-1, true, None);
        let kept_sum = row_sum(&(&self.drawn * &self.mask));
        let grad_drawn = &self.mask * (grad_theta - row_sum(&(&self.theta * grad_theta))) / kept_sum;
        let total = row_sum(&self.beta).expand_as(&self.beta);
        let pathwise = Tensor::internal_dirichlet_grad(&self.drawn, &self.beta, &total);
        pathwise * (&grad_drawn - row_sum(&(&self.drawn * &grad_drawn))) * concentration_slope(eta)
    }
}

/// Returns the sum over edges of KL(Dirichlet(beta) || Dirichlet(1)), a scalar:
/// ln G(b) - sum ln G(beta_o) - ln G(O) + sum (beta_o - 1)(psi(beta_o) - psi(b)), b = sum beta_o.
pub fn kl(eta: &Tensor) -> Tensor {
    let beta = concentration(eta);
    let total = beta.sum_dim_intlist(-1, false, None);
    let operations = Tensor::from(eta.size()[1] as f64).to_kind(eta.kind()).lgamma();
    let spread = ((&beta - 1.0) * (beta.digamma() - total.digamma().unsqueeze(-1))).sum(None::<Kind>);
    (total.lgamma() - operations).sum(None::<Kind>) - beta.lgamma().sum(None::<Kind>) + spread
}

/// Returns the gradient of [`kl`] with respect to eta: (beta - 1) psi'(beta) - (b - O) psi'(b), times ELU'.
pub fn kl_grad(eta: &Tensor) -> Tensor {
    let beta = concentration(eta);
    let total = beta.sum_dim_intlist(-1, true, None);
    let excess = (&total - eta.size()[1] as f64) * total.polygamma(1);
    ((&beta - 1.0) * beta.polygamma(1) - excess) * concentration_slope(eta)
}

/// Keeps the `keep` operations with the largest eta on every edge (among those still kept; the first of equal ones) and
/// sets eta of the others to 0, as published. `eta`: `[E][O]` on the host.
pub fn prune(eta: &mut [Vec<f64>], mask: &Mask, keep: usize) -> Mask {
    let mut pruned = mask.clone();
    for (edge, row) in eta.iter_mut().enumerate() {
        let mut order: Vec<usize> = (0..row.len()).filter(|&o| mask.keeps(edge, o)).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        order.truncate(keep);
        for (operation, value) in row.iter_mut().enumerate() {
            pruned.0[edge][operation] = order.contains(&operation);
            if !pruned.0[edge][operation] {
                *value = 0.0;
            }
        }
    }
    pruned
}

/// Returns the mean over edges of the entropy of the mean weights (softmax of eta over the kept operations), in nats:
/// ln O at the start, falling towards 0 as the search converges.
pub fn entropy(weights: &[Vec<f64>]) -> f64 {
    let edge = |row: &Vec<f64>| -> f64 { row.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum() };
    weights.iter().map(edge).sum::<f64>() / weights.len() as f64
}
