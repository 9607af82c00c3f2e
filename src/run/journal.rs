//! Journal: what rank 0 tells of a run: the log, the progress, the numbers of an epoch.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::report::{
    EpochRecord, FinishRecord, MetricsLog, Progress, Record, StageRecord, Status, StepRecord,
};
use crate::schedule::Schedule;
use crate::search::Search;
use crate::search::dirichlet::entropy;
use crate::search::tally::Measures;
use crate::search::timeline::Timeline;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// What a rank knows of a step before its losses are read.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    /// The step, from 1.
    pub step: u64,
    /// Images of both batches, all ranks.
    pub images: u64,
    /// Length of the step, seconds.
    pub wall_s: f64,
    /// Of it waiting for images, milliseconds.
    pub data_wait_ms: f64,
    /// Of it waiting for other ranks, milliseconds.
    pub reduce_wait_ms: f64,
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
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    epoch: EpochSums,
    /// Images of both sets since the beginning of the run.
    images: u64,
    /// Seconds in steps since the beginning of the run.
    wall_s: f64,
}

/// The log and the progress of a run. Rank 0 only.
pub struct Journal {
    timeline: Timeline,
    schedule: Schedule,
    eta_lr: f64,
    log: MetricsLog,
    progress: Progress,
    out: PathBuf,
    /// Part of the checkpoint.
    pub sums: Sums,
}

impl Journal {
    /// Opens the log in the folder `out`: a new one, or the old one up to step `resumed`, with the sums of then.
    pub fn open(
        config: &Config,
        timeline: &Timeline,
        out: &Path,
        resumed: Option<(u64, Sums)>,
    ) -> Result<Journal> {
        fs::create_dir_all(out).map_err(Error::io("create folder", out))?;
        let path = out.join("metrics.jsonl");
        let (step, sums) = resumed.unwrap_or_default();
        let log = match resumed {
            Some(_) => MetricsLog::resume(&path, step)?,
            None => {
                // Nothing was saved of what this log speaks of.
                if path.exists() {
                    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                }
                MetricsLog::create(&path)?
            }
        };
        Ok(Journal {
            schedule: Schedule::of_search(config),
            eta_lr: config.eta.lr,
            progress: Progress::start(step, timeline.num_steps(), config.run.log_every),
            timeline: timeline.clone(),
            log,
            out: out.to_path_buf(),
            sums,
        })
    }

    /// A stage begins.
    pub fn stage(&mut self, search: &Search) -> Result<()> {
        let (number, num_weights) = (search.stage(), search.net().params.num_elements());
        let stage = self.timeline.stages()[number];
        self.progress.note(&format!(
            "stage {}/{}: k {}, {} operations per edge, {} epochs, {num_weights} weights",
            number + 1,
            self.timeline.stages().len(),
            stage.k,
            stage.ops_kept,
            stage.epochs,
        ));
        self.log.write(&Record::Stage(StageRecord {
            stage: number as u64 + 1,
            step: search.step(),
            k: stage.k,
            ops_kept: stage.ops_kept,
            epochs: stage.epochs,
            num_weights,
        }))
    }

    /// Steps whose losses were just read, oldest first.
    pub fn steps(&mut self, pending: &[Pending], measures: &[Measures]) -> Result<()> {
        for (pending, measures) in pending.iter().zip(measures) {
            self.step(pending, measures)?;
        }
        let Some(last) = pending.last() else { return Ok(()) };
        let moment = self.timeline.moment(last.step - 1);
        let mean = |of: fn(&Measures) -> f64| measures.iter().map(of).sum::<f64>() / measures.len() as f64;
        let images: u64 = pending.iter().map(|step| step.images).sum();
        self.progress.step(&Status {
            stage: moment.stage as u64 + 1,
            num_stages: self.timeline.stages().len() as u64,
            epoch: moment.epoch + 1,
            num_epochs: self.timeline.num_epochs(),
            step: last.step,
            loss: mean(|measures| measures.loss),
            top1: mean(|measures| measures.top1),
            images_per_s: images as f64 / pending.iter().map(|step| step.wall_s).sum::<f64>(),
        });
        Ok(())
    }

    fn step(&mut self, pending: &Pending, measures: &Measures) -> Result<()> {
        let moment = self.timeline.moment(pending.step - 1);
        let epoch = &mut self.sums.epoch;
        epoch.steps += 1;
        epoch.architecture_steps += u64::from(moment.architecture);
        epoch.measures.add(measures);
        epoch.images += pending.images;
        epoch.data_wait_ms += pending.data_wait_ms;
        epoch.reduce_wait_ms += pending.reduce_wait_ms;
        epoch.wall_s += pending.wall_s;
        self.sums.images += pending.images;
        self.sums.wall_s += pending.wall_s;
        self.log.write(&Record::Step(StepRecord {
            stage: moment.stage as u64 + 1,
            epoch: moment.epoch + 1,
            step: pending.step,
            loss: measures.loss,
            top1: measures.top1,
            top5: measures.top5,
            architecture_loss: moment.architecture.then_some(measures.architecture_loss),
            lr: self.schedule.lr(moment.epoch),
            eta_lr: if moment.architecture { self.eta_lr } else { 0.0 },
            images_per_s: pending.images as f64 / pending.wall_s,
            data_wait_ms: pending.data_wait_ms,
            reduce_wait_ms: pending.reduce_wait_ms,
        }))
    }

    /// The last step of an epoch was told.
    pub fn epoch(&mut self, search: &Search) -> Result<()> {
        let epoch = std::mem::take(&mut self.sums.epoch);
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
            loss: per_step(epoch.measures.loss),
            top1: per_step(epoch.measures.top1),
            top5: per_step(epoch.measures.top5),
            architecture_loss: per_search(epoch.measures.architecture_loss),
            architecture_top1: per_search(epoch.measures.architecture_top1),
            lr: self.schedule.lr(moment.epoch),
            images_per_s: epoch.images as f64 / epoch.wall_s,
            data_wait_ms: per_step(epoch.data_wait_ms),
            reduce_wait_ms: per_step(epoch.reduce_wait_ms),
            eta_entropy_normal: entropy(&weights[0]),
            eta_entropy_reduce: entropy(&weights[1]),
            genotype: search.genotype()?.to_line(),
            skipped_images: epoch.measures.skipped as u64,
            wall_s: epoch.wall_s,
        };
        let architecture = match record.architecture_top1 {
            Some(top1) => format!(" (architecture set {:.1} %)", 100.0 * top1),
            None => String::new(),
        };
        let skipped = match record.skipped_images {
            0 => String::new(),
            images => format!(", {images} images replaced"),
        };
        self.progress.note(&format!(
            "epoch {}: loss {:.3}, top-1 {:.1} %{architecture}, eta entropy {:.3} / {:.3} nats, {:.1} images/s{skipped}",
            record.epoch,
            record.loss,
            100.0 * record.top1,
            record.eta_entropy_normal,
            record.eta_entropy_reduce,
            record.images_per_s,
        ));
        self.log.write(&Record::Epoch(record))
    }

    /// Everything told so far is on disk when this returns.
    pub fn sync(&mut self) -> Result<()> {
        self.log.sync()
    }

    /// Takes the progress away.
    pub fn close(&self) {
        self.progress.end();
    }

    /// Writes the architecture and the last line of the log; what the final report says.
    pub fn finish(&mut self, search: &Search, ranks: usize) -> Result<FinishRecord> {
        self.close();
        let genotype = search.genotype()?;
        let json =
            serde_json::to_string_pretty(&genotype).map_err(|error| Error::Genotype(error.to_string()))?;
        let line = genotype.to_line();
        for (name, text) in [("genotype.json", &json), ("genotype.txt", &line)] {
            let path = self.out.join(name);
            fs::write(&path, format!("{text}\n")).map_err(Error::io("write", path))?;
        }
        let record = FinishRecord {
            step: search.step(),
            stages: self.timeline.stages().len() as u64,
            epochs: self.timeline.num_epochs(),
            images: self.sums.images,
            ranks: ranks as u64,
            genotype: line,
            wall_s: self.sums.wall_s,
        };
        self.log.write(&Record::Finish(record.clone()))?;
        self.log.sync()?;
        Ok(record)
    }
}
