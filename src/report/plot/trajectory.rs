//! The numbers of the trajectory figure: at every epoch the accuracy of architectures drawn from the Dirichlet, and of
//! the chosen one.
//!
//! Source: README of the published code ("we sample 100 architectures from the current Dirichlet distribution and plot
//! their accuracy range along with the current architecture selected by Dirichlet mean"), and the figure there. It does
//! not say how a draw of mixing weights becomes an architecture: here by the arg max of every edge, as the mean does.

use super::drawn::{Summary, draw};
use crate::files;
use crate::nb201::Table;
use crate::random::{Purpose, stream};
use crate::report::error::{Error, Result};
use crate::space::Mask;
use crate::space::genotype::mean_weights;
use crate::space::nb201::{Architecture, Dataset, EDGES, OPERATIONS};
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
    pub stages: Vec<DrawnStage>,
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

/// A stage of the search.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnStage {
    /// From 1.
    pub stage: u64,
    /// Its first epoch, from 1.
    pub first_epoch: u64,
    /// Partial-channel divisor, and operations on every edge, if the run says so.
    pub k_and_ops: Option<(i64, usize)>,
}

/// One line of `metrics.jsonl`: only what is used here, and nothing has to be there.
#[derive(Deserialize)]
struct LogLine {
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
        let bytes = fs::read(&path).map_err(files::io("read", &path))?;
        let column = table.accuracy(dataset)?;
        let accuracy = |architecture: &Architecture| table.row(architecture).value(column);
        let (mut epochs, mut stages, mut num_epochs) = (Vec::<Epoch>::new(), Vec::<DrawnStage>::new(), 0);
        let whole = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        for (number, bytes) in (1..).zip(whole) {
            let line: LogLine =
                serde_json::from_slice(bytes).map_err(|e| wrong(format!("line {number}: {e}")))?;
            let Some(stage) = line.stage else { continue };
            if line.event == "stage" {
                let k_and_ops = line.k.zip(line.ops_kept);
                stages.push(DrawnStage { stage, first_epoch: u64::MAX, k_and_ops });
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
                None => stages.push(DrawnStage { stage, first_epoch: epoch, k_and_ops: None }),
            }
            let chosen = Architecture::from_weights(&mean_weights(&eta, &mask));
            let mut random = stream(seed, Purpose::Trajectory, &[epoch]);
            let drawn: Vec<f64> =
                (0..num_samples).map(|_| accuracy(&draw(&eta, &mask, &mut random))).collect();
            epochs.push(Epoch { epoch, chosen, accuracy: accuracy(&chosen), drawn: Summary::of(&drawn) });
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
