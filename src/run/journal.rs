//! Journal: log, progress line and epoch statistics of a run, on rank 0.

use super::training::{Totals, Training};
use crate::comm::ReduceWait;
use crate::config::Settings;
use crate::error::Result;
use crate::files;
use crate::process::messages::{counted, print_stderr};
use crate::process::openmp::CoreWait;
use crate::report::{EpochSummary, LogRecord, MetricsLog, Progress, ReplacedRecord, Status, StepMeans};
use crate::train::tally::Measures;
use crate::world::World;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A step whose losses have not been read back yet.
pub struct UnreadStep {
    /// The step, from 1.
    pub step: u64,
    /// Images in the batches of all ranks.
    pub images: u64,
    /// Duration of the step, seconds.
    pub wall_s: f64,
    /// Part of it spent waiting for images, milliseconds.
    pub data_wait_ms: f64,
    /// Its waits for other ranks.
    pub reduce_waits: Vec<ReduceWait>,
    /// Delay by a checkpoint before the step, milliseconds.
    pub checkpoint_ms: f64,
}

/// Sums over the steps of an epoch.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct EpochSums {
    steps: u64,
    architecture_steps: u64,
    measures: Measures,
    images: u64,
    data_wait_ms: f64,
    reduce_wait_ms: f64,
    wall_s: f64,
}

/// The part of the journal that is checkpointed, so that the statistics of an epoch and of the run survive an
/// interruption.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    epoch: EpochSums,
    totals: Totals,
    /// Images that could not be decoded, with the reason, and how often each was replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    replaced: BTreeMap<String, u64>,
}

/// Number of replaced images that the report names; `metrics.jsonl` and `messages.log` name all of them.
const MAX_REPORTED: usize = 20;

impl Sums {
    /// Number of replacements.
    fn num_replaced(&self) -> u64 {
        self.replaced.values().sum()
    }

    /// Lists the replaced images for the report; "" if there are none.
    fn replaced_text(&self) -> String {
        let named = self.replaced.iter().take(MAX_REPORTED);
        let mut text: String =
            named.map(|(image, count)| format!("  {}: {image}\n", counted(*count, "time"))).collect();
        if self.replaced.len() > MAX_REPORTED {
            text += &format!("  and {} more, see metrics.jsonl\n", self.replaced.len() - MAX_REPORTED);
        }
        match self.num_replaced() {
            0 => String::new(),
            count => format!(
                "\nImages that could not be decoded were replaced {} (data.skip_bad = true):\n{text}",
                counted(count, "time")
            ),
        }
    }
}

/// Log, progress line and statistics of a run. Rank 0 only.
pub struct Journal {
    log: MetricsLog,
    progress: Progress,
    core_wait: CoreWait,
    /// Statistics that are part of the checkpoint.
    pub sums: Sums,
}

impl Journal {
    /// Creates the log in the folder `out`. With `resumed`, truncates the existing log to that step and continues with
    /// those sums instead.
    pub fn open(
        training: &impl Training,
        out: &Path,
        resumed: Option<(u64, Sums)>,
        world: &World,
    ) -> Result<Journal> {
        fs::create_dir_all(out).map_err(files::io("create folder", out))?;
        let path = out.join("metrics.jsonl");
        let is_new = resumed.is_none();
        let (step, mut sums) = resumed.unwrap_or_default();
        sums.totals.ranks = world.size() as u64;
        let log = match is_new {
            false => MetricsLog::resume(&path, step)?,
            true => {
                // Without a checkpoint, an old log describes steps that are lost.
                if path.exists() {
                    fs::remove_file(&path).map_err(files::io("remove", &path))?;
                }
                MetricsLog::create(&path)?
            }
        };
        let progress = Progress::start(training.num_steps(), training.settings().run().log_every);
        let core_wait = CoreWait::start(if world.gpu().is_some() { 1 } else { world.threads() });
        Ok(Journal { progress, core_wait, log, sums })
    }

    /// Announces the start of the run or of a stage.
    pub fn stage(&mut self, training: &impl Training) -> Result<()> {
        let announcement = training.announce_stage();
        self.progress.note(&announcement.text);
        Ok(self.log.write(&announcement.record)?)
    }

    /// Logs steps whose losses were just read back, oldest first, and updates the progress line.
    pub fn steps(
        &mut self,
        training: &impl Training,
        pending: &[UnreadStep],
        measures: &[Measures],
        card_memory_mib: Option<f64>,
    ) -> Result<()> {
        for (pending, measures) in pending.iter().zip(measures) {
            self.step(training, pending, measures, card_memory_mib)?;
        }
        if let Some(note) = self.core_wait.note() {
            print_stderr(&note);
        }
        let Some(last) = pending.last() else { return Ok(()) };
        let mean = |of: fn(&Measures) -> f64| measures.iter().map(of).sum::<f64>() / measures.len() as f64;
        let images: u64 = pending.iter().map(|step| step.images).sum();
        let means = StepMeans {
            loss: mean(|measures| measures.loss),
            top1: mean(|measures| measures.top1),
            images_per_s: images as f64 / pending.iter().map(|step| step.wall_s).sum::<f64>(),
        };
        self.progress.update_means(&status(training, last.step), means);
        Ok(())
    }

    /// Updates the progress line after a step.
    pub fn step_done(&mut self, training: &impl Training) {
        self.progress.step(&status(training, training.step()));
    }

    /// Logs images of all ranks that were replaced up to `step`, each once per run.
    pub fn replaced(&mut self, step: u64, images: Vec<String>) -> Result<()> {
        let mut new = Vec::new();
        for image in images {
            let count = self.sums.replaced.entry(image.clone()).or_insert(0);
            *count += 1;
            if *count == 1 {
                new.push(image);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        new.sort();
        for image in &new {
            print_stderr(&format!(
                "warning: replaced an image that cannot be decoded (data.skip_bad = true): {image}"
            ));
        }
        Ok(self.log.write(&LogRecord::Replaced(ReplacedRecord { step, images: new }))?)
    }

    fn step(
        &mut self,
        training: &impl Training,
        pending: &UnreadStep,
        measures: &Measures,
        card_memory_mib: Option<f64>,
    ) -> Result<()> {
        let place = training.place(pending.step - 1);
        let reduce_wait_ms = pending.reduce_waits.iter().map(ReduceWait::ms).sum::<Result<f64, _>>()?;
        let epoch = &mut self.sums.epoch;
        epoch.steps += 1;
        epoch.architecture_steps += u64::from(place.eta_lr.is_some());
        epoch.measures.add(measures);
        epoch.images += pending.images;
        epoch.data_wait_ms += pending.data_wait_ms;
        epoch.reduce_wait_ms += reduce_wait_ms;
        epoch.wall_s += pending.wall_s;
        self.sums.totals.images += pending.images;
        self.sums.totals.wall_s += pending.wall_s;
        let mut record = place.record(pending.step);
        record.loss = measures.loss;
        record.top1 = measures.top1;
        record.top5 = measures.top5;
        record.architecture_loss = place.eta_lr.map(|_| measures.architecture_loss);
        record.images_per_s = pending.images as f64 / pending.wall_s;
        record.data_wait_ms = pending.data_wait_ms;
        record.reduce_wait_ms = reduce_wait_ms;
        record.checkpoint_ms = pending.checkpoint_ms;
        record.card_memory_mib = card_memory_mib;
        Ok(self.log.write(&LogRecord::Step(record))?)
    }

    /// Announces the end of an epoch, after `steps` has logged its last step.
    pub fn epoch(&mut self, training: &impl Training) -> Result<()> {
        let sums = std::mem::take(&mut self.sums.epoch);
        let place = training.place(training.step() - 1);
        let steps = sums.steps as f64;
        let searched = (sums.architecture_steps > 0).then_some(sums.architecture_steps as f64);
        let announcement = training.announce_epoch(EpochSummary {
            stage: place.stage + 1,
            epoch: place.epoch + 1,
            step: training.step(),
            steps: sums.steps,
            loss: sums.measures.loss / steps,
            top1: sums.measures.top1 / steps,
            top5: sums.measures.top5 / steps,
            architecture_loss: searched.map(|steps| sums.measures.architecture_loss / steps),
            architecture_top1: searched.map(|steps| sums.measures.architecture_top1 / steps),
            lr: place.lr,
            images_per_s: sums.images as f64 / sums.wall_s,
            data_wait_ms: sums.data_wait_ms / steps,
            reduce_wait_ms: sums.reduce_wait_ms / steps,
            skipped_images: sums.measures.skipped as u64,
            wall_s: sums.wall_s,
        })?;
        self.progress.note(&announcement.text);
        Ok(self.log.write(&announcement.record)?)
    }

    /// Returns a function that syncs all lines written so far to disk, on any thread.
    pub fn syncer(&self) -> Result<impl FnOnce() -> Result<()> + Send + 'static> {
        let sync = self.log.syncer()?;
        Ok(move || Ok(sync()?))
    }

    /// Removes the progress bar.
    pub fn close(&self) {
        self.progress.end();
    }

    /// Writes the results and the last line of the log; returns the final report.
    pub fn finish(&mut self, training: &impl Training, out: &Path) -> Result<String> {
        self.close();
        let totals = Totals { replaced_images: self.sums.num_replaced(), ..self.sums.totals };
        let announcement = training.finish(out, &totals)?;
        self.log.write(&announcement.record)?;
        self.log.sync()?;
        Ok(announcement.text + &self.sums.replaced_text())
    }
}

/// Returns the state of the run after step `step`, from 1.
fn status(training: &impl Training, step: u64) -> Status {
    let place = training.place(step - 1);
    Status {
        stage: place.stage + 1,
        num_stages: place.num_stages,
        epoch: place.epoch + 1,
        num_epochs: training.num_steps() / training.steps_per_epoch(),
        step,
    }
}
