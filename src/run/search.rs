//! Run of a search: its two data sets, messages and results.

use super::error::Error as RunError;
use super::run;
use super::streams::{Streams, open};
use super::table_lookup::{TableLookup, comparison_text};
use super::training::{Announcement, StepPlace, Totals, Training};
use crate::cli::SearchArgs;
use crate::comm::Communicator;
use crate::config::{self, Config, Settings};
use crate::data::{Loader, ShardSet};
use crate::error::Result;
use crate::files;
use crate::process::messages::counted;
use crate::report::{
    Accuracies, EpochRecord, EpochSummary, FinishRecord, LogRecord, StageRecord, final_text,
};
use crate::search::Search;
use crate::search::dirichlet::entropy;
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
    let sets = [open(&args.train)?, open(&args.valid)?];
    check_sets(config, args, &sets)?;

    let replicas = config.replicas_of(world.rank(), world.size());
    let streams = Streams::new(config, replicas.clone(), world.threads());
    let [steps_per_pass, _] = [streams.steps_per_pass(&sets[0])?, streams.steps_per_pass(&sets[1])?];
    let timeline = Timeline::new(config, steps_per_pass);
    let search = Search::new(config, timeline.clone(), replicas, world.device());
    let schedule = Schedule::of_search(config);
    let loaders = None;
    let search = SearchRun { config, search, timeline, schedule, streams, sets, loaders, benchmark };
    run(search, &args.run, world)
}

/// Checks that both data sets have the same classes and different images.
fn check_sets(config: &Config, args: &SearchArgs, sets: &[Arc<ShardSet>; 2]) -> Result<()> {
    for set in sets {
        config.check_classes(set.num_classes())?;
    }
    if sets[0].hash() == sets[1].hash() {
        return Err(RunError::TrainIsValid { train: args.train.clone(), valid: args.valid.clone() }.into());
    }
    if sets[0].classes() != sets[1].classes() {
        return Err(config::Error::Check(format!(
            "{} and {} have different classes; pack both from one folder",
            args.train.display(),
            args.valid.display()
        ))
        .into());
    }
    Ok(())
}

/// A search with its data.
struct SearchRun<'a> {
    config: &'a Config,
    search: Search,
    timeline: Timeline,
    schedule: Schedule,
    streams: Streams,
    /// Data sets of the weights and of the architecture.
    sets: [Arc<ShardSet>; 2],
    /// Loaders of `sets`; `Some` after `open_data`.
    loaders: Option<[Loader; 2]>,
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
        vec![("train", self.sets[0].hash()), ("valid", self.sets[1].hash())]
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
            eta_lr: position.architecture.then_some(self.config.eta.lr),
        }
    }

    fn open_data(&mut self) -> Result<()> {
        let step = self.search.step();
        let open = |stream, step| self.streams.open(&self.sets[stream as usize], stream, step);
        let architecture_step = self.timeline.architecture_steps_before(step);
        self.loaders = Some([open(WEIGHTS, step)?, open(ARCHITECTURE, architecture_step)?]);
        Ok(())
    }

    fn train_step(&mut self, comm: &dyn Communicator) -> Result<StepOutcome> {
        let [weights, architecture] = self.loaders.as_mut().expect("open_data was called");
        self.search.bilevel_step(weights, architecture, comm)
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
        let more = format!("{validation}, eta entropy {} nats", entropies.join(", "));
        let text = format!("{}{table}", summary.text(&more));
        let record = EpochRecord {
            summary,
            eta_entropy,
            eta: self.search.eta_on_host()?,
            masks: self.search.net().shape().masks.clone(),
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
