//! The run of a search: from checked inputs to the found architecture, with its log, its checkpoints and its end.

mod journal;

use crate::checkpoint;
use crate::cli::SearchArgs;
use crate::comm::Communicator;
use crate::config::Config;
use crate::data::{Augment, DecodePool, Loader, LoaderSpec, ShardSet};
use crate::error::{Error, Result};
use crate::launch::World;
use crate::report::{REPORT_FILE, finish};
use crate::search::tally::Tally;
use crate::search::timeline::Timeline;
use crate::search::{Search, StepOutcome};
use journal::{Journal, Pending, Sums};
use serde::{Deserialize, Serialize};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tch::Device;
use xxhash_rust::xxh3::xxh3_64;

/// Streams of samples, as the loaders number them.
const WEIGHTS: u64 = 0;
const ARCHITECTURE: u64 = 1;

/// Overrules the command that an interrupted run is told to go on with: scripts that start one set it to themselves.
const COMMAND_VARIABLE: &str = "DRNAS_COMMAND";

/// Searches as `args` say. Called by all ranks.
pub fn run(config: &Config, args: &SearchArgs, world: &World) -> Result<()> {
    let comm = world.communicator();
    config.check_ranks(world.size())?;
    let sets = [open(&args.train)?, open(&args.valid)?];
    check_sets(config, args, &sets)?;
    compare_starts(config, &sets, comm)?;

    let per_rank = config.search.replicas as usize / world.size();
    let replicas = world.rank() * per_rank..(world.rank() + 1) * per_rank;
    let loaders = Loaders::new(config, sets, replicas.clone(), world.threads());
    let timeline = Timeline::new(config, loaders.steps_per_pass()?);
    let mut search = Search::new(config, timeline.clone(), replicas, Device::Cpu);

    let Some(mut run) = Run::begin(config, args, world, &loaders, &mut search, &timeline)? else {
        return Ok(());
    };
    let mut weights = loaders.open(WEIGHTS, search.step())?;
    let mut architecture = loaders.open(ARCHITECTURE, timeline.architecture_steps_before(search.step()))?;
    search.compare_ranks(comm)?;
    while search.step() < timeline.num_steps() {
        let start = Instant::now();
        let outcome = search.bilevel_step(&mut weights, &mut architecture, comm)?;
        let data_wait_ms = weights.wait_ms() + architecture.wait_ms();
        run.note_step(&search, &outcome, start.elapsed().as_secs_f64(), data_wait_ms);
        run.after_step(&mut search)?;
    }
    run.finish(&search)
}

fn open(folder: &Path) -> Result<Arc<ShardSet>> {
    Ok(Arc::new(ShardSet::open(folder)?))
}

/// What has to be true of the two sets.
fn check_sets(config: &Config, args: &SearchArgs, sets: &[Arc<ShardSet>; 2]) -> Result<()> {
    for set in sets {
        config.check_classes(set.num_classes())?;
    }
    if sets[0].hash() == sets[1].hash() {
        return Err(Error::SameSets { train: args.train.clone(), valid: args.valid.clone() });
    }
    if sets[0].classes() != sets[1].classes() {
        return Err(Error::ConfigCheck(format!(
            "{} and {} name their classes differently: pack both from one folder",
            args.train.display(),
            args.valid.display()
        )));
    }
    Ok(())
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
    fn new(config: &Config, sets: [Arc<ShardSet>; 2], replicas: Range<usize>, threads: usize) -> Loaders {
        let data = &config.data;
        let spec = LoaderSpec {
            px: data.px as u32,
            augment: Augment::train(data),
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

    /// Steps of one pass over the training set; each set must have one at least.
    fn steps_per_pass(&self) -> Result<u64> {
        let orders: Vec<_> = self.sets.iter().map(|set| self.spec.order(set)).collect();
        for (order, set) in orders.iter().zip(&self.sets) {
            order.check(set.dir())?;
        }
        Ok(orders[WEIGHTS as usize].steps_per_epoch())
    }

    fn open(&self, stream: u64, step: u64) -> Result<Loader> {
        let set = Arc::clone(&self.sets[stream as usize]);
        Loader::open(set, LoaderSpec { stream, ..self.spec.clone() }, &self.pool, step)
    }
}

/// What a checkpoint keeps beside the search.
#[derive(Serialize, Deserialize)]
struct Extra {
    /// The resolved configuration.
    config: String,
    /// Content of the two sets.
    sets: [u64; 2],
    sums: Sums,
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
    /// Rank 0 alone has one.
    journal: Option<Journal>,
    /// Losses that nobody has looked at, and what else is known of their steps.
    tally: Tally,
    pending: Vec<Pending>,
}

impl<'a> Run<'a> {
    /// Makes the run folder, or goes on from its newest good checkpoint: `search` is then where that was. `None` when the
    /// run has finished already. Collective.
    fn begin(
        config: &'a Config,
        args: &SearchArgs,
        world: &'a World,
        loaders: &Loaders,
        search: &mut Search,
        timeline: &'a Timeline,
    ) -> Result<Option<Run<'a>>> {
        let mut run = Run {
            config,
            world,
            timeline,
            out: args.out.clone(),
            command: std::env::var(COMMAND_VARIABLE).unwrap_or_else(|_| go_on(args, world.size())),
            sets: [loaders.sets[0].hash(), loaders.sets[1].hash()],
            journal: None,
            tally: Tally::default(),
            pending: Vec::new(),
        };
        let resumed = if args.resume { run.resume(search)? } else { run.refuse_old()? };
        // Nobody writes before everybody has read.
        world.communicator().barrier()?;
        let finished = resumed.is_some() && search.step() == timeline.num_steps();
        if finished && run.out.join(REPORT_FILE).exists() {
            if world.rank() == 0 {
                let path = run.out.join(REPORT_FILE);
                let report = fs::read_to_string(&path).map_err(Error::io("read", path))?;
                println!("this run has finished:\n\n{report}");
            }
            return Ok(None);
        }
        if world.rank() == 0 {
            run.introduce()?;
            let mut journal = Journal::open(config, timeline, &run.out, resumed)?;
            match resumed {
                Some((step, _)) => println!("resumed after step {step}"),
                None => journal.stage(search)?,
            }
            run.journal = Some(journal);
        }
        run.prepare_farewell(resumed.map(|(step, _)| step));
        Ok(Some(run))
    }

    /// Without `--resume` no older run is touched.
    fn refuse_old(&self) -> Result<Option<(u64, Sums)>> {
        let old = self.out.join("metrics.jsonl").exists() || checkpoint::folder(&self.out).exists();
        if old { Err(Error::RunExists(self.out.clone())) } else { Ok(None) }
    }

    /// Puts `search` where the newest good checkpoint was. All ranks read the same files; `compare_ranks` before the first
    /// step makes sure of it.
    fn resume(&self, search: &mut Search) -> Result<Option<(u64, Sums)>> {
        let folder = checkpoint::folder(&self.out);
        let latest = checkpoint::latest(&folder)?;
        if self.world.rank() == 0 {
            latest.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        }
        let Some((step, saved)) = latest.found else {
            // To begin anew would drop what the log knows of the old run.
            return match latest.warnings.len() {
                0 => Ok(None),
                count => Err(Error::NoGoodCheckpoint { folder, count }),
            };
        };
        let extra: Extra = Search::extra(&saved)?;
        self.check_same_run(&extra)?;
        search.restore(&saved)?;
        Ok(Some((step, extra.sums)))
    }

    /// A run goes on with what it began with, but for `[run]` and what decodes images, which change results by rounding at most.
    fn check_same_run(&self, saved: &Extra) -> Result<()> {
        let mut before = Config::parse(&saved.config, "the checkpoint's configuration", &[])?;
        before.run = self.config.run.clone();
        before.data.decode_threads = self.config.data.decode_threads;
        before.data.prefetch = self.config.data.prefetch;
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

    /// Says and saves what the run is. Rank 0 only.
    fn introduce(&self) -> Result<()> {
        fs::create_dir_all(&self.out).map_err(Error::io("create folder", &self.out))?;
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
        Ok(())
    }

    /// Notes a step; its losses stay on the device until the next look. Local.
    fn note_step(&mut self, search: &Search, outcome: &StepOutcome, wall_s: f64, data_wait_ms: f64) {
        let batches = 1 + u64::from(!outcome.architecture.is_empty());
        self.tally.add(&outcome.weights, &outcome.architecture, outcome.num_skipped);
        self.pending.push(Pending {
            step: search.step(),
            images: batches * self.config.search.global_batch as u64,
            wall_s,
            data_wait_ms,
            reduce_wait_ms: outcome.reduce_wait_ms,
        });
    }

    /// What is due between two steps: a look at the losses, the end of an epoch or a stage, a comparison over the ranks, a
    /// checkpoint. The log of a step is written before its checkpoint. Collective.
    fn after_step(&mut self, search: &mut Search) -> Result<()> {
        let step = search.step();
        let run = &self.config.run;
        let stop = self.world.stop_requested(); // of a world of one
        let epoch_ends = step.is_multiple_of(self.timeline.steps_per_epoch);
        let stage_ends = step == self.timeline.steps_of(search.stage()).end;
        let checkpoint_due = stage_ends || stop || step.is_multiple_of(run.checkpoint_every);
        if epoch_ends || checkpoint_due || step.is_multiple_of(run.log_every) {
            self.look()?;
        }
        if epoch_ends && let Some(journal) = &mut self.journal {
            journal.epoch(search)?;
        }
        if stage_ends && step < self.timeline.num_steps() {
            search.advance()?;
            if let Some(journal) = &mut self.journal {
                journal.stage(search)?;
            }
        }
        if stage_ends || step.is_multiple_of(run.compare_every) {
            search.compare_ranks(self.world.communicator())?;
        }
        if checkpoint_due {
            self.checkpoint(search)?;
        }
        if stop {
            if let Some(journal) = &self.journal {
                journal.close();
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
        }
        match &mut self.journal {
            Some(journal) => journal.steps(&pending, &measures),
            None => Ok(()),
        }
    }

    /// Writes the state, rank 0 for all. Collective.
    fn checkpoint(&mut self, search: &Search) -> Result<()> {
        search.check_finite()?;
        let extra = self.journal.as_ref().map(|journal| Extra {
            config: self.config.to_toml(),
            sets: self.sets,
            sums: journal.sums,
        });
        let state = search.to_checkpoint(self.world.communicator(), extra)?;
        if let (Some(journal), Some(state)) = (&mut self.journal, state) {
            journal.sync()?;
            let folder = checkpoint::folder(&self.out);
            checkpoint::write(&folder, search.step(), &state, self.config.run.checkpoints_kept)?;
        }
        self.prepare_farewell(Some(search.step()));
        Ok(())
    }

    /// What a person is told when a signal ends the run.
    fn prepare_farewell(&self, newest: Option<u64>) {
        self.world.set_farewell(match newest {
            Some(step) => format!(
                "stopped; the newest checkpoint, after step {step}, is good. Go on with:\n  {}",
                self.command
            ),
            None => format!("stopped before the first checkpoint. Begin again with:\n  {}", self.command),
        });
    }

    /// Writes the architecture and the final report. Rank 0 writes; all call.
    fn finish(mut self, search: &Search) -> Result<()> {
        match &mut self.journal {
            Some(journal) => finish(&self.out, &journal.finish(search, self.world.size())?),
            None => Ok(()),
        }
    }
}

/// The command that goes on with a run of `size` ranks.
fn go_on(args: &SearchArgs, size: usize) -> String {
    let mut words: Vec<String> = Vec::new();
    if size > 1 {
        words.extend(["mpirun", "--bind-to", "none", "-n", &size.to_string()].map(String::from));
    }
    let program = std::env::args().next().unwrap_or_else(|| "drnas-dist".into());
    words.extend([program, "search-imagenet".into()]);
    for (option, path) in
        [("--config", &args.config), ("--train", &args.train), ("--valid", &args.valid), ("--out", &args.out)]
    {
        words.extend([option.into(), path.display().to_string()]);
    }
    for set in &args.sets {
        words.extend(["--set".into(), set.clone()]);
    }
    words.push("--resume".into());
    let plain = |word: &str| word.chars().all(|c| c.is_alphanumeric() || "-_./=,".contains(c));
    let quoted = words.iter().map(|word| match plain(word) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}
