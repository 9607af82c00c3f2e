//! Runs a search or an evaluation: training loop, log, checkpoints, resume and exit.

pub(crate) mod error;
pub mod evaluate;
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
use crate::comm::{Communicator, all_gather_values, run_on_rank_0};
use crate::config::Settings;
use crate::error::Result;
use crate::files;
use crate::process::console;
use crate::process::exit::on_exit;
use crate::process::messages::{counted, log_to_file, print_stderr, print_stdout, set_log_file};
use crate::process::phase::{self, Phase};
use crate::report::{finish, finished, unfinish};
use crate::train::tally::{StepOutcome, Tally, timed};
use crate::train::{self, checkpoint};
use crate::world::World;
use checkpoint::Writer;
use journal::{Journal, Sums, UnreadStep};
use lock::Lock;
use resume::{Extra, resume};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;
use training::{Training, inputs};
use xxhash_rust::xxh3::xxh3_64;

/// Environment variable: the command that an interrupted run prints for resuming it. Launch scripts set it to their own
/// command line.
const COMMAND_VARIABLE: &str = "DRNAS_COMMAND";

/// Files that a run writes, apart from its checkpoints.
const RESULTS: [&str; 6] =
    ["metrics.jsonl", "report.txt", "finished.json", "best.safetensors", "genotype.json", "genotype.txt"];

/// File in the run folder: warnings and errors of all ranks. When a job is killed, launchers lose some of them.
const MESSAGES_FILE: &str = "messages.log";

/// Trains to the last step and writes the results. Called by all ranks.
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
        run.record_step(&training, outcome, start.elapsed().as_secs_f64());
        run.after_step(&mut training)?;
    }
    run.finish(&training)
}

/// Checks that all ranks were started with the same inputs; the error names the first difference. Collective.
fn compare_starts(training: &impl Training, comm: &dyn Communicator) -> Result<()> {
    let program = fs::read("/proc/self/exe").map_or(0, |bytes| xxh3_64(&bytes));
    let mut mine = vec![
        ("version of the program".to_owned(), program),
        ("configuration".to_owned(), training.settings().hash()),
    ];
    mine.extend(training.input_hashes().iter().map(|(name, hash)| (format!("--{name}"), *hash)));
    let bytes: Vec<u8> = mine.iter().flat_map(|(_, hash)| hash.to_le_bytes()).collect();
    let all = comm.all_gather(&bytes)?;
    for (index, (what, _)) in mine.iter().enumerate() {
        let part = |rank: usize| &all[rank][8 * index..8 * (index + 1)];
        if let Some(rank) = (1..all.len()).find(|&rank| part(rank) != part(0)) {
            return Err(Error::InputsDiffer { rank, what: what.clone() }.into());
        }
    }
    Ok(())
}

/// A run in progress, without the training state.
struct Run<'a> {
    world: &'a World,
    out: PathBuf,
    /// Command that resumes the run.
    command: String,
    /// `None` except on rank 0, which writes for all ranks; the same holds for `writer` and `lock`.
    journal: Option<Journal>,
    writer: Option<Writer>,
    lock: Option<Lock>,
    /// Losses that have not been read back yet, and their steps.
    tally: Tally,
    pending: Vec<UnreadStep>,
    /// Images that this rank has replaced since the losses were last read back.
    replaced: Vec<String>,
    /// Delay of the next step caused by a checkpoint, milliseconds.
    checkpoint_ms: f64,
}

impl<'a> Run<'a> {
    /// Creates the run folder, or restores `training` from its newest valid checkpoint. Returns `None` if the run has
    /// already finished. Collective.
    fn begin(training: &mut impl Training, args: &RunArgs, world: &'a World) -> Result<Option<Run<'a>>> {
        let mut run = Run {
            world,
            out: args.out.clone(),
            command: std::env::var(COMMAND_VARIABLE).unwrap_or_else(|_| resume_command(world.size())),
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
        // No rank writes to the folder before all ranks have read it.
        world.communicator().barrier()?;
        phase::begin(Phase::StartUp)?;
        if resumed.is_some()
            && training.step() == training.num_steps()
            && let Some(report) = finished(&run.out)?
        {
            if world.rank() == 0 {
                print_stdout(&format!("this run has finished:\n\n{report}"));
            }
            return Ok(None);
        }
        if world.rank() == 0 {
            unfinish(&run.out)?;
            run.print_overview(training)?;
            let mut journal = Journal::open(training, &run.out, resumed.clone(), world)?;
            match &resumed {
                Some((step, _)) => {
                    let text = format!("resumed after step {step}");
                    print_stdout(&text);
                    log_to_file(&text);
                }
                None => journal.stage(training)?,
            }
            run.journal = Some(journal);
            let kept = training.settings().run().checkpoints_kept;
            run.writer = Some(Writer::new(checkpoint::folder(&run.out), kept));
        }
        run.update_exit_message(resumed.map(|(step, _)| step));
        Ok(Some(run))
    }

    /// Locks the run folder on rank 0 before any rank reads it, and from then on logs the messages of all ranks there.
    /// Collective.
    fn lock_folder(&mut self) -> Result<()> {
        self.lock = run_on_rank_0(self.world.communicator(), |keep_waiting| {
            fs::create_dir_all(&self.out).map_err(files::io("create folder", &self.out))?;
            Lock::acquire(&self.out, self.world.host(), keep_waiting)
        })?;
        if let Some(lock) = &self.lock {
            on_exit(lock.releaser());
            console::open_log(&self.out)?;
            if self.world.size() == 1 {
                // With several ranks, the panic hook of `World` does this.
                let usual = std::panic::take_hook();
                std::panic::set_hook(Box::new(move |panic| {
                    console::log(&panic.to_string());
                    usual(panic)
                }));
            }
        }
        if self.world.rank() != 0 {
            let out = self.out.clone();
            on_exit(move || lock::remove_if_dead(&out));
        }
        set_log_file(&self.out.join(MESSAGES_FILE));
        Ok(())
    }

    /// Without `--resume`: returns an error if the folder contains a run or a file that would be overwritten.
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

    /// Writes the inputs to the run folder and prints the configuration and the size of the run. Rank 0 only.
    fn print_overview(&self, training: &impl Training) -> Result<()> {
        for (name, text) in inputs(training)? {
            files::write(&self.out.join(name), text.as_bytes())?;
        }
        print_stdout(&training.settings().to_toml());
        let world = self.world;
        print_stdout(&format!(
            "{} on {}, {} per rank; {}, {}; run folder {}\nTo resume if interrupted: {}",
            counted(world.size() as u64, "rank"),
            counted(world.num_hosts() as u64, "host"),
            counted(world.threads() as u64, "thread"),
            counted(training.settings().replicas() as u64, "replica"),
            counted(training.num_steps(), "step"),
            self.out.display(),
            self.command
        ));
        // Distinguishes this start from the others of a requeued Slurm job.
        if let (Ok(job), count) = (std::env::var("SLURM_JOB_ID"), std::env::var("SLURM_RESTART_COUNT")) {
            let count = count.unwrap_or_else(|_| "0".into());
            print_stderr(&format!(
                "SLURM_JOB_ID {job}, SLURM_RESTART_COUNT {count}, from step {}",
                training.step()
            ));
        }
        Ok(())
    }

    /// Records a step; its losses stay on the device until they are read back. Local.
    fn record_step(&mut self, training: &impl Training, outcome: StepOutcome, wall_s: f64) {
        let batches = 1 + u64::from(!outcome.architecture.is_empty());
        self.tally.add(&outcome);
        self.replaced.extend(outcome.replaced);
        self.pending.push(UnreadStep {
            step: training.step(),
            images: batches * training.settings().global_batch() as u64,
            wall_s,
            data_wait_ms: outcome.data_wait_ms,
            reduce_waits: outcome.reduce_waits,
            checkpoint_ms: std::mem::take(&mut self.checkpoint_ms),
        });
        if let Some(journal) = &mut self.journal {
            journal.step_done(training);
        }
    }

    /// Performs the work that is due after a step: reads back the losses, ends an epoch or a stage, compares the ranks,
    /// writes a checkpoint. The log of a step is written before its checkpoint. Collective.
    fn after_step(&mut self, training: &mut impl Training) -> Result<()> {
        let comm = self.world.communicator();
        let step = training.step();
        let run = training.settings().run();
        let compare_due = step.is_multiple_of(run.compare_every);
        let stop = comm.stop_requested();
        let epoch_ends = step.is_multiple_of(training.steps_per_epoch());
        let stage_ends = training.stage_ends();
        let checkpoint_due = stage_ends || stop || step.is_multiple_of(run.checkpoint_every);
        if epoch_ends || checkpoint_due || step.is_multiple_of(run.log_every) {
            self.flush_losses(training)?;
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
            self.record_checkpoint(written);
        }
        // After the last step, the run finishes normally instead.
        if stop && step < training.num_steps() {
            let written = self.writer.as_mut().map_or(Ok(None), Writer::wait)?;
            self.record_checkpoint(written);
            if let Some(journal) = &self.journal {
                journal.close();
            }
            self.world.exit_stopped();
        }
        Ok(())
    }

    /// Reads back and logs the losses of the steps since the last call. Collective.
    fn flush_losses(&mut self, training: &impl Training) -> Result<()> {
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
        // `skipped` is the same on all ranks, so they gather the names only when an image was replaced, which is rare.
        let replaced = match measures.iter().any(|measures| measures.skipped > 0.0) {
            true => {
                let comm = self.world.communicator();
                all_gather_values(comm, &std::mem::take(&mut self.replaced))?.concat()
            }
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

    /// Starts writing a checkpoint on rank 0; training continues while a thread writes it. A write error is returned
    /// after one of the next steps. Collective.
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
            self.record_checkpoint(written);
        }
        Ok(())
    }

    /// Updates the exit message if a checkpoint (of `step`) has been completed.
    fn record_checkpoint(&self, step: Option<u64>) {
        if step.is_some() {
            self.update_exit_message(step);
        }
    }

    /// Sets the message printed when a signal ends the run.
    fn update_exit_message(&self, newest: Option<u64>) {
        self.world.set_exit_message(match newest {
            Some(step) => format!("stopped; newest checkpoint: step {step}. To resume:\n  {}", self.command),
            None => format!("stopped before the first checkpoint. To start again:\n  {}", self.command),
        });
    }

    /// Writes the results and the final report on rank 0. Called by all ranks.
    fn finish(mut self, training: &impl Training) -> Result<()> {
        // Before the phase `End`, because writing the last checkpoint may fail.
        self.writer.as_mut().map_or(Ok(None), Writer::wait)?;
        phase::begin(Phase::End)?;
        if let Some(journal) = &mut self.journal {
            finish(&self.out, training.step(), &journal.finish(training, &self.out)?)?;
            log_to_file(&format!("finished after step {}", training.step()));
        }
        Ok(())
    }
}

/// Returns the command that resumes a run of `size` ranks: the original command line with `--resume`.
fn resume_command(size: usize) -> String {
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
