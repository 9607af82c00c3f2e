//! The numbers of the trajectory figure: at every epoch the accuracy of architectures drawn from the Dirichlet, and of
//! the chosen one.
//!
//! Source: README of the published code ("we sample 100 architectures from the current Dirichlet distribution and plot
//! their accuracy range along with the current architecture selected by Dirichlet mean"), and the figure there. It does
//! not say how a draw of mixing weights becomes an architecture: here by the arg max of every edge, as the mean does.

use crate::error::{Error, Result};
use crate::nb201::{Table, quantile};
use crate::random::{Purpose, stream};
use crate::space::Mask;
use crate::space::genotype::mean_weights;
use crate::space::nb201::{Architecture, Dataset, EDGES, OPERATIONS};
use rand::Rng;
use rand_distr::{Distribution, Gamma, Open01};
use serde::Deserialize;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// A search over its epochs; accuracies are test accuracies after 200 epochs, percent.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectory {
    /// Whose accuracy it is.
    pub dataset: Dataset,
    /// Architectures drawn at every epoch.
    pub num_samples: usize,
    /// At least one, epochs rising.
    pub epochs: Vec<Epoch>,
    /// The stages that have an epoch, in order.
    pub stages: Vec<Stage>,
    /// The best of the whole space.
    pub optimum: f64,
    /// The median of the whole space.
    pub median: f64,
}

/// One epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Epoch {
    /// From 1, over the whole run.
    pub epoch: u64,
    /// What the mean of the Dirichlet selects.
    pub chosen: Architecture,
    /// Its accuracy.
    pub accuracy: f64,
    /// Of the drawn ones.
    pub drawn: Summary,
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

/// A stage of the search.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// From 1.
    pub stage: u64,
    /// Its first epoch, from 1.
    pub first_epoch: u64,
    /// Partial-channel divisor, and operations on every edge, if the run says so.
    pub k_and_ops: Option<(i64, usize)>,
}

/// One line of `metrics.jsonl`: only what is used here, and nothing has to be there.
#[derive(Deserialize)]
struct Line {
    event: String,
    stage: Option<u64>,
    epoch: Option<u64>,
    k: Option<i64>,
    ops_kept: Option<usize>,
    /// `[T][E][O]`; what is not finite is null.
    eta: Option<Vec<Vec<Vec<Option<f64>>>>>,
    masks: Option<Vec<Vec<Vec<bool>>>>,
}

impl Trajectory {
    /// From `RUN/metrics.jsonl`; a line that is being written is left out. `num_samples`: at least 1. The same seed
    /// draws the same architectures, however far the run is. Errors: no epoch with eta, another space, a damaged line.
    pub fn read(
        run: &Path,
        table: &Table,
        dataset: Dataset,
        num_samples: usize,
        seed: u64,
    ) -> Result<Trajectory> {
        let path = run.join("metrics.jsonl");
        let wrong = |what: String| Error::PlotSource { path: path.clone(), what };
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let column = table.accuracy(dataset)?;
        let accuracy = |architecture: &Architecture| table.row(architecture).value(column);
        let (mut epochs, mut stages, mut num_epochs) = (Vec::<Epoch>::new(), Vec::<Stage>::new(), 0);
        let whole = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        for (number, bytes) in (1..).zip(whole) {
            let line: Line =
                serde_json::from_slice(bytes).map_err(|e| wrong(format!("line {number}: {e}")))?;
            let Some(stage) = line.stage else { continue };
            if line.event == "stage" {
                let k_and_ops = line.k.zip(line.ops_kept);
                stages.push(Stage { stage, first_epoch: u64::MAX, k_and_ops });
                continue;
            }
            let (true, Some(epoch)) = (line.event == "epoch", line.epoch) else { continue };
            num_epochs += 1;
            let Some(eta) = line.eta else { continue };
            let (eta, mask) = one_table(eta, line.masks).map_err(|e| wrong(format!("line {number}: {e}")))?;
            if epochs.last().is_some_and(|last| last.epoch >= epoch) {
                return Err(wrong(format!("line {number}: epoch {epoch} comes after a later one")));
            }
            match stages.iter_mut().find(|known| known.stage == stage) {
                Some(known) => known.first_epoch = known.first_epoch.min(epoch),
                None => stages.push(Stage { stage, first_epoch: epoch, k_and_ops: None }),
            }
            let chosen = Architecture::from_weights(&mean_weights(&eta, &mask));
            let mut random = stream(seed, Purpose::Trajectory, &[epoch]);
            let drawn: Vec<f64> =
                (0..num_samples).map(|_| accuracy(&draw(&eta, &mask, &mut random))).collect();
            epochs.push(Epoch { epoch, chosen, accuracy: accuracy(&chosen), drawn: summary(&drawn) });
        }
        if epochs.is_empty() {
            return Err(wrong(match num_epochs {
                0 => "no epoch has ended yet".into(),
                _ => format!(
                    "none of its {num_epochs} epochs holds eta; only NAS-Bench-201 searches can be drawn"
                ),
            }));
        }
        stages.retain(|stage| stage.first_epoch != u64::MAX);
        let (optimum, median) = (table.optimum(column).value(column), table.median(column));
        Ok(Trajectory { dataset, num_samples, epochs, stages, optimum, median })
    }

    /// The first, middle and last epochs as lines for people.
    pub fn text(&self) -> String {
        let last = self.epochs.len() - 1;
        let mut shown = vec![0, last / 4, last / 2, 3 * last / 4, last];
        shown.dedup();
        let title = self.dataset.title();
        let mut text = format!(
            "{title} test accuracy, {} architectures drawn at every epoch (best of the space {:.2} %, its median {:.2} %)\n",
            self.num_samples, self.optimum, self.median
        );
        for Epoch { epoch, accuracy, drawn, .. } in shown.into_iter().map(|at| &self.epochs[at]) {
            writeln!(
                text,
                "epoch {epoch:>3}: chosen {accuracy:.2} %, drawn {:.2} to {:.2} %, quartiles {:.2} {:.2} {:.2} %",
                drawn.min, drawn.max, drawn.lower_quartile, drawn.median, drawn.upper_quartile
            )
            .expect("a String takes everything");
        }
        text
    }
}

/// The only table of a NAS-Bench-201 search; without masks nothing is pruned.
fn one_table(
    eta: Vec<Vec<Vec<Option<f64>>>>,
    masks: Option<Vec<Vec<Vec<bool>>>>,
) -> std::result::Result<(Vec<Vec<f64>>, Mask), String> {
    fn fits<V>(tables: &[Vec<Vec<V>>]) -> bool {
        let rows = tables.first().map_or(&[][..], |table| &table[..]);
        tables.len() == 1 && rows.len() == EDGES.len() && rows.iter().all(|row| row.len() == OPERATIONS.len())
    }
    if !fits(&eta) || masks.as_ref().is_some_and(|masks| !fits(masks)) {
        return Err(format!(
            "one table of {} edges and {} operations expected, this is a search of another space",
            EDGES.len(),
            OPERATIONS.len()
        ));
    }
    let mask = Mask(
        masks.map_or_else(|| vec![vec![true; OPERATIONS.len()]; EDGES.len()], |mut masks| masks.remove(0)),
    );
    let eta: Option<Vec<Vec<f64>>> =
        eta.into_iter().flatten().map(|row| row.into_iter().collect::<Option<Vec<f64>>>()).collect();
    let eta = eta.ok_or("eta holds a number that is not finite")?;
    if mask.0.iter().any(|row| !row.contains(&true)) {
        return Err("an edge has no operation left".into());
    }
    Ok((eta, mask))
}

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

/// Least, quartiles (linear between neighbours) and largest. `values`: not empty, no NaN.
pub fn summary(values: &[f64]) -> Summary {
    let part = |part| quantile(values, part);
    Summary {
        min: part(0.0),
        lower_quartile: part(0.25),
        median: part(0.5),
        upper_quartile: part(0.75),
        max: part(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let found = summary(&values);
            let parts = [found.min, found.lower_quartile, found.median, found.upper_quartile, found.max];
            for (part, found) in [0.0, 0.25, 0.5, 0.75, 1.0].into_iter().zip(parts) {
                assert!((slow(&values, part) - found).abs() < 1e-12, "{part} of {length}");
            }
        }
        let one = summary(&[7.0]);
        assert_eq!((one.min, one.median, one.max), (7.0, 7.0, 7.0));
    }
}
