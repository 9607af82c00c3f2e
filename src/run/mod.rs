//! A run: from checked inputs to the result, with its log, its checkpoints and its end, whatever it trains.

pub(crate) mod error;
pub mod evaluate;
mod gather;
mod journal;
mod lock;
mod resume;
pub mod search;
pub mod start;
mod streams;
pub mod table_lookup;
mod training;

pub use error::Error;

use crate::cli::RunArgs;
use crate::comm::{Communicator, work_of_rank_0};
use crate::config::Settings;
use crate::error::Result;
use crate::files;
use crate::process::console;
use crate::process::exit::at_last;
use crate::process::messages::{note, print, say, say_into};
use crate::process::phase::{self, Phase};
use crate::report::{finish, finished, unfinish};
use crate::train::tally::{StepOutcome, Tally, timed};
use crate::train::{self, checkpoint};
use crate::world::World;
use checkpoint::Writer;
use gather::gather_lines;
use journal::{Journal, Sums, UnreadStep};
use lock::Lock;
use resume::{Extra, resume};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;
use training::{Training, inputs};
use xxhash_rust::xxh3::xxh3_64;

/// Overrules the command that an interrupted run is told to go on with: scripts that start one set it to themselves.
const COMMAND_VARIABLE: &str = "DRNAS_COMMAND";

/// What a run writes in the course of it, beside checkpoints.
const RESULTS: [&str; 6] =
    ["metrics.jsonl", "report.txt", "finished.json", "best.safetensors", "genotype.json", "genotype.txt"];

/// What every rank says goes into this file of the run folder too: launchers lose some of it when a job is ended.
const MESSAGES_FILE: &str = "messages.log";

/// Trains to the end. Called by all ranks.
fn run<T: Training>(mut training: T, args: &RunArgs, world: &World) -> Result<()> {
    let comm = world.communicator();
    phase::begin(Phase::StartUp)?;
    compare_starts(&training, comm)?;
    let Some(mut run) = Run::begin(&mut training, args, world)? else {
        return Ok(());
    };
    training.open_data()?;
    training.state().compare_ranks(comm)?;
    while training.step() < training.num_steps() {
        phase::set_step(training.step() + 1);
        let start = Instant::now();
        let outcome = training.train_step(comm)?;
        run.note_step(&training, &outcome, start.elapsed().as_secs_f64());
        run.after_step(&mut training)?;
    }
    run.finish(&training)
}

/// Compares over the ranks what each was started with; names the first thing that differs. Collective.
fn compare_starts(training: &impl Training, comm: &dyn Communicator) -> Result<()> {
    let program = fs::read("/proc/self/exe").map_or(0, |bytes| xxh3_64(&bytes));
    let mut mine = vec![
        ("program (another version is installed there)".to_owned(), program),
        ("configuration".to_owned(), training.settings().hash()),
    ];
    mine.extend(training.sets().iter().map(|(name, hash)| (format!("--{name}"), *hash)));
    let bytes: Vec<u8> = mine.iter().flat_map(|(_, hash)| hash.to_le_bytes()).collect();
    let all = comm.all_gather(&bytes)?;
    for (index, (what, _)) in mine.iter().enumerate() {
        let part = |rank: usize| &all[rank][8 * index..8 * (index + 1)];
        if let Some(rank) = (1..all.len()).find(|&rank| part(rank) != part(0)) {
            return Err(Error::StartsDiffer { rank, what: what.clone() }.into());
        }
    }
    Ok(())
}

/// The run around what is trained.
struct Run<'a> {
    world: &'a World,
    out: PathBuf,
    /// The command that goes on.
    command: String,
    /// Rank 0 alone has them: it writes for all.
    journal: Option<Journal>,
    writer: Option<Writer>,
    lock: Option<Lock>,
    /// Losses that nobody has looked at, and what else is known of their steps.
    tally: Tally,
    pending: Vec<UnreadStep>,
    /// Images that this rank has replaced since the last look.
    replaced: Vec<String>,
    /// Milliseconds for which the next step was held up by a checkpoint.
    checkpoint_ms: f64,
}

impl<'a> Run<'a> {
    /// Makes the run folder, or goes on from its newest good checkpoint: `training` is then where that was. `None` when
    /// the run has finished already. Collective.
    fn begin(training: &mut impl Training, args: &RunArgs, world: &'a World) -> Result<Option<Run<'a>>> {
        let mut run = Run {
            world,
            out: args.out.clone(),
            command: std::env::var(COMMAND_VARIABLE).unwrap_or_else(|_| go_on(world.size())),
            journal: None,
            writer: None,
            lock: None,
            tally: Tally::default(),
            pending: Vec::new(),
            replaced: Vec::new(),
            checkpoint_ms: 0.0,
        };
        run.lock_folder()?;
        let resumed = if args.resume {
            phase::begin(Phase::Checkpoint)?;
            resume(&run.out, world.rank() == 0, training)?
        } else {
            run.refuse_old(training)?
        };
        // Nobody writes before everybody has read.
        world.communicator().barrier()?;
        phase::begin(Phase::StartUp)?;
        if resumed.is_some()
            && training.step() == training.num_steps()
            && let Some(report) = finished(&run.out)?
        {
            if world.rank() == 0 {
                print(&format!("this run has finished:\n\n{report}"));
            }
            return Ok(None);
        }
        if world.rank() == 0 {
            unfinish(&run.out)?;
            run.introduce(training)?;
            let mut journal = Journal::open(training, &run.out, resumed.clone(), world.size())?;
            match &resumed {
                Some((step, _)) => {
                    let text = format!("resumed after step {step}");
                    print(&text);
                    note(&text);
                }
                None => journal.stage(training)?,
            }
            run.journal = Some(journal);
            let kept = training.settings().run().checkpoints_kept;
            run.writer = Some(Writer::new(checkpoint::folder(&run.out), kept));
        }
        run.prepare_farewell(resumed.map(|(step, _)| step));
        Ok(Some(run))
    }

    /// Nobody else writes this run: rank 0 locks the folder before anyone reads it. Messages of any rank go there from now
    /// on. Collective.
    fn lock_folder(&mut self) -> Result<()> {
        self.lock = work_of_rank_0(self.world.communicator(), |each_look| {
            fs::create_dir_all(&self.out).map_err(files::io("create folder", &self.out))?;
            Lock::acquire(&self.out, self.world.host(), each_look)
        })?;
        if let Some(lock) = &self.lock {
            at_last(lock.releaser());
            console::keep_in(&self.out)?;
            if self.world.size() == 1 {
                // Of several ranks the hook of `launch` says it.
                let usual = std::panic::take_hook();
                std::panic::set_hook(Box::new(move |panic| {
                    console::log(&panic.to_string());
                    usual(panic)
                }));
            }
        }
        if self.world.rank() != 0 {
            let out = self.out.clone();
            at_last(move || lock::remove_if_dead(&out));
        }
        say_into(&self.out.join(MESSAGES_FILE));
        Ok(())
    }

    /// Without `--resume` no older run is touched, nor what else would be replaced.
    fn refuse_old(&self, training: &impl Training) -> Result<Option<(u64, Sums)>> {
        let inputs = inputs(training)?;
        let is_input = |name: &str| inputs.iter().any(|(input, _)| *input == name);
        let result = |name: &&str| !is_input(name) && self.out.join(name).exists();
        let other = |(name, text): &(&str, String)| {
            std::fs::read(self.out.join(name)).is_ok_and(|there| there != text.as_bytes())
        };
        let old =
            checkpoint::folder(&self.out).exists() || RESULTS.iter().any(result) || inputs.iter().any(other);
        if old { Err(Error::RunExists(self.out.clone()).into()) } else { Ok(None) }
    }

    /// Says and saves what the run is. Rank 0 only.
    fn introduce(&self, training: &impl Training) -> Result<()> {
        for (name, text) in inputs(training)? {
            files::write(&self.out.join(name), text.as_bytes())?;
        }
        print(&training.settings().to_toml());
        let world = self.world;
        print(&format!(
            "{} ranks on {} hosts, {} threads each; {} replicas, {} steps; run folder {}\n\
             interrupted, it goes on with: {}",
            world.size(),
            world.num_hosts(),
            world.threads(),
            training.settings().replicas(),
            training.num_steps(),
            self.out.display(),
            self.command
        ));
        // Which of the runs of a requeued job this is.
        if let (Ok(job), count) = (std::env::var("SLURM_JOB_ID"), std::env::var("SLURM_RESTART_COUNT")) {
            let count = count.unwrap_or_else(|_| "0".into());
            say(&format!("SLURM_JOB_ID {job}, SLURM_RESTART_COUNT {count}, from step {}", training.step()));
        }
        Ok(())
    }

    /// Notes a step; its losses stay on the device until the next look. Local.
    fn note_step(&mut self, training: &impl Training, outcome: &StepOutcome, wall_s: f64) {
        let batches = 1 + u64::from(!outcome.architecture.is_empty());
        self.tally.add(outcome);
        self.replaced.extend(outcome.replaced.iter().cloned());
        self.pending.push(UnreadStep {
            step: training.step(),
            images: batches * training.settings().global_batch() as u64,
            wall_s,
            data_wait_ms: outcome.data_wait_ms,
            reduce_wait_ms: outcome.reduce_wait_ms,
            checkpoint_ms: std::mem::take(&mut self.checkpoint_ms),
        });
        if let Some(journal) = &mut self.journal {
            journal.step_done(training);
        }
    }

    /// What is due between two steps: a look at the losses, the end of an epoch or a stage, a comparison over the ranks, a
    /// checkpoint. The log of a step is written before its checkpoint. Collective.
    fn after_step(&mut self, training: &mut impl Training) -> Result<()> {
        let comm = self.world.communicator();
        let step = training.step();
        let run = training.settings().run();
        let compare_due = step.is_multiple_of(run.compare_every);
        let stop = self.asked_to_stop()?;
        let epoch_ends = step.is_multiple_of(training.steps_per_epoch());
        let stage_ends = training.stage_ends();
        let checkpoint_due = stage_ends || stop || step.is_multiple_of(run.checkpoint_every);
        if epoch_ends || checkpoint_due || step.is_multiple_of(run.log_every) {
            self.look(training)?;
        }
        if epoch_ends {
            training.end_epoch(comm)?;
            if let Some(journal) = &mut self.journal {
                journal.epoch(training)?;
            }
        }
        if stage_ends && step < training.num_steps() {
            phase::begin(Phase::StageChange)?;
            training.advance()?;
            if let Some(journal) = &mut self.journal {
                journal.stage(training)?;
            }
        }
        if stage_ends || compare_due {
            training.state().compare_ranks(comm)?;
        }
        if checkpoint_due {
            let mut ms = 0.0;
            timed(&mut ms, || self.checkpoint(training))?;
            self.checkpoint_ms += ms;
        } else {
            let written = self.writer.as_mut().map_or(Ok(None), Writer::poll)?;
            self.note_checkpoint(written);
        }
        // The last step ends the run anyway.
        if stop && step < training.num_steps() {
            let written = self.writer.as_mut().map_or(Ok(None), Writer::wait)?;
            self.note_checkpoint(written);
            if let Some(journal) = &self.journal {
                journal.close();
            }
            self.world.leave();
        }
        Ok(())
    }

    /// Whether any rank was asked to stop; the same answer on all. One byte of each, through host memory: nothing waits
    /// for a GPU. Collective.
    fn asked_to_stop(&self) -> Result<bool> {
        let mine = u8::from(self.world.stop_requested());
        Ok(self.world.communicator().all_gather(&[mine])?.iter().any(|asked| asked[0] != 0))
    }

    /// Reads the losses of the steps since the last look. Collective.
    fn look(&mut self, training: &impl Training) -> Result<()> {
        phase::begin(Phase::Metrics)?;
        let measures = self.tally.take(self.world.communicator())?;
        let pending = std::mem::take(&mut self.pending);
        for (pending, measures) in pending.iter().zip(&measures) {
            if !measures.loss.is_finite() || !measures.architecture_loss.is_finite() {
                return Err(train::Error::LossNotFinite {
                    step: pending.step,
                    loss: measures.loss,
                    architecture_loss: measures.architecture_loss,
                }
                .into());
            }
        }
        let card_memory_mib = match self.world.context() {
            Some(context) => {
                let (free, total) = context.memory_bytes()?;
                Some((total - free) as f64 / f64::from(1 << 20))
            }
            None => None,
        };
        // The same number on all ranks: they exchange names when there is one, and hardly ever.
        let replaced = match measures.iter().any(|measures| measures.skipped > 0.0) {
            true => gather_lines(&std::mem::take(&mut self.replaced), self.world.communicator())?,
            false => Vec::new(),
        };
        match &mut self.journal {
            Some(journal) => {
                journal.replaced(training.step(), replaced)?;
                journal.steps(training, &pending, &measures, card_memory_mib)
            }
            None => Ok(()),
        }
    }

    /// Begins to write the state, rank 0 for all; training goes on while a thread writes it. An error shows at one of the
    /// next steps. Collective.
    fn checkpoint(&mut self, training: &impl Training) -> Result<()> {
        phase::begin(Phase::Checkpoint)?;
        training.state().check_finite()?;
        let extra = self.journal.as_ref().map(|journal| Extra::of(training, &journal.sums)).transpose()?;
        let state = training.state().to_checkpoint(self.world.communicator(), extra)?;
        if let (Some(journal), Some(writer), Some(lock)) = (&self.journal, &mut self.writer, &self.lock)
            && let Some(state) = state
        {
            lock.check()?;
            let written = writer.wait()?;
            writer.start(training.step(), state, journal.syncer()?)?;
            self.note_checkpoint(written);
        }
        Ok(())
    }

    /// A checkpoint is whole: from now on a run that ends goes on from there.
    fn note_checkpoint(&self, step: Option<u64>) {
        if step.is_some() {
            self.prepare_farewell(step);
        }
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

    /// Writes the results and the final report. Rank 0 writes; all call.
    fn finish(mut self, training: &impl Training) -> Result<()> {
        // Until the last checkpoint is whole, rank 0 is where it was.
        self.writer.as_mut().map_or(Ok(None), Writer::wait)?;
        phase::begin(Phase::End)?;
        if let Some(journal) = &mut self.journal {
            finish(&self.out, training.step(), &journal.finish(training, &self.out)?)?;
            note(&format!("finished after step {}", training.step()));
        }
        Ok(())
    }
}

/// The command that goes on with a run of `size` ranks: as it was typed, with `--resume`.
fn go_on(size: usize) -> String {
    let mut words: Vec<String> = Vec::new();
    if size > 1 {
        words.extend(["mpirun", "--bind-to", "none", "-n", &size.to_string()].map(String::from));
    }
    words.extend(std::env::args());
    if !words.iter().any(|word| word == "--resume") {
        words.push("--resume".into());
    }
    let plain = |word: &str| word.chars().all(|c| c.is_alphanumeric() || "-_./=,".contains(c));
    let quoted = words.iter().map(|word| match plain(word) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}
