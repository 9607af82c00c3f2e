//! Perturbed mixing weights for the weight step: SDARTS (ICML 2020).
//!
//! Shapes: all tables [E, O], E edges, O operations.

use rand::Rng;
use rand_distr::{Distribution, Uniform};
use tch::{Kind, Tensor};

/// Steps of the attack of SDARTS-ADV.
pub const ATTACK_STEPS: usize = 7;

/// Projects every row onto weights that sum to 1: clamps to [0, 1] and divides by the sum; a row of zeros becomes its
/// largest entry alone (the first of equal ones). Source: `clip` of the published code.
pub fn normalise(table: &Tensor) -> Tensor {
    let clamped = table.clamp(0.0, 1.0);
    let empty = clamped.sum_dim_intlist(-1, true, None::<Kind>).eq(0.0);
    let first = table.argmax(-1, true);
    let one_hot = table.zeros_like().scatter_value(-1, &first, 1.0);
    let rows = clamped.where_self(&empty.logical_not(), &one_hot);
    &rows / rows.sum_dim_intlist(-1, true, None::<Kind>)
}

/// Draws U(-1, 1) noise of `shape` in double precision on the host.
pub fn noise(shape: &[i64], random: &mut impl Rng) -> Tensor {
    let unit = Uniform::new(-1.0, 1.0).expect("a range");
    let count: i64 = shape.iter().product();
    let values: Vec<f64> = unit.sample_iter(random).take(count as usize).collect();
    Tensor::from_slice(&values).view(shape)
}

/// Returns the start of both variants: weights `p` plus `noise` (in -epsilon..epsilon), normalised.
pub fn start(p: &Tensor, noise: &Tensor) -> Tensor {
    normalise(&(p + noise))
}

/// Returns the next point of the attack: a step of 2 epsilon / 7 along the sign of `grad` = dL/dq that raises the loss,
/// kept within `epsilon` of `p`, then normalised.
pub fn ascend(q: &Tensor, grad: &Tensor, p: &Tensor, epsilon: f64) -> Tensor {
    let step = 2.0 * epsilon / ATTACK_STEPS as f64;
    let moved = q + grad.sign() * step;
    normalise(&(p + (moved - p).clamp(-epsilon, epsilon)))
}
