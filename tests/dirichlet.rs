//! Statistical tests of the Dirichlet draws: moments and marginals, for concentrations from 1e-3 to 1e3, in full and
//! pruned rows; and of the initial eta.
//!
//! All seeds are fixed, so the tests are deterministic. The bounds are `SIGMAS` standard errors of the distribution.
//!
//! Shapes: D draws, O operations.

use drnas_dist::method::dirichlet::{concentration, sample};
use drnas_dist::method::parameters::initial;
use drnas_dist::random::{Purpose, stream};
use rand_distr::{Distribution, Open01, StandardNormal};
use tch::{Device, Kind, Tensor};

const SIGMAS: f64 = 5.0;
const SEEDS: u64 = 100;
const ROWS_PER_SEED: i64 = 1000;

/// Rows of concentrations: all small, all large, one large among small ones, one of each magnitude.
const CONCENTRATIONS: [&[f64]; 11] = [
    &[1e-3; 7],
    &[1e-3; 5],
    &[1e-2; 7],
    &[0.1; 5],
    &[1.0; 7],
    &[30.0; 7],
    &[1e3; 7],
    &[1e-3, 1e-3, 1e3],
    &[0.3, 0.999, 1.0, 1.001, 2.5],
    &[1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3],
    &[0.2, 0.4, 1.7],
];

/// The eta with this concentration, by the inverse of ELU + 1.
fn eta_of(beta: &[f64]) -> Tensor {
    let eta: Vec<f64> = beta.iter().map(|&beta| if beta < 1.0 { beta.ln() } else { beta - 1.0 }).collect();
    Tensor::from_slice(&eta)
}

/// Draws theta [D, O] as a search does, with a new seed for each step. All rows share `eta` and `mask`, both [O].
fn draws(eta: &Tensor, mask: &Tensor) -> Tensor {
    tch::set_num_threads(1);
    let rows = |row: &Tensor| row.unsqueeze(0).repeat([ROWS_PER_SEED, 1]);
    let (eta, mask) = (rows(eta), rows(mask));
    let random = |step| stream(5, Purpose::ThetaWeightStep, &[step, 0, 0]);
    let of_step = |step| sample(&eta, &mask, &mut random(step)).theta;
    Tensor::cat(&(0..SEEDS).map(of_step).collect::<Vec<_>>(), 0).to_kind(Kind::Double)
}

fn number(tensor: &Tensor) -> f64 {
    tensor.double_value(&[])
}

/// Asserts that rows are finite, non-negative, and sum to 1 within `rounding`.
fn assert_weights(theta: &Tensor, rounding: f64) {
    assert_eq!(number(&theta.isfinite().all().to_kind(Kind::Double)), 1.0, "NaN or infinite");
    assert!(number(&theta.min()) >= 0.0);
    let off = number(&(theta.sum_dim_intlist(-1, false, None) - 1.0).abs().max());
    assert!(off < rounding, "the sum of a row differs from 1 by {off}");
}

/// E[prod of x_o^k_o] for x ~ Dirichlet(beta). `powers`: pairs (o, k_o).
fn moment(beta: &[f64], powers: &[(usize, u32)]) -> f64 {
    let rising = |from: f64, count: u32| (0..count).map(|i| from + f64::from(i)).product::<f64>();
    let all: u32 = powers.iter().map(|&(_, k)| k).sum();
    let each = powers.iter().map(|&(o, k)| rising(beta[o], k));
    each.product::<f64>() / rising(beta.iter().sum(), all)
}

/// The regularised incomplete beta function I_x(a, b), the CDF of Beta(a, b), by Lentz's continued fraction.
fn beta_cdf(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta_cdf(1.0 - x, b, a);
    }
    let ln_gamma = |x: f64| number(&Tensor::from(x).lgamma());
    let front = a * x.ln() + b * (-x).ln_1p() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b);
    let (mut c, mut d) = (1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in (1..2000).map(f64::from) {
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for term in [even, odd] {
            d = 1.0 / (1.0 + term * d);
            c = 1.0 + term / c;
            fraction *= c * d;
        }
        if (fraction - before).abs() < 1e-14 * fraction {
            break;
        }
    }
    front.exp() * fraction / a
}

/// Compares draws with Dirichlet(beta): the largest errors of means, second moments and marginals, in standard errors.
/// Second moments include those of pairs, which covers variances and covariances.
fn distances(theta: &Tensor, beta: &[f64]) -> [f64; 3] {
    let count = theta.size()[0] as f64;
    let sigmas =
        |found: f64, expected: f64, variance: f64| (found - expected).abs() / (variance / count).sqrt();
    let means = theta.mean_dim(0, false, Kind::Double);
    let products = theta.transpose(0, 1).matmul(theta) / count;
    let [mut mean, mut second, mut marginal] = [0.0f64; 3];
    for one in 0..beta.len() {
        let at = one as i64;
        let (expected, square) = (moment(beta, &[(one, 1)]), moment(beta, &[(one, 2)]));
        let variance = square - expected * expected;
        mean = mean.max(sigmas(means.double_value(&[at]), expected, variance));
        for other in 0..beta.len() {
            let powers = |k| if one == other { vec![(one, 2 * k)] } else { vec![(one, k), (other, k)] };
            let (expected, square) = (moment(beta, &powers(1)), moment(beta, &powers(2)));
            let found = products.double_value(&[at, other as i64]);
            second = second.max(sigmas(found, expected, square - expected * expected));
        }
        // The fraction of draws below points near the ends and around the mean.
        let ends = [1e-300, 1e-100, 1e-30, 1e-10, 1e-6, 1e-3, 1e-2];
        let around = (-6..=6).map(|half| expected + 0.5 * f64::from(half) * variance.sqrt());
        let points = ends.into_iter().chain(ends[3..].iter().map(|x| 1.0 - x)).chain(around);
        let column = theta.select(1, at);
        for x in points.filter(|x| (0.0..1.0).contains(x)) {
            let below = beta_cdf(x, beta[one], beta.iter().sum::<f64>() - beta[one]);
            let found = number(&column.le(x).to_kind(Kind::Double).mean(Kind::Double));
            // At least the variance of one expected draw: a single draw may occur where almost none is expected.
            let variance = (below * (1.0 - below)).max(1.0 / count);
            marginal = marginal.max(sigmas(found, below, variance));
        }
    }
    [mean, second, marginal]
}

fn assert_dirichlet(theta: &Tensor, beta: &[f64]) {
    let found = distances(theta, beta);
    println!("{beta:?}: errors of means, second moments, marginals: {found:.1?} standard errors");
    assert!(found.iter().all(|&sigmas| sigmas < SIGMAS), "{beta:?}: {found:?}");
}

#[test]
fn draws_have_the_moments_and_marginals_of_the_distribution() {
    for beta in CONCENTRATIONS {
        let eta = eta_of(beta);
        let off = (concentration(&eta) / Tensor::from_slice(beta) - 1.0).abs().max();
        assert!(number(&off) < 1e-12, "{beta:?} is not reached");
        let theta = draws(&eta, &eta.ones_like());
        assert_weights(&theta, 1e-14);
        assert_dirichlet(&theta, beta);
    }
}

/// The kept entries of a row, divided by their sum, follow the Dirichlet distribution of the kept concentrations.
#[test]
fn pruned_draws_follow_the_distribution_of_the_kept_entries() {
    for (beta, kept) in [
        (&[1.0, 0.98, 1.02, 1.0, 0.99, 1.01, 1.0], &[0, 2, 3, 6][..]),
        (&[0.05, 3.0, 0.4, 40.0, 0.3, 1e-3, 1.2], &[0, 1, 2, 4]),
        (&[0.2, 0.1, 1e3, 0.5, 0.4, 7.0, 1e-2], &[1, 3]),
    ] {
        let indices = Tensor::from_slice(kept.iter().map(|&o| o as i64).collect::<Vec<_>>().as_slice());
        let mask = Tensor::zeros([7], (Kind::Double, Device::Cpu)).index_fill(0, &indices, 1.0);
        let theta = draws(&eta_of(beta), &mask);
        let open: Tensor = 1.0 - &mask;
        assert_weights(&theta, 1e-14);
        assert_eq!(number(&(&theta * open).max()), 0.0, "a pruned entry is not 0");
        let kept_beta: Vec<f64> = kept.iter().map(|&o| beta[o]).collect();
        assert_dirichlet(&theta.index_select(1, &indices), &kept_beta);
    }
}

/// In float32, whose smallest normal number is 1e-38, draws are still valid weights with the correct mean and a finite
/// gradient, also in pruned rows.
#[test]
fn draws_are_valid_in_float32() {
    for beta in CONCENTRATIONS {
        for kept in [beta.len(), 2] {
            let eta = eta_of(beta).to_kind(Kind::Float);
            let mask = eta.ones_like();
            let _ = mask.narrow(0, kept as i64, (beta.len() - kept) as i64).fill_(0.0);
            let theta = draws(&eta, &mask);
            assert_weights(&theta, 1e-6);
            if kept == beta.len() {
                let [mean, _, _] = distances(&theta, beta);
                assert!(mean < SIGMAS, "{beta:?}: the error of the mean is {mean} standard errors");
            }
            for kind in [Kind::Float, Kind::Double] {
                let rows = |row: &Tensor| row.unsqueeze(0).repeat([ROWS_PER_SEED, 1]).to_kind(kind);
                let (eta, mask) = (rows(&eta), rows(&mask));
                let drawn = sample(&eta, &mask, &mut stream(1, Purpose::ThetaWeightStep, &[]));
                let upstream = Tensor::arange(beta.len() as i64, (kind, Device::Cpu)).expand_as(&eta);
                let grad = drawn.grad_eta(&eta, &upstream);
                assert_eq!(
                    number(&grad.isfinite().all().to_kind(Kind::Double)),
                    1.0,
                    "{beta:?}, {kept} kept, {kind:?}: the gradient is not finite"
                );
            }
        }
    }
}

/// Draws for different steps, replicas, tables or purposes are independent.
#[test]
fn steps_replicas_tables_and_purposes_have_independent_draws() {
    let eta = Tensor::zeros([2000, 7], (Kind::Double, Device::Cpu));
    let draw = |purpose, step, replica, table| {
        let theta = sample(&eta, &eta.ones_like(), &mut stream(5, purpose, &[step, replica, table])).theta;
        (theta - 1.0 / 7.0).flatten(0, -1)
    };
    let weights = Purpose::ThetaWeightStep;
    let all = [
        draw(weights, 3, 1, 0),
        draw(weights, 3, 1, 1),
        draw(weights, 3, 0, 0),
        draw(weights, 4, 1, 0),
        draw(Purpose::ThetaArchitectureStep, 3, 1, 0),
        draw(Purpose::ThetaVirtualStep, 3, 1, 0),
    ];
    for (at, one) in all.iter().enumerate() {
        for other in &all[at + 1..] {
            let correlation = number(&one.dot(other)) / number(&(one.norm() * other.norm()));
            // 2000 rows with 6 degrees of freedom each.
            assert!(correlation.abs() < SIGMAS / 12000f64.sqrt(), "{correlation}");
        }
    }
    assert!(draw(weights, 3, 1, 0).equal(&all[0]), "equal arguments give different draws");
}

/// A row equals the result of the textbook loop on the same random numbers; no generator of the device is involved.
#[test]
fn draws_are_a_function_of_numbers_drawn_on_the_host() {
    let beta = [1e-3, 1e-2, 0.1, 1.0, 1.7, 30.0, 1e3];
    let tries = 8;
    let mut all_tried = 0;
    for step in 0..2000 {
        let mut random = stream(5, Purpose::ThetaWeightStep, &[step, 0, 0]);
        let mut take = |count: usize, normal: bool| -> Vec<f64> {
            let one =
                |_| if normal { StandardNormal.sample(&mut random) } else { Open01.sample(&mut random) };
            (0..count).map(one).collect()
        };
        let (x, u) = (take((tries - 1) * 7, true), take((tries - 1) * 7, false));
        let last = take(7, false);
        let log_gamma = |o: usize| -> f64 {
            let d: f64 = beta[o] + 1.0 - 1.0 / 3.0;
            let (attempt, v) = (0..tries - 1)
                .map(|attempt| (attempt, (1.0 + x[7 * attempt + o] / (9.0 * d).sqrt()).powi(3)))
                .find(|&(attempt, v)| {
                    let x = x[7 * attempt + o];
                    v > 0.0 && u[7 * attempt + o].ln() < 0.5 * x * x + d - d * v + d * v.ln()
                })
                .expect("an accepted candidate");
            all_tried += attempt;
            (d * v).ln() + last[o].ln() / beta[o]
        };
        let rows: Vec<f64> = (0..7).map(log_gamma).collect();
        let most = rows.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = rows.iter().map(|row| (row - most).exp()).sum();
        let expected: Vec<f64> = rows.iter().map(|row| (row - most).exp() / sum).collect();
        let eta = eta_of(&beta).unsqueeze(0);
        let mut random = stream(5, Purpose::ThetaWeightStep, &[step, 0, 0]);
        let theta = sample(&eta, &eta.ones_like(), &mut random).theta;
        let off = number(&(theta - Tensor::from_slice(&expected)).abs().max());
        assert!(off < 1e-12, "step {step}: off by {off}");
    }
    assert!((200..600).contains(&all_tried), "{all_tried} of 14,000 first candidates were rejected");
}

/// The initial eta is 1e-3 * N(0, 1).
#[test]
fn initial_eta_has_the_published_distribution() {
    let table = |number| initial(&[14, 7], [0.0, 1e-3], number / 2, (Purpose::Eta, number as usize % 2));
    let tables: Vec<Tensor> = (0..200u64).map(table).collect();
    let eta = Tensor::stack(&tables, 0).flatten(0, -1) / 1e-3;
    let count = eta.numel() as f64;
    // Power, its mean and variance for a standard normal variate.
    for (power, mean, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
        let found = number(&eta.pow_tensor_scalar(power).mean(Kind::Double));
        let off = (found - mean) / (variance / count).sqrt();
        assert!(off.abs() < SIGMAS, "moment {power} is {found}, an error of {off} standard errors");
    }
    assert!(
        !tables[0].equal(&tables[1]) && !tables[0].equal(&tables[2]),
        "equal draws for different tables or seeds"
    );
}
