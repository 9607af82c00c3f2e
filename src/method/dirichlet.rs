//! Dirichlet distribution of the mixing weights: concentration, sample, gradient, KL, pruning.
//!
//! Shapes: E edges, O operations; `eta`, `beta`, `theta`, masks (0 or 1) are all [E, O]. Source: DrNAS (ICLR 2021),
//! beta = ELU(eta) + 1. Everything stays on eta's device; no value is read back.

use super::gamma::log_gamma;
use crate::space::Mask;
use rand::Rng;
use tch::{Kind, Tensor};

/// Returns beta = ELU(eta) + 1 > 0.
pub fn concentration(eta: &Tensor) -> Tensor {
    eta.elu() + 1.0
}

/// Returns d beta / d eta: 1 for eta > 0, otherwise exp(eta) = beta.
fn concentration_slope(eta: &Tensor) -> Tensor {
    eta.clamp_max(0.0).exp()
}

/// A sample, with what its gradient needs.
pub struct ThetaSample {
    /// The full row, before the mask.
    drawn: Tensor,
    beta: Tensor,
    /// The mixing weights: kept entries of a row sum to 1, pruned ones are 0.
    pub theta: Tensor,
}

/// Draws the mixing weights of every edge: draws the full row, multiplies it by the mask and divides by the sum. Local.
///
/// A row of Dirichlet(beta) consists of Gamma(beta, 1) variates divided by their sum. It is computed from their
/// logarithms, because variates of a small beta underflow to 0.
pub fn sample(eta: &Tensor, mask: &Tensor, random: &mut impl Rng) -> ThetaSample {
    let beta = concentration(eta);
    let log_gamma = log_gamma(&beta.to_kind(Kind::Double).clamp_min(1e-300), random);
    // Within (0, 1) as in libtorch, because the gradient takes the logarithm.
    let (least, most) = match eta.kind() {
        Kind::Double => (f64::MIN_POSITIVE, 1.0 - f64::EPSILON / 2.0),
        _ => (f64::from(f32::MIN_POSITIVE), 1.0 - f64::from(f32::EPSILON) / 2.0),
    };
    let drawn = log_gamma.softmax(-1, Kind::Double).clamp(least, most).to_kind(eta.kind());
    let kept = log_gamma.masked_fill(&mask.eq(0.0), f64::NEG_INFINITY);
    let theta = kept.softmax(-1, Kind::Double).to_kind(eta.kind());
    ThetaSample { drawn, beta, theta }
}

impl ThetaSample {
    /// Creates a sample from a given draw, whose rows sum to 1.
    pub fn from_drawn(drawn: Tensor, beta: Tensor, mask: &Tensor) -> ThetaSample {
        let kept = &drawn * mask;
        let theta = &kept / row_sum(&kept);
        ThetaSample { drawn, beta, theta }
    }

    /// Returns the pathwise gradient: dL/d eta from dL/d theta = g. Per edge, with s the full draw and S the sum of the
    /// kept entries:
    /// renormalisation  g' = mask * (g - sum(theta * g)) / S
    /// Dirichlet        dL/d beta = dirichlet_grad(s, beta, sum beta) * (g' - sum(s * g'))
    /// (`torch/distributions/dirichlet.py`), where sum(s * g') = 0 and mask / S = theta / s; then ELU'.
    pub fn grad_eta(&self, eta: &Tensor, grad_theta: &Tensor) -> Tensor {
        let total = row_sum(&self.beta).expand_as(&self.beta);
        // The derivative of a tiny entry is tiny too; their quotient is not.
        let relative = Tensor::internal_dirichlet_grad(&self.drawn, &self.beta, &total) / &self.drawn;
        let centred = grad_theta - row_sum(&(&self.theta * grad_theta));
        relative * &self.theta * centred * concentration_slope(eta)
    }
}

/// Returns the sums of the rows of `[E, O]`: [E, 1].
fn row_sum(table: &Tensor) -> Tensor {
    table.sum_dim_intlist(-1, true, None)
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
    let total = row_sum(&beta);
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
