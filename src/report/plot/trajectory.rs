//! Data of the trajectory figure: for every epoch, the accuracy of architectures sampled from the Dirichlet, and of the
//! selected one.
//!
//! Source: README of the published code ("we sample 100 architectures from the current Dirichlet distribution and plot
//! their accuracy range along with the current architecture selected by Dirichlet mean"), and the figure there. It does
//! not define how sampled mixing weights become an architecture: here by the arg max of every edge, as with the mean.

use super::sample::{Summary, sample_architecture};
use crate::config::Method;
use crate::files;
use crate::nb201::Table;
use crate::random::{Purpose, stream};
use crate::report::error::{Error, Result};
use crate::space::genotype::mean_weights;
use crate::space::nb201::{Architecture, Dataset, EDGES, OPERATIONS};
use crate::space::{Mask, Operation};
use serde::Deserialize;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Trajectory of a search. Accuracies are test accuracies after 200 epochs, percent.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectory {
    /// Data set of the accuracies.
    pub dataset: Dataset,
    /// Architectures sampled per epoch.
    pub num_samples: usize,
    /// Epochs in ascending order, at least one.
    pub epochs: Vec<Epoch>,
    /// Stages that have an epoch, in order.
    pub stages: Vec<StageSpan>,
    /// Best accuracy in the search space.
    pub optimum: f64,
    /// Median accuracy of the search space.
    pub median: f64,
}

/// Data of one epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Epoch {
    /// Epoch of the run, from 1.
    pub epoch: u64,
    /// The architecture selected by the mean of the Dirichlet.
    pub selected: Architecture,
    /// Its accuracy.
    pub accuracy: f64,
    /// Accuracies of the sampled architectures.
    pub sampled: Summary,
}

/// A stage and its first epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct StageSpan {
    /// Stage, from 1.
    pub stage: u64,
    /// Its first epoch, from 1.
    pub first_epoch: u64,
    /// Partial-channel divisor and operations per edge, if the log contains them.
    pub k_and_ops: Option<(i64, usize)>,
}

/// The fields of a line of `metrics.jsonl` that are used here; all but `event` are optional.
#[derive(Deserialize)]
struct LogLine {
    event: String,
    stage: Option<u64>,
    epoch: Option<u64>,
    k: Option<i64>,
    ops_kept: Option<usize>,
    /// `[T][E][O]`; numbers that are not finite are null.
    eta: Option<Vec<Vec<Vec<Option<f64>>>>>,
    masks: Option<Vec<Vec<Vec<bool>>>>,
    /// The columns of eta and masks; those of the benchmark if absent.
    operations: Option<Vec<Operation>>,
    #[serde(default)]
    method: Method,
}

impl Trajectory {
    /// Reads `RUN/metrics.jsonl` and ignores an incomplete last line. `num_samples`: at least 1. For one seed, the
    /// samples of an epoch do not depend on later epochs. Errors: no epoch with eta, another search space, a corrupt
    /// line.
    pub fn read(
        run: &Path,
        table: &Table,
        dataset: Dataset,
        num_samples: usize,
        seed: u64,
    ) -> Result<Trajectory> {
        let path = run.join("metrics.jsonl");
        let wrong = |what: String| Error::PlotSource { path: path.clone(), what };
        let bytes = fs::read(&path).map_err(files::io("read", &path))?;
        let column = table.accuracy(dataset)?;
        let accuracy = |architecture: &Architecture| table.row(architecture).value(column);
        let (mut epochs, mut stages, mut num_epochs) = (Vec::<Epoch>::new(), Vec::<StageSpan>::new(), 0);
        let whole = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        for (number, bytes) in (1..).zip(whole) {
            let line: LogLine =
                serde_json::from_slice(bytes).map_err(|e| wrong(format!("line {number}: {e}")))?;
            let Some(stage) = line.stage else { continue };
            if line.event == "stage" {
                let k_and_ops = line.k.zip(line.ops_kept);
                stages.push(StageSpan { stage, first_epoch: u64::MAX, k_and_ops });
                continue;
            }
            let (true, Some(epoch)) = (line.event == "epoch", line.epoch) else { continue };
            num_epochs += 1;
            let Some(eta) = line.eta else { continue };
            let columns = line.operations.as_deref().unwrap_or(&Operation::NAS_BENCH_201);
            let (eta, mask) =
                one_table(eta, line.masks, columns).map_err(|e| wrong(format!("line {number}: {e}")))?;
            if epochs.last().is_some_and(|last| last.epoch >= epoch) {
                return Err(wrong(format!("line {number}: epoch {epoch} is out of order")));
            }
            match stages.iter_mut().find(|known| known.stage == stage) {
                Some(known) => known.first_epoch = known.first_epoch.min(epoch),
                None => stages.push(StageSpan { stage, first_epoch: epoch, k_and_ops: None }),
            }
            let selected = Architecture::from_scores(&Operation::NAS_BENCH_201, &mean_weights(&eta, &mask));
            let mut random = stream(seed, Purpose::Trajectory, &[epoch]);
            let sampled: Vec<f64> = (0..num_samples)
                .map(|_| accuracy(&sample_architecture(line.method, &eta, &mask, &mut random)))
                .collect();
            epochs.push(Epoch {
                epoch,
                selected,
                accuracy: accuracy(&selected),
                sampled: Summary::of(&sampled),
            });
        }
        if epochs.is_empty() {
            return Err(wrong(match num_epochs {
                0 => "no epoch has finished yet".into(),
                _ => "no epoch contains eta; only NAS-Bench-201 searches can be plotted".into(),
            }));
        }
        stages.retain(|stage| stage.first_epoch != u64::MAX);
        let (optimum, median) = (table.optimum(column).value(column), table.median(column));
        Ok(Trajectory { dataset, num_samples, epochs, stages, optimum, median })
    }

    /// Formats the first, some intermediate and the last epochs as text.
    pub fn text(&self) -> String {
        let last = self.epochs.len() - 1;
        let mut shown = vec![0, last / 4, last / 2, 3 * last / 4, last];
        shown.dedup();
        let title = self.dataset.title();
        let mut text = format!(
            "{title} test accuracy, {} architectures sampled per epoch (search space: best {:.2} %, median {:.2} %)\n",
            self.num_samples, self.optimum, self.median
        );
        for Epoch { epoch, accuracy, sampled, .. } in shown.into_iter().map(|at| &self.epochs[at]) {
            writeln!(
                text,
                "epoch {epoch:>3}: selected {accuracy:.2} %, sampled {:.2} to {:.2} %, quartiles {:.2} {:.2} {:.2} %",
                sampled.min, sampled.max, sampled.lower_quartile, sampled.median, sampled.upper_quartile
            )
            .expect("writing to a String cannot fail");
        }
        text
    }
}

/// Checks the shape of eta and masks and returns the single table of a NAS-Bench-201 search, with the columns of the
/// benchmark; operations that are not in `columns` count as pruned. Without masks, nothing is pruned.
fn one_table(
    eta: Vec<Vec<Vec<Option<f64>>>>,
    masks: Option<Vec<Vec<Vec<bool>>>>,
    columns: &[Operation],
) -> std::result::Result<(Vec<Vec<f64>>, Mask), String> {
    fn fits<V>(tables: &[Vec<Vec<V>>], columns: &[Operation]) -> bool {
        let rows = tables.first().map_or(&[][..], |table| &table[..]);
        tables.len() == 1 && rows.len() == EDGES.len() && rows.iter().all(|row| row.len() == columns.len())
    }
    let places: Option<Vec<usize>> = columns
        .iter()
        .map(|column| Operation::NAS_BENCH_201.iter().position(|other| other == column))
        .collect();
    let fits_both = fits(&eta, columns) && masks.as_ref().is_none_or(|masks| fits(masks, columns));
    let Some(places) = places.filter(|_| fits_both) else {
        return Err(format!(
            "expected one table of {} edges and {} operations, found another search space",
            EDGES.len(),
            columns.len()
        ));
    };
    let eta: Option<Vec<Vec<f64>>> =
        eta.into_iter().flatten().map(|row| row.into_iter().collect::<Option<Vec<f64>>>()).collect();
    let eta = eta.ok_or("eta contains a number that is not finite")?;
    let mask =
        masks.map_or_else(|| vec![vec![true; columns.len()]; EDGES.len()], |mut masks| masks.remove(0));
    if mask.iter().any(|row| !row.contains(&true)) {
        return Err("an edge has no operation left".into());
    }
    Ok((spread(&eta, &places, 0.0), Mask(spread(&mask, &places, false))))
}

/// Moves the columns of `table` to `places` among those of the benchmark; the others are `missing`.
fn spread<V: Copy>(table: &[Vec<V>], places: &[usize], missing: V) -> Vec<Vec<V>> {
    let row = |row: &Vec<V>| {
        let mut out = vec![missing; OPERATIONS.len()];
        row.iter().zip(places).for_each(|(value, &place)| out[place] = *value);
        out
    };
    table.iter().map(row).collect()
}
