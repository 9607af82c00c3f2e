//! Gamma variates, computed on the device of their concentrations from random numbers drawn on the host.
//!
//! The random numbers do not depend on the concentrations, so nothing is read back from the device, and every device
//! computes the same variates up to rounding.

use crate::process::torch;
use rand::Rng;
use rand_distr::{Distribution, Open01, StandardNormal};
use tch::{Kind, Tensor};

/// Candidates per variate. Each is accepted with a probability of at least 0.95, except the last, which is always
/// accepted; fewer than one variate in 10^9 uses it.
const CANDIDATES: usize = 8;

/// Returns the logarithms of independent Gamma(beta, 1) variates. `beta`: any shape, Double, > 0; the result has the
/// same shape and kind. The number of draws from `random` depends only on the shape.
///
/// Logarithms, because a Gamma(0.001, 1) variate usually underflows to 0:
/// ln Gamma(beta) = ln Gamma(beta + 1) + ln U / beta.
/// Gamma(beta + 1) is drawn by rejection: it is d v, with d = beta + 2/3, v = (1 + x / sqrt(9 d))^3 and x standard
/// normal, accepted if ln u < x^2 / 2 + d (1 - v + ln v), with u and U uniform in (0, 1). Source: Marsaglia and Tsang, A
/// simple method for generating gamma variables, 2000.
pub fn log_gamma(beta: &Tensor, random: &mut impl Rng) -> Tensor {
    let count = beta.numel();
    let mut numbers: Vec<f64> = Vec::with_capacity((2 * CANDIDATES + 1) * count);
    let tried = (CANDIDATES - 1) * count;
    numbers.extend(Distribution::<f64>::sample_iter(StandardNormal, &mut *random).take(tried));
    // The last candidate, x = 0 and u = 0, is always accepted.
    numbers.resize(CANDIDATES * count, 0.0);
    numbers.extend(Distribution::<f64>::sample_iter(Open01, &mut *random).take(tried).map(f64::ln));
    numbers.resize(2 * CANDIDATES * count, f64::NEG_INFINITY);
    numbers.extend(Distribution::<f64>::sample_iter(Open01, random).take(count).map(f64::ln));

    let mut shape = beta.size();
    shape.insert(0, -1);
    let numbers = torch::upload(&Tensor::from_slice(&numbers), beta.device()).view(&shape[..]);
    let rows = CANDIDATES as i64;
    let (x, log_u, log_uniform) =
        (numbers.narrow(0, 0, rows), numbers.narrow(0, rows, rows), numbers.get(2 * rows));

    let d = beta + 2.0 / 3.0;
    let root = &x * (&d * 9.0).rsqrt() + 1.0;
    // NaN if the root is negative; comparisons with NaN are false, so the candidate is rejected.
    let log_v = root.log() * 3.0;
    let accepted = log_u.lt_tensor(&(x.square() * 0.5 + &d * (1.0 - log_v.exp() + &log_v)));
    let first = accepted.logical_and(&accepted.cumsum(0, Kind::Int64).eq(1));
    let log_v = log_v.masked_fill(&first.logical_not(), 0.0).sum_dim_intlist(0, false, None);
    d.log() + log_v + log_uniform / beta
}
