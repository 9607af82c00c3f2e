//! Journal: what rank 0 tells of a run: the log, the progress, the numbers of an epoch.

use super::training::{Totals, Training};
use crate::config::Settings;
use crate::error::Result;
use crate::files;
use crate::process::messages::say;
use crate::report::{EpochSummary, LogRecord, Means, MetricsLog, Progress, ReplacedRecord, Status};
use crate::train::tally::Measures;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What a rank knows of a step before its losses are read.
#[derive(Clone, Copy, Debug)]
pub struct UnreadStep {
    /// The step, from 1.
    pub step: u64,
    /// Images of all batches, all ranks.
    pub images: u64,
    /// Length of the step, seconds.
    pub wall_s: f64,
    /// Of it waiting for images, milliseconds.
    pub data_wait_ms: f64,
    /// Of it waiting for other ranks, milliseconds.
    pub reduce_wait_ms: f64,
    /// Before it held up by a checkpoint, milliseconds.
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

/// What of the journal goes into a checkpoint, so that an interrupted epoch reports all its steps, and a run all its time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    epoch: EpochSums,
    totals: Totals,
    /// Images that could not be decoded and were replaced, each with its reason; how often.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    replaced: BTreeMap<String, u64>,
}

/// Images of [`Sums::replaced`] that the report names; `metrics.jsonl` and `messages.log` name all.
const REPORTED: usize = 20;

impl Sums {
    /// How often an image was replaced.
    fn num_replaced(&self) -> u64 {
        self.replaced.values().sum()
    }

    /// What the report says of them; "" if there are none.
    fn replaced_text(&self) -> String {
        let times = |count: u64| if count == 1 { "1 time".into() } else { format!("{count} times") };
        let named = self.replaced.iter().take(REPORTED);
        let mut text: String =
            named.map(|(image, count)| format!("  {}: {image}\n", times(*count))).collect();
        if self.replaced.len() > REPORTED {
            text += &format!("  and {} more, see metrics.jsonl\n", self.replaced.len() - REPORTED);
        }
        match self.num_replaced() {
            0 => String::new(),
            count => format!(
                "\nImages that could not be decoded were replaced by others, {} (data.skip_bad = true):\n{text}",
                times(count)
            ),
        }
    }
}

/// The log and the progress of a run. Rank 0 only.
pub struct Journal {
    log: MetricsLog,
    progress: Progress,
    /// Part of the checkpoint.
    pub sums: Sums,
}

impl Journal {
    /// Opens the log in the folder `out`: a new one, or the old one up to step `resumed`, with the sums of then.
    pub fn open(
        training: &impl Training,
        out: &Path,
        resumed: Option<(u64, Sums)>,
        ranks: usize,
    ) -> Result<Journal> {
        fs::create_dir_all(out).map_err(files::io("create folder", out))?;
        let path = out.join("metrics.jsonl");
        let is_new = resumed.is_none();
        let (step, mut sums) = resumed.unwrap_or_default();
        sums.totals.ranks = ranks as u64;
        let log = match is_new {
            false => MetricsLog::resume(&path, step)?,
            true => {
                // Nothing was saved of what this log speaks of.
                if path.exists() {
                    fs::remove_file(&path).map_err(files::io("remove", &path))?;
                }
                MetricsLog::create(&path)?
            }
        };
        let progress = Progress::start(training.num_steps(), training.settings().run().log_every);
        Ok(Journal { progress, log, sums })
    }

    /// The run, or a stage of it, begins.
    pub fn stage(&mut self, training: &impl Training) -> Result<()> {
        let told = training.tell_stage();
        self.progress.note(&told.text);
        Ok(self.log.write(&told.record)?)
    }

    /// Steps whose losses were just read, oldest first.
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
        let Some(last) = pending.last() else { return Ok(()) };
        let mean = |of: fn(&Measures) -> f64| measures.iter().map(of).sum::<f64>() / measures.len() as f64;
        let images: u64 = pending.iter().map(|step| step.images).sum();
        let means = Means {
            loss: mean(|measures| measures.loss),
            top1: mean(|measures| measures.top1),
            images_per_s: images as f64 / pending.iter().map(|step| step.wall_s).sum::<f64>(),
        };
        self.progress.look(&status(training, last.step), means);
        Ok(())
    }

    /// A step is done; its losses are not read.
    pub fn step_done(&mut self, training: &impl Training) {
        self.progress.step(&status(training, training.step()));
    }

    /// Images that were replaced up to `step`, of all ranks. Each is named once in a run.
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
            say(&format!("warning: image replaced by another one (data.skip_bad = true): {image}"));
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
        let epoch = &mut self.sums.epoch;
        epoch.steps += 1;
        epoch.architecture_steps += u64::from(place.eta_lr.is_some());
        epoch.measures.add(measures);
        epoch.images += pending.images;
        epoch.data_wait_ms += pending.data_wait_ms;
        epoch.reduce_wait_ms += pending.reduce_wait_ms;
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
        record.reduce_wait_ms = pending.reduce_wait_ms;
        record.checkpoint_ms = pending.checkpoint_ms;
        record.card_memory_mib = card_memory_mib;
        Ok(self.log.write(&LogRecord::Step(record))?)
    }

    /// The last step of an epoch was told.
    pub fn epoch(&mut self, training: &impl Training) -> Result<()> {
        let sums = std::mem::take(&mut self.sums.epoch);
        let place = training.place(training.step() - 1);
        let steps = sums.steps as f64;
        let searched = (sums.architecture_steps > 0).then_some(sums.architecture_steps as f64);
        let told = training.tell_epoch(EpochSummary {
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
        self.progress.note(&told.text);
        Ok(self.log.write(&told.record)?)
    }

    /// What brings everything told so far to the disk, on any thread.
    pub fn syncer(&self) -> Result<impl FnOnce() -> Result<()> + Send + 'static> {
        let sync = self.log.syncer()?;
        Ok(move || Ok(sync()?))
    }

    /// Takes the progress away.
    pub fn close(&self) {
        self.progress.end();
    }

    /// Has the results and the last line of the log written; the final report, for people.
    pub fn finish(&mut self, training: &impl Training, out: &Path) -> Result<String> {
        self.close();
        let totals = Totals { replaced_images: self.sums.num_replaced(), ..self.sums.totals };
        let told = training.finish(out, &totals)?;
        self.log.write(&told.record)?;
        self.log.sync()?;
        Ok(told.text + &self.sums.replaced_text())
    }
}

/// Where step `step`, from 1, stands.
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
