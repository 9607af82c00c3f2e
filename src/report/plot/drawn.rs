//! Architectures drawn from the Dirichlet of an epoch, and where their accuracies lie.

use crate::nb201::quantile;
use crate::space::Mask;
use crate::space::nb201::Architecture;
use rand::Rng;
use rand_distr::{Distribution, Gamma, Open01};

/// The architecture of one draw: theta ~ Dirichlet(elu(eta) + 1) on every edge, its arg max over the kept operations.
/// `eta`: `[E][O]`, finite, a kept operation on every edge.
///
/// Theta is Gamma(beta) divided by the row's sum, which the arg max does not feel; nor does it feel the pruned ones'
/// share. Logarithms, because Gamma(0.001) is mostly 0 in floating point: ln Gamma(beta) = ln Gamma(beta + 1) + ln U / beta.
pub fn draw(eta: &[Vec<f64>], mask: &Mask, random: &mut impl Rng) -> Architecture {
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

/// Where values lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The least.
    pub min: f64,
    /// A quarter is below.
    pub lower_quartile: f64,
    /// Half are below.
    pub median: f64,
    /// Three quarters are below.
    pub upper_quartile: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Quartiles are linear between neighbours. `values`: not empty, no NaN.
    pub fn of(values: &[f64]) -> Summary {
        let part = |part| quantile(values, part);
        Summary {
            min: part(0.0),
            lower_quartile: part(0.25),
            median: part(0.5),
            upper_quartile: part(0.75),
            max: part(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, stream};

    /// The part of the draws in which the first operation of the first edge wins.
    fn share(eta: [f64; 5], kept: [bool; 5]) -> f64 {
        let eta: Vec<Vec<f64>> = vec![eta.to_vec(); 6];
        let mask = Mask(vec![kept.to_vec(); 6]);
        let mut random = stream(1, Purpose::Trajectory, &[]);
        let wins = (0..20_000).filter(|_| draw(&eta, &mask, &mut random).0[0] == 0).count();
        wins as f64 / 20_000.0
    }

    #[test]
    fn draws_follow_the_dirichlet() {
        let two = [true, true, false, false, false];
        // Four standard deviations of 20,000 draws are below 0.015.
        let near =
            |found: f64, expected: f64| assert!((found - expected).abs() < 0.015, "{found}, {expected}");
        near(share([0.0; 5], [true; 5]), 0.2);
        near(share([0.0; 5], two), 0.5);
        // Beta(2, 1): P(x > 1/2) = 1 - 1/4. Beta(3, 1): 1 - 1/8.
        near(share([1.0, 0.0, 9.0, 9.0, 9.0], two), 0.75);
        near(share([2.0, 0.0, 9.0, 9.0, 9.0], two), 0.875);
        // beta = 0.001 each, where Gamma itself would be 0 for both: still even.
        near(share([0.001f64.ln(); 5], two), 0.5);
        // Two small beta a, b: the first wins in a / (a + b) of the draws.
        near(share([0.003f64.ln(), 0.001f64.ln(), 0.0, 0.0, 0.0], two), 0.75);
        near(share([-2000.0, 0.0, 0.0, 0.0, 0.0], two), 0.0);
        near(share([-2000.0; 5], [true, false, false, false, false]), 1.0);
    }

    #[test]
    fn pruned_operations_are_never_drawn() {
        let mask = Mask(vec![vec![false, true, false, true, false]; 6]);
        let mut random = stream(1, Purpose::Trajectory, &[]);
        for _ in 0..200 {
            let Architecture(operations) = draw(&vec![vec![-900.0; 5]; 6], &mask, &mut random);
            assert!(operations.iter().all(|operation| [1, 3].contains(operation)), "{operations:?}");
        }
    }

    #[test]
    fn quartiles_are_those_of_the_definition() {
        // The slow version: the piecewise linear curve through (i / (n - 1), i-th smallest), walked.
        let slow = |values: &[f64], part: f64| {
            let mut left: Vec<f64> = values.to_vec();
            let mut sorted = Vec::new();
            while !left.is_empty() {
                let least = (0..left.len()).reduce(|a, b| if left[b] < left[a] { b } else { a }).unwrap();
                sorted.push(left.remove(least));
            }
            let step = 1.0 / (sorted.len() - 1) as f64;
            let mut at = 0;
            while at + 2 < sorted.len() && (at + 1) as f64 * step < part {
                at += 1;
            }
            sorted[at] + (sorted[at + 1] - sorted[at]) * (part - at as f64 * step) / step
        };
        let mut random = stream(2, Purpose::Trajectory, &[]);
        for length in [2, 3, 4, 5, 99, 100] {
            let values: Vec<f64> = (0..length).map(|_| Open01.sample(&mut random)).collect();
            let found = Summary::of(&values);
            let parts = [found.min, found.lower_quartile, found.median, found.upper_quartile, found.max];
            for (part, found) in [0.0, 0.25, 0.5, 0.75, 1.0].into_iter().zip(parts) {
                assert!((slow(&values, part) - found).abs() < 1e-12, "{part} of {length}");
            }
        }
        let one = Summary::of(&[7.0]);
        assert_eq!((one.min, one.median, one.max), (7.0, 7.0, 7.0));
    }
}
