//! The run of a search: from checked inputs to the found architecture, with its log, its checkpoints and its end.

use super::tally::{Measures, Tally};
use super::timeline::Timeline;
use super::{Search, StepOutcome};
use crate::checkpoint;
use crate::cli::SearchArgs;
use crate::comm::Communicator;
use crate::config::Config;
use crate::data::{Augment, DecodePool, Loader, LoaderSpec, ShardSet};
use crate::error::{Error, Result};
use crate::launch::World;
use crate::report::{
    EpochRecord, FinishRecord, MetricsLog, Progress, Record, StageRecord, Status, StepRecord, finish,
};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tch::Device;
use xxhash_rust::xxh3::xxh3_64;

/// Streams of samples: names in the random streams of the loaders.
const WEIGHTS: u64 = 0;
const ARCHITECTURE: u64 = 1;

/// Searches as `args` say. Called by all ranks.
pub fn run(config: &Config, args: &SearchArgs, world: &World) -> Result<()> {
    let comm = world.communicator();
    config.check_ranks(world.size())?;
    let sets = [open(&args.train)?, open(&args.valid)?];
    for set in &sets {
        config.check_classes(set.num_classes())?;
    }
    if sets[0].classes() != sets[1].classes() {
        return Err(Error::ConfigCheck(format!(
            "{} and {} name their classes differently: pack both from one folder",
            args.train.display(),
            args.valid.display()
        )));
    }
    compare_starts(config, &sets, comm)?;

    let per_rank = config.search.replicas as usize / world.size();
    let replicas = world.rank() * per_rank..(world.rank() + 1) * per_rank;
    let loaders = Loaders::new(config, sets, replicas.clone(), world.threads());
    let timeline = Timeline::new(config, loaders.steps_of_data()?);
    let mut search = Search::new(config, timeline.clone(), replicas, Device::Cpu);

    let mut run = Run::begin(config, args, world, &mut search, &timeline)?;
    if search.step() == 0 {
        run.stage_begins(&search)?;
    }
    let mut weights = loaders.open(WEIGHTS, search.step())?;
    let mut architecture = loaders.open(ARCHITECTURE, timeline.architecture_steps_before(search.step()))?;
    search.compare_ranks(comm)?;
    while search.step() < timeline.num_steps() {
        let start = Instant::now();
        let outcome = search.bilevel_step(&mut weights, &mut architecture, comm)?;
        let waits = weights.wait_ms() + architecture.wait_ms();
        run.step_done(&search, outcome, start.elapsed().as_secs_f64(), waits)?;
        run.after_step(&mut search)?;
    }
    run.finished(&search)
}

fn open(folder: &Path) -> Result<Arc<ShardSet>> {
    Ok(Arc::new(ShardSet::open(folder)?))
}

/// Compares over the ranks what each was started with; names the first thing that differs. Collective.
fn compare_starts(config: &Config, sets: &[Arc<ShardSet>; 2], comm: &dyn Communicator) -> Result<()> {
    let program = fs::read("/proc/self/exe").map_or(0, |bytes| xxh3_64(&bytes));
    let mine = [
        ("program (another version is installed there)", program),
        ("configuration", config.hash()),
        ("training shards", sets[0].hash()),
        ("validation shards", sets[1].hash()),
    ];
    let bytes: Vec<u8> = mine.iter().flat_map(|(_, hash)| hash.to_le_bytes()).collect();
    let all = comm.all_gather(&bytes)?;
    for (index, (what, _)) in mine.iter().enumerate() {
        let part = |rank: usize| &all[rank][8 * index..8 * (index + 1)];
        if let Some(rank) = (1..all.len()).find(|&rank| part(rank) != part(0)) {
            return Err(Error::StartsDiffer { rank, what });
        }
    }
    Ok(())
}

/// The two streams of samples, ready to be opened at any step.
struct Loaders {
    pool: DecodePool,
    sets: [Arc<ShardSet>; 2],
    spec: LoaderSpec,
}

impl Loaders {
    fn new(
        config: &Config,
        sets: [Arc<ShardSet>; 2],
        replicas: std::ops::Range<usize>,
        threads: usize,
    ) -> Loaders {
        let data = &config.data;
        let spec = LoaderSpec {
            px: data.px as u32,
            augment: Augment::RandomResizedCrop { area_min: data.crop_area_min, flip: data.flip },
            seed: config.seed,
            stream: WEIGHTS,
            num_replicas: config.search.replicas as usize,
            replicas,
            batch: config.replica_batch() as usize,
            prefetch: data.prefetch,
            skip_bad: data.skip_bad,
        };
        let threads = if data.decode_threads == 0 { threads } else { data.decode_threads };
        Loaders { pool: DecodePool::new(threads), sets, spec }
    }

    /// Steps of one pass over the training set.
    fn steps_of_data(&self) -> Result<u64> {
        Ok(self.open(WEIGHTS, 0)?.steps_per_epoch())
    }

    fn open(&self, stream: u64, step: u64) -> Result<Loader> {
        let set = Arc::clone(&self.sets[stream as usize]);
        Loader::open(set, LoaderSpec { stream, ..self.spec.clone() }, &self.pool, step)
    }
}

/// Sums of the steps of an epoch; in the checkpoint, so that an epoch that was interrupted reports all its steps.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct EpochSums {
    steps: u64,
    architecture_steps: u64,
    sums: Measures,
    images: u64,
    skipped: u64,
    data_wait_ms: f64,
    reduce_wait_ms: f64,
    wall_s: f64,
}

/// What a checkpoint keeps of the run beside the search.
#[derive(Serialize, Deserialize)]
struct Extra {
    /// The resolved configuration.
    config: String,
    /// Content of the two sets.
    sets: [u64; 2],
    epoch: EpochSums,
    /// Images of both sets so far.
    images: u64,
}

/// What rank 0 alone has.
struct Desk {
    log: MetricsLog,
    progress: Progress,
}

/// What is known of a step before its losses are read.
struct Pending {
    step: u64,
    images: u64,
    wall_s: f64,
    data_wait_ms: f64,
    reduce_wait_ms: f64,
}

/// The run around the search.
struct Run<'a> {
    config: &'a Config,
    world: &'a World,
    timeline: &'a Timeline,
    out: PathBuf,
    /// The command that goes on.
    command: String,
    sets: [u64; 2],
    start: Instant,
    desk: Option<Desk>,
    tally: Tally,
    pending: Vec<Pending>,
    epoch: EpochSums,
    images: u64,
    schedule: crate::schedule::Schedule,
}

impl<'a> Run<'a> {
    /// Makes the run folder, or goes on from its newest good checkpoint: `search` is then where that was. Collective.
    fn begin(
        config: &'a Config,
        args: &SearchArgs,
        world: &'a World,
        search: &mut Search,
        timeline: &'a Timeline,
    ) -> Result<Run<'a>> {
        let out = args.out.clone();
        let sets = [ShardSet::open(&args.train)?.hash(), ShardSet::open(&args.valid)?.hash()];
        let mut run = Run {
            config,
            world,
            timeline,
            command: command_to_go_on(args, world.size()),
            out,
            sets,
            start: Instant::now(),
            desk: None,
            tally: Tally::default(),
            pending: Vec::new(),
            epoch: EpochSums::default(),
            images: 0,
            schedule: crate::schedule::Schedule::of_search(config),
        };
        let folder = checkpoint::folder(&run.out);
        if args.resume {
            // All ranks read the same files; `compare_ranks` before the first step makes sure of it.
            let latest = checkpoint::latest(&folder)?;
            if world.rank() == 0 {
                latest.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
            }
            if let Some((step, saved)) = latest.found {
                let extra = search.restore(&saved)?;
                let extra: Extra = serde_json::from_value(extra)
                    .map_err(|error| Error::CheckpointState(error.to_string()))?;
                run.check_same_run(&extra)?;
                (run.epoch, run.images) = (extra.epoch, extra.images);
                if world.rank() == 0 {
                    println!("resumed after step {step}");
                }
            }
        }
        // Nobody writes before everybody has read.
        world.communicator().barrier()?;
        if world.rank() == 0 {
            run.desk = Some(run.set_up_desk(args.resume, search.step())?);
        }
        run.say_farewell_with(None);
        Ok(run)
    }

    /// The log, the progress and the run folder. Rank 0 only.
    fn set_up_desk(&self, resume: bool, step: u64) -> Result<Desk> {
        let path = self.out.join("metrics.jsonl");
        if !resume && (path.exists() || checkpoint::folder(&self.out).exists()) {
            return Err(Error::RunExists(self.out.clone()));
        }
        fs::create_dir_all(&self.out).map_err(Error::io("create folder", &self.out))?;
        let log = if resume { MetricsLog::resume(&path, step)? } else { MetricsLog::create(&path)? };
        let text = self.config.to_toml();
        let path = self.out.join("config.toml");
        fs::write(&path, &text).map_err(Error::io("write", path))?;
        println!("{text}");
        let world = self.world;
        println!(
            "{} ranks on {} hosts, {} threads each; {} replicas, {} steps; run folder {}\n\
             interrupted, it goes on with: {}",
            world.size(),
            world.num_hosts(),
            world.threads(),
            self.config.search.replicas,
            self.timeline.num_steps(),
            self.out.display(),
            self.command
        );
        let progress = Progress::start(step, self.timeline.num_steps(), self.config.run.log_every);
        Ok(Desk { log, progress })
    }

    /// A run goes on with what it began with, but for `[run]`, which changes no result.
    fn check_same_run(&self, saved: &Extra) -> Result<()> {
        let mut before = Config::parse(&saved.config, "the checkpoint's configuration", &[])?;
        before.run = self.config.run.clone();
        let (before, now) = (before.to_toml(), self.config.to_toml());
        if let Some((before, now)) = before.lines().zip(now.lines()).find(|(before, now)| before != now) {
            return Err(Error::RunChanged { before: before.into(), now: now.into() });
        }
        for (index, name) in ["train", "valid"].iter().enumerate() {
            if saved.sets[index] != self.sets[index] {
                return Err(Error::RunChanged {
                    before: format!("--{name} with content {:016x}", saved.sets[index]),
                    now: format!("{:016x}", self.sets[index]),
                });
            }
        }
        Ok(())
    }

    fn stage_begins(&mut self, search: &Search) -> Result<()> {
        let Some(desk) = &mut self.desk else { return Ok(()) };
        let (number, num_weights) = (search.stage(), search.net().params.num_elements());
        let stage = self.timeline.stages()[number];
        desk.progress.note(&format!(
            "stage {}/{}: k {}, {} operations per edge, {} epochs, {num_weights} weights",
            number + 1,
            self.timeline.stages().len(),
            stage.k,
            stage.ops_kept,
            stage.epochs,
        ));
        desk.log.write(&Record::Stage(StageRecord {
            stage: number as u64 + 1,
            step: search.step(),
            k: stage.k,
            ops_kept: stage.ops_kept,
            epochs: stage.epochs,
            num_weights,
        }))
    }

    /// Notes a step; its losses stay on the device until the next look. Local.
    fn step_done(
        &mut self,
        search: &Search,
        outcome: StepOutcome,
        wall_s: f64,
        data_wait_ms: f64,
    ) -> Result<()> {
        let sides = 1 + u64::from(!outcome.architecture.is_empty());
        self.tally.add(&outcome.weights, &outcome.architecture);
        self.epoch.skipped += outcome.num_skipped as u64;
        self.pending.push(Pending {
            step: search.step(),
            images: sides * self.config.search.global_batch as u64,
            wall_s,
            data_wait_ms,
            reduce_wait_ms: outcome.reduce_wait_ms,
        });
        Ok(())
    }

    /// What is due between two steps: a look at the losses, the end of an epoch or a stage, a comparison over the ranks, a
    /// checkpoint. Collective.
    fn after_step(&mut self, search: &mut Search) -> Result<()> {
        let comm = self.world.communicator();
        let step = search.step();
        let run = &self.config.run;
        let stop = self.world.stop_requested();
        let epoch_ends = step.is_multiple_of(self.timeline.steps_per_epoch);
        let stage_ends = step == self.timeline.steps_of(search.stage()).end;
        let checkpoint_due = stage_ends || stop || step.is_multiple_of(run.checkpoint_every);
        if epoch_ends || checkpoint_due || step.is_multiple_of(run.log_every) {
            self.look()?;
        }
        if epoch_ends {
            self.epoch_ends(search)?;
        }
        if stage_ends && step < self.timeline.num_steps() {
            search.advance()?;
            self.stage_begins(search)?;
        }
        if stage_ends || step.is_multiple_of(run.compare_every) {
            search.compare_ranks(comm)?;
        }
        if checkpoint_due {
            self.checkpoint(search)?;
        }
        if stop {
            if let Some(desk) = &self.desk {
                desk.progress.end();
            }
            self.world.leave();
        }
        Ok(())
    }

    /// Reads the losses of the steps since the last look. Collective.
    fn look(&mut self) -> Result<()> {
        let measures = self.tally.take(self.world.communicator())?;
        let pending = std::mem::take(&mut self.pending);
        for (pending, measures) in pending.iter().zip(&measures) {
            if !measures.loss.is_finite() || !measures.architecture_loss.is_finite() {
                return Err(Error::LossNotFinite {
                    step: pending.step,
                    loss: measures.loss,
                    architecture_loss: measures.architecture_loss,
                });
            }
            self.count(pending, measures)?;
        }
        self.show(&pending, &measures);
        Ok(())
    }

    /// Shows the last of some steps, with the means of all of them.
    fn show(&mut self, pending: &[Pending], measures: &[Measures]) {
        let (Some(desk), Some(last)) = (&mut self.desk, pending.last()) else { return };
        let moment = self.timeline.moment(last.step - 1);
        let mean = |of: fn(&Measures) -> f64| measures.iter().map(of).sum::<f64>() / measures.len() as f64;
        let images: u64 = pending.iter().map(|step| step.images).sum();
        desk.progress.step(&Status {
            stage: moment.stage as u64 + 1,
            num_stages: self.timeline.stages().len() as u64,
            epoch: moment.epoch + 1,
            num_epochs: self.timeline.num_epochs(),
            step: last.step,
            loss: mean(|measures| measures.loss),
            top1: mean(|measures| measures.top1),
            images_per_s: images as f64 / pending.iter().map(|step| step.wall_s).sum::<f64>(),
        });
    }

    /// Adds one step to the epoch; rank 0 logs it.
    fn count(&mut self, pending: &Pending, measures: &Measures) -> Result<()> {
        let moment = self.timeline.moment(pending.step - 1);
        let epoch = &mut self.epoch;
        epoch.steps += 1;
        epoch.architecture_steps += u64::from(moment.architecture);
        epoch.sums.loss += measures.loss;
        epoch.sums.top1 += measures.top1;
        epoch.sums.top5 += measures.top5;
        epoch.sums.architecture_loss += measures.architecture_loss;
        epoch.sums.architecture_top1 += measures.architecture_top1;
        epoch.images += pending.images;
        epoch.data_wait_ms += pending.data_wait_ms;
        epoch.reduce_wait_ms += pending.reduce_wait_ms;
        epoch.wall_s += pending.wall_s;
        self.images += pending.images;
        let Some(desk) = &mut self.desk else { return Ok(()) };
        desk.log.write(&Record::Step(StepRecord {
            stage: moment.stage as u64 + 1,
            epoch: moment.epoch + 1,
            step: pending.step,
            loss: measures.loss,
            top1: measures.top1,
            top5: measures.top5,
            architecture_loss: moment.architecture.then_some(measures.architecture_loss),
            lr: self.schedule.lr(moment.epoch),
            eta_lr: if moment.architecture { self.config.eta.lr } else { 0.0 },
            images_per_s: pending.images as f64 / pending.wall_s,
            data_wait_ms: pending.data_wait_ms,
            reduce_wait_ms: pending.reduce_wait_ms,
        }))?;
        Ok(())
    }

    fn epoch_ends(&mut self, search: &Search) -> Result<()> {
        let epoch = std::mem::take(&mut self.epoch);
        let Some(desk) = &mut self.desk else { return Ok(()) };
        let moment = self.timeline.moment(search.step() - 1);
        let weights = search.mean_weights()?;
        let per_step = |sum: f64| sum / epoch.steps as f64;
        let searched = epoch.architecture_steps > 0;
        let per_search = |sum: f64| searched.then(|| sum / epoch.architecture_steps as f64);
        let record = EpochRecord {
            stage: moment.stage as u64 + 1,
            epoch: moment.epoch + 1,
            step: search.step(),
            steps: epoch.steps,
            loss: per_step(epoch.sums.loss),
            top1: per_step(epoch.sums.top1),
            top5: per_step(epoch.sums.top5),
            architecture_loss: per_search(epoch.sums.architecture_loss),
            architecture_top1: per_search(epoch.sums.architecture_top1),
            lr: self.schedule.lr(moment.epoch),
            images_per_s: epoch.images as f64 / epoch.wall_s,
            data_wait_ms: per_step(epoch.data_wait_ms),
            reduce_wait_ms: per_step(epoch.reduce_wait_ms),
            eta_entropy_normal: super::dirichlet::entropy(&weights[0]),
            eta_entropy_reduce: super::dirichlet::entropy(&weights[1]),
            genotype: search.genotype()?.to_line(),
            skipped_images: epoch.skipped,
            wall_s: epoch.wall_s,
        };
        desk.progress.note(&format!(
            "epoch {}: loss {:.3}, top-1 {:.1} %{}, eta entropy {:.3} / {:.3} nats, {:.1} images/s",
            record.epoch,
            record.loss,
            100.0 * record.top1,
            record
                .architecture_top1
                .map_or(String::new(), |top1| format!(" (architecture set {:.1} %)", 100.0 * top1)),
            record.eta_entropy_normal,
            record.eta_entropy_reduce,
            record.images_per_s,
        ));
        desk.log.write(&Record::Epoch(record))
    }

    /// Writes the state; the log up to here is on disk before. Collective.
    fn checkpoint(&mut self, search: &Search) -> Result<()> {
        let extra =
            Extra { config: self.config.to_toml(), sets: self.sets, epoch: self.epoch, images: self.images };
        let extra = serde_json::to_value(extra).map_err(|error| Error::CheckpointState(error.to_string()))?;
        let state = search.to_checkpoint(self.world.communicator(), extra)?;
        if let Some(desk) = &mut self.desk {
            desk.log.sync()?;
            let folder = checkpoint::folder(&self.out);
            checkpoint::write(&folder, search.step(), &state, self.config.run.checkpoints_kept)?;
        }
        self.say_farewell_with(Some(search.step()));
        Ok(())
    }

    /// What a person is told when a signal ends the run.
    fn say_farewell_with(&self, step: Option<u64>) {
        let newest = step.map(|step| format!("after step {step}"));
        let newest = newest.or_else(|| {
            let steps = checkpoint::list(&checkpoint::folder(&self.out)).ok()?;
            Some(format!("after step {}", steps.into_iter().max()?))
        });
        self.world.set_farewell(match newest {
            Some(newest) => {
                format!("stopped; the newest checkpoint, {newest}, is good. Go on with:\n  {}", self.command)
            }
            None => format!("stopped before the first checkpoint. Begin again with:\n  {}", self.command),
        });
    }

    /// Writes the architecture and the final report. Rank 0 writes; all call.
    fn finished(mut self, search: &Search) -> Result<()> {
        let genotype = search.genotype()?;
        let Some(desk) = &mut self.desk else { return Ok(()) };
        desk.progress.end();
        let json =
            serde_json::to_string_pretty(&genotype).map_err(|error| Error::Genotype(error.to_string()))?;
        for (name, text) in
            [("genotype.json", format!("{json}\n")), ("genotype.txt", format!("{}\n", genotype.to_line()))]
        {
            let path = self.out.join(name);
            fs::write(&path, text).map_err(Error::io("write", path))?;
        }
        let record = FinishRecord {
            step: search.step(),
            stages: self.timeline.stages().len() as u64,
            epochs: self.timeline.num_epochs(),
            images: self.images,
            ranks: self.world.size() as u64,
            genotype: genotype.to_line(),
            wall_s: self.start.elapsed().as_secs_f64(),
        };
        desk.log.write(&Record::Finish(record.clone()))?;
        desk.log.sync()?;
        finish(&self.out, &record)
    }
}

/// The command that goes on with this run.
fn command_to_go_on(args: &SearchArgs, size: usize) -> String {
    let mut words: Vec<String> = Vec::new();
    if size > 1 {
        words.extend(["mpirun".into(), "-n".into(), size.to_string()]);
    }
    words.extend(["drnas-dist".into(), "search-imagenet".into()]);
    for (option, path) in
        [("--config", &args.config), ("--train", &args.train), ("--valid", &args.valid), ("--out", &args.out)]
    {
        words.extend([option.into(), path.display().to_string()]);
    }
    for set in &args.sets {
        words.extend(["--set".into(), set.clone()]);
    }
    words.push("--resume".into());
    let quoted =
        words.iter().map(|word| match word.chars().all(|c| c.is_alphanumeric() || "-_./=,".contains(c)) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        });
    quoted.collect::<Vec<_>>().join(" ")
}
