//! Run of a search: its two data sets, messages and results.

use super::error::Error as RunError;
use super::run;
use super::streams::{Streams, open};
use super::table_lookup::{TableLookup, comparison_text};
use super::training::{Announcement, StepPlace, Totals, Training};
use crate::cli::SearchArgs;
use crate::comm::Communicator;
use crate::config::{self, Config, Scheme, Settings};
use crate::data::{Loader, ShardSet};
use crate::error::Result;
use crate::files;
use crate::method::dirichlet::entropy;
use crate::process::messages::counted;
use crate::report::{
    Accuracies, EpochRecord, EpochSummary, FinishRecord, LogRecord, StageRecord, final_text,
};
use crate::search::Search;
use crate::search::timeline::Timeline;
use crate::space::found::Found;
use crate::train::schedule::Schedule;
use crate::train::state::State;
use crate::train::tally::StepOutcome;
use crate::world::World;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Next steps that the report suggests.
const TRAIN: &str = "Train it from scratch: drnas-dist evaluate-imagenet (or evaluate-cifar) --genotype RUN/genotype.json, see --help.";
const PLOT: &str = "Plot the search trajectory: drnas-dist plot trajectory RUN --table FILE.";
const WATCH: &str =
    "Inspect the search: the epoch lines of metrics.jsonl contain the genotype of each epoch.";
const AGAIN: &str = "Repeat the search with other seeds (--set seed=1): results vary between seeds.";

/// Stream numbers of the loaders.
const WEIGHTS: u64 = 0;
const ARCHITECTURE: u64 = 1;

/// Runs a search. `benchmark`: used on rank 0 only, to report the accuracy of each architecture. Called by all ranks.
pub fn search(
    config: &Config,
    args: &SearchArgs,
    benchmark: Option<TableLookup>,
    world: &World,
) -> Result<()> {
    config.check_ranks(world.size())?;
    let sets = open_sets(config, args)?;

    let replicas = config.replicas_of(world.rank(), world.size());
    let streams = Streams::new(config, replicas.clone(), world.threads());
    let steps_per_pass: Vec<u64> =
        sets.iter().map(|set| streams.steps_per_pass(set)).collect::<Result<_>>()?;
    let timeline = Timeline::new(config, steps_per_pass[0]);
    let search = Search::new(config, timeline.clone(), replicas, world.device());
    let schedule = Schedule::of_search(config);
    let loaders = Vec::new();
    let search = SearchRun { config, search, timeline, schedule, streams, sets, loaders, benchmark };
    run(search, &args.run, world)
}

/// Opens the data set of the weights and, in a bilevel search, that of the architecture. Errors: they have other classes
/// than the configuration or each other, or the same images.
fn open_sets(config: &Config, args: &SearchArgs) -> Result<Vec<Arc<ShardSet>>> {
    let check = |text: String| config::Error::Check(text).into();
    let valid = match (config.search.scheme, &args.valid) {
        (Scheme::Bilevel, None) => {
            return Err(check(
                "--valid is missing: the architecture parameters are trained on its images".into(),
            ));
        }
        (Scheme::SingleLevel, Some(_)) => {
            return Err(check(
                "--valid has no effect with search.scheme = \"single-level\", which trains everything on --train; \
                 remove it, and pack the whole training set for --train"
                    .into(),
            ));
        }
        (_, valid) => valid,
    };
    let mut sets = vec![open(&args.train)?];
    config.check_classes(sets[0].num_classes())?;
    if let Some(valid) = valid {
        let set = open(valid)?;
        config.check_classes(set.num_classes())?;
        if sets[0].hash() == set.hash() {
            return Err(RunError::TrainIsValid { train: args.train.clone(), valid: valid.clone() }.into());
        }
        if sets[0].classes() != set.classes() {
            return Err(check(format!(
                "{} and {} have different classes; pack both from one folder",
                args.train.display(),
                valid.display()
            )));
        }
        sets.push(set);
    }
    Ok(sets)
}

/// A search with its data.
struct SearchRun<'a> {
    config: &'a Config,
    search: Search,
    timeline: Timeline,
    schedule: Schedule,
    streams: Streams,
    /// Data set of the weights, then, in a bilevel search, that of the architecture.
    sets: Vec<Arc<ShardSet>>,
    /// Loaders of `sets`; empty before `open_data`.
    loaders: Vec<Loader>,
    benchmark: Option<TableLookup>,
}

impl SearchRun<'_> {
    /// Looks up the accuracies of `found`, if there is a table.
    fn accuracies(&self, found: &Found) -> Option<Accuracies> {
        Some(self.benchmark.as_ref()?.accuracies(&found.architecture()?))
    }
}

impl Training for SearchRun<'_> {
    type Settings = Config;

    fn settings(&self) -> &Config {
        self.config
    }

    fn input_hashes(&self) -> Vec<(&'static str, u64)> {
        ["train", "valid"].into_iter().zip(self.sets.iter().map(|set| set.hash())).collect()
    }

    fn classes(&self) -> &[String] {
        self.sets[0].classes()
    }

    fn steps_per_epoch(&self) -> u64 {
        self.timeline.steps_per_epoch
    }

    fn num_steps(&self) -> u64 {
        self.timeline.num_steps()
    }

    fn step(&self) -> u64 {
        self.search.step()
    }

    fn place(&self, step: u64) -> StepPlace {
        let position = self.timeline.position(step);
        StepPlace {
            stage: position.stage as u64,
            num_stages: self.timeline.stages().len() as u64,
            epoch: position.epoch,
            lr: self.schedule.lr(position.epoch),
            eta_lr: position.architecture.then_some(self.config.architecture.lr),
        }
    }

    fn open_data(&mut self) -> Result<()> {
        let step = self.search.step();
        let starts = [(WEIGHTS, step), (ARCHITECTURE, self.timeline.architecture_steps_before(step))];
        let open = |(set, (stream, step))| self.streams.open(set, stream, step);
        self.loaders = self.sets.iter().zip(starts).map(open).collect::<Result<_>>()?;
        Ok(())
    }

    fn train_step(&mut self, comm: &dyn Communicator) -> Result<StepOutcome> {
        match &mut self.loaders[..] {
            [weights, architecture] => self.search.bilevel_step(weights, architecture, comm),
            loaders => self.search.single_level_step(&mut loaders[0], comm),
        }
    }

    fn stage_ends(&self) -> bool {
        self.search.step() == self.timeline.steps_of(self.search.stage()).end
    }

    fn advance(&mut self) -> Result<()> {
        self.search.advance()
    }

    fn state(&self) -> &dyn State {
        &self.search
    }

    fn state_mut(&mut self) -> &mut dyn State {
        &mut self.search
    }

    fn announce_stage(&self) -> Announcement {
        let (number, num_weights) = (self.search.stage(), self.search.net().params.num_elements());
        let stage = self.timeline.stages()[number];
        let record = StageRecord {
            stage: number as u64 + 1,
            step: self.search.step(),
            k: stage.k,
            ops_kept: stage.ops_kept,
            epochs: stage.epochs,
            num_weights,
        };
        let text = format!(
            "stage {}/{}: k {}, {} per edge, {}, {}",
            number + 1,
            self.timeline.stages().len(),
            stage.k,
            counted(stage.ops_kept as u64, "operation"),
            counted(stage.epochs, "epoch"),
            counted(num_weights as u64, "weight"),
        );
        Announcement { record: LogRecord::Stage(record), text }
    }

    fn announce_epoch(&self, summary: EpochSummary) -> Result<Announcement> {
        let found = self.search.found()?;
        let eta_entropy: Vec<f64> = self.search.mean_weights()?.iter().map(|table| entropy(table)).collect();
        let benchmark = self.accuracies(&found);
        let validation = match summary.architecture_top1 {
            Some(top1) => format!(", validation top-1 {:.1} %", 100.0 * top1),
            None => String::new(),
        };
        let entropies: Vec<String> = match (&eta_entropy[..], self.search.space().tables()) {
            ([entropy], _) => vec![format!("{entropy:.3}")],
            (entropies, tables) => {
                entropies.iter().zip(tables).map(|(entropy, table)| format!("{table} {entropy:.3}")).collect()
            }
        };
        let table = match (&self.benchmark, &benchmark) {
            (Some(benchmark), Some(accuracies)) => benchmark.epoch_text(accuracies),
            _ => String::new(),
        };
        let parameters = self.search.architecture();
        let more = format!("{validation}, {} entropy {} nats", parameters.name(), entropies.join(", "));
        let text = format!("{}{table}", summary.text(&more));
        let record = EpochRecord {
            summary,
            method: self.config.method,
            eta_entropy,
            eta: parameters.on_host()?,
            beta: parameters.edges_on_host()?,
            masks: self.search.net().shape().masks.clone(),
            operations: self.config.operations(),
            genotype: found.to_line(),
            benchmark,
        };
        Ok(Announcement { record: LogRecord::Epoch(record), text })
    }

    fn finish(&self, out: &Path, totals: &Totals) -> Result<Announcement> {
        let found = self.search.found()?;
        let (json, line) = (found.to_json()?, found.to_line());
        for (name, text) in [("genotype.json", &json), ("genotype.txt", &line)] {
            let path = out.join(name);
            fs::write(&path, format!("{text}\n")).map_err(files::io("write", path))?;
        }
        let record = FinishRecord {
            step: self.search.step(),
            stages: self.timeline.stages().len() as u64,
            epochs: self.timeline.num_epochs(),
            images: totals.images,
            replaced_images: totals.replaced_images,
            ranks: totals.ranks,
            genotype: line,
            benchmark: self.accuracies(&found),
            wall_s: totals.wall_s,
        };
        let comparison = comparison_text(self.search.space(), &found, self.benchmark.as_ref())?;
        let next: &[&str] = match found {
            Found::Darts(_) => &[TRAIN, WATCH, AGAIN],
            Found::NasBench201(_) => &[PLOT, WATCH, AGAIN],
        };
        Ok(Announcement {
            text: final_text(out, &record, &comparison, next),
            record: LogRecord::Finish(record),
        })
    }
}
