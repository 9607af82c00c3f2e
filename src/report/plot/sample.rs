//! Samples architectures from the distribution of an epoch.

use crate::config::Method;
use crate::nb201::quantile;
use crate::space::Mask;
use crate::space::nb201::Architecture;
use rand::Rng;
use rand_distr::{Distribution, Gamma, Gumbel, Open01};

/// Samples an architecture from the parameters `eta` (alpha in methods other than DrNAS), `[E][O]`, finite, with at least
/// one kept operation on every edge.
pub fn sample_architecture(
    method: Method,
    eta: &[Vec<f64>],
    mask: &Mask,
    random: &mut impl Rng,
) -> Architecture {
    match method {
        Method::Drnas => by_dirichlet(eta, mask, random),
        _ => by_softmax(eta, mask, random),
    }
}

/// Samples every operation with its probability, the softmax over the kept ones: the arg max of alpha + Gumbel noise.
fn by_softmax(alpha: &[Vec<f64>], mask: &Mask, random: &mut impl Rng) -> Architecture {
    let gumbel = Gumbel::new(0.0, 1.0).expect("a positive scale");
    Architecture(std::array::from_fn(|edge| {
        let drawn = alpha[edge].iter().enumerate().map(|(operation, alpha)| {
            let noise: f64 = gumbel.sample(random);
            (operation, alpha + noise)
        });
        let kept = drawn.filter(|&(operation, _)| mask.keeps(edge, operation));
        kept.max_by(|a, b| a.1.total_cmp(&b.1)).expect("a kept operation").0
    }))
}

/// Draws theta ~ Dirichlet(elu(eta) + 1) on every edge and takes the arg max over the kept
/// operations.
///
/// Theta is Gamma(beta) divided by its row sum; neither the sum nor pruned operations affect the arg max. Logarithms
/// are used because Gamma(0.001) mostly underflows to 0: ln Gamma(beta) = ln Gamma(beta + 1) + ln U / beta.
fn by_dirichlet(eta: &[Vec<f64>], mask: &Mask, random: &mut impl Rng) -> Architecture {
    Architecture(std::array::from_fn(|edge| {
        let mut best = (0, f64::NEG_INFINITY);
        for (operation, &eta) in eta[edge].iter().enumerate() {
            let beta = if eta > 0.0 { eta + 1.0 } else { eta.exp() };
            let above = Gamma::new(beta + 1.0, 1.0).expect("beta > 0 is finite").sample(random);
            let uniform: f64 = Open01.sample(random);
            let weight = above.ln() + uniform.ln() / beta.max(f64::MIN_POSITIVE);
            if mask.keeps(edge, operation) && (weight > best.1 || best.1 == f64::NEG_INFINITY) {
                best = (operation, weight);
            }
        }
        best.0
    }))
}

/// Five-number summary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Minimum.
    pub min: f64,
    /// First quartile.
    pub lower_quartile: f64,
    /// Median.
    pub median: f64,
    /// Third quartile.
    pub upper_quartile: f64,
    /// Maximum.
    pub max: f64,
}

impl Summary {
    /// Quartiles are interpolated linearly. `values`: not empty, no NaN.
    pub fn of(values: &[f64]) -> Summary {
        let at = |fraction| quantile(values, fraction);
        Summary {
            min: at(0.0),
            lower_quartile: at(0.25),
            median: at(0.5),
            upper_quartile: at(0.75),
            max: at(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, stream};

    /// Fraction of the samples in which the first operation of the first edge wins.
    fn win_rate(eta: [f64; 5], kept: [bool; 5]) -> f64 {
        let eta: Vec<Vec<f64>> = vec![eta.to_vec(); 6];
        let mask = Mask(vec![kept.to_vec(); 6]);
        let mut random = stream(1, Purpose::Trajectory, &[]);
        let wins = (0..20_000).filter(|_| by_dirichlet(&eta, &mask, &mut random).0[0] == 0).count();
        wins as f64 / 20_000.0
    }

    #[test]
    fn samples_follow_the_dirichlet() {
        let two = [true, true, false, false, false];
        // Four standard deviations of 20,000 samples are below 0.015.
        let near =
            |found: f64, expected: f64| assert!((found - expected).abs() < 0.015, "{found}, {expected}");
        near(win_rate([0.0; 5], [true; 5]), 0.2);
        near(win_rate([0.0; 5], two), 0.5);
        // Beta(2, 1): P(x > 1/2) = 1 - 1/4. Beta(3, 1): 1 - 1/8.
        near(win_rate([1.0, 0.0, 9.0, 9.0, 9.0], two), 0.75);
        near(win_rate([2.0, 0.0, 9.0, 9.0, 9.0], two), 0.875);
        // beta = 0.001 each, where Gamma underflows to 0 for both: still even.
        near(win_rate([0.001f64.ln(); 5], two), 0.5);
        // Two small beta a, b: the first wins in a / (a + b) of the samples.
        near(win_rate([0.003f64.ln(), 0.001f64.ln(), 0.0, 0.0, 0.0], two), 0.75);
        near(win_rate([-2000.0, 0.0, 0.0, 0.0, 0.0], two), 0.0);
        near(win_rate([-2000.0; 5], [true, false, false, false, false]), 1.0);
    }

    #[test]
    fn pruned_operations_are_never_sampled() {
        let mask = Mask(vec![vec![false, true, false, true, false]; 6]);
        let mut random = stream(1, Purpose::Trajectory, &[]);
        for _ in 0..200 {
            for method in [Method::Drnas, Method::Snas] {
                let Architecture(operations) =
                    sample_architecture(method, &vec![vec![-900.0; 5]; 6], &mask, &mut random);
                assert!(operations.iter().all(|operation| [1, 3].contains(operation)), "{operations:?}");
            }
        }
    }

    #[test]
    fn samples_of_a_softmax_have_its_probabilities() {
        let alpha = vec![vec![3f64.ln(), 7.0, 0.0, 0.0, 9.0]; 6];
        let mask = Mask(vec![vec![true, false, true, true, false]; 6]);
        let mut random = stream(1, Purpose::Trajectory, &[]);
        let wins = (0..20_000).filter(|_| by_softmax(&alpha, &mask, &mut random).0[0] == 0).count();
        assert!((wins as f64 / 20_000.0 - 0.6).abs() < 0.015, "{wins}");
    }

    #[test]
    fn quartiles_match_a_slow_implementation() {
        // Walks the piecewise linear curve through (i / (n - 1), i-th smallest).
        let slow = |values: &[f64], fraction: f64| {
            let mut left: Vec<f64> = values.to_vec();
            let mut sorted = Vec::new();
            while !left.is_empty() {
                let least = (0..left.len()).reduce(|a, b| if left[b] < left[a] { b } else { a }).unwrap();
                sorted.push(left.remove(least));
            }
            let step = 1.0 / (sorted.len() - 1) as f64;
            let mut at = 0;
            while at + 2 < sorted.len() && (at + 1) as f64 * step < fraction {
                at += 1;
            }
            sorted[at] + (sorted[at + 1] - sorted[at]) * (fraction - at as f64 * step) / step
        };
        let mut random = stream(2, Purpose::Trajectory, &[]);
        for length in [2, 3, 4, 5, 99, 100] {
            let values: Vec<f64> = (0..length).map(|_| Open01.sample(&mut random)).collect();
            let found = Summary::of(&values);
            let values_found =
                [found.min, found.lower_quartile, found.median, found.upper_quartile, found.max];
            for (fraction, found) in [0.0, 0.25, 0.5, 0.75, 1.0].into_iter().zip(values_found) {
                assert!((slow(&values, fraction) - found).abs() < 1e-12, "{fraction} of {length}");
            }
        }
        let one = Summary::of(&[7.0]);
        assert_eq!((one.min, one.median, one.max), (7.0, 7.0, 7.0));
    }
}
