//! `metrics.jsonl`: what happened, one JSON object a line, appended when the losses are looked at (`run.log_every`).
//!
//! Stages and epochs count from 1 (epochs over the whole run), `step` is the number of steps done; top-1 and top-5 are
//! in 0..1; a number that is not finite is `null`.

use crate::error::{Error, Result};
use crate::space::Mask;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Percent by data set ("cifar10", "cifar100", "imagenet16-120").
pub type Accuracies = BTreeMap<String, f64>;

/// One line of the file; `event` says which kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Record {
    /// After a step.
    Step(StepRecord),
    /// After the last step of an epoch.
    Epoch(EpochRecord),
    /// At the beginning of a stage, the first one too.
    Stage(StageRecord),
    /// Once, at the end of the run.
    Finish(FinishRecord),
    /// At the beginning of an evaluation.
    Network(NetworkRecord),
    /// After the last step of an epoch of an evaluation, and its test.
    #[serde(rename = "evaluated_epoch")]
    EvaluatedEpoch(EvaluatedEpochRecord),
    /// Once, at the end of an evaluation.
    Evaluated(EvaluatedRecord),
}

/// One step. The images of all replicas count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Stage, from 1.
    pub stage: u64,
    /// Epoch of the run, from 1.
    pub epoch: u64,
    /// Steps done, this one included.
    pub step: u64,
    /// Mean cross entropy of the weight step.
    pub loss: f64,
    /// Part of the images whose class came first.
    pub top1: f64,
    /// Part of the images whose class was among the first five.
    pub top5: f64,
    /// Mean cross entropy of the architecture step, if there was one.
    pub architecture_loss: Option<f64>,
    /// Learning rate of the weights.
    pub lr: f64,
    /// Learning rate of eta; 0 without an architecture step.
    pub eta_lr: f64,
    /// Images of both sets that went through the network, per second.
    pub images_per_s: f64,
    /// Time that rank 0 waited for images, milliseconds.
    pub data_wait_ms: f64,
    /// Time that rank 0 waited for other ranks, milliseconds.
    pub reduce_wait_ms: f64,
    /// Time for which a checkpoint held training up before this step, milliseconds; most of it is written meanwhile.
    pub checkpoint_ms: f64,
    /// Memory in use on rank 0's card at the look after this step, by all processes, MiB; libtorch gives nothing back, so
    /// this is the largest need so far. Only on cards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card_memory_mib: Option<f64>,
}

/// One epoch: means over its steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Stage, from 1.
    pub stage: u64,
    /// Epoch of the run, from 1.
    pub epoch: u64,
    /// Steps done in the run when the epoch ended.
    pub step: u64,
    /// Steps of the epoch.
    pub steps: u64,
    /// Mean cross entropy of the weight steps.
    pub loss: f64,
    /// Part of the images whose class came first.
    pub top1: f64,
    /// Part of the images whose class was among the first five.
    pub top5: f64,
    /// Mean cross entropy of the architecture steps, if there were any.
    pub architecture_loss: Option<f64>,
    /// Top-1 of the architecture steps, if there were any.
    pub architecture_top1: Option<f64>,
    /// Learning rate of the weights.
    pub lr: f64,
    /// Images of both sets that went through the network, per second.
    pub images_per_s: f64,
    /// Time that rank 0 waited for images, milliseconds per step.
    pub data_wait_ms: f64,
    /// Time that rank 0 waited for other ranks, milliseconds per step.
    pub reduce_wait_ms: f64,
    /// Mean entropy (nats) of a row's softmax of eta, by table (of DARTS: normal, reduction cells): falls as the choice
    /// becomes clear.
    pub eta_entropy: Vec<f64>,
    /// eta, `[T][E][O]`; where an operation was pruned it means nothing.
    pub eta: Vec<Vec<Vec<f64>>>,
    /// Kept operations, of the same shape.
    pub masks: Vec<Mask>,
    /// What eta selects now: DARTS one-line text, or the architecture string of NAS-Bench-201.
    pub genotype: String,
    /// Test accuracy of that architecture in the benchmark's table, percent by data set; absent without a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark: Option<Accuracies>,
    /// Images that could not be decoded and were replaced.
    pub skipped_images: u64,
    /// Length of the epoch, seconds.
    pub wall_s: f64,
}

/// A stage begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Stage, from 1.
    pub stage: u64,
    /// Steps done before it.
    pub step: u64,
    /// Partial-channel divisor.
    pub k: i64,
    /// Operations left on every edge.
    pub ops_kept: usize,
    /// Epochs of the stage.
    pub epochs: u64,
    /// Weights of the supernet, in numbers.
    pub num_weights: i64,
}

/// The run has ended well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishRecord {
    /// Steps done.
    pub step: u64,
    /// Stages done.
    pub stages: u64,
    /// Epochs done.
    pub epochs: u64,
    /// Images of both sets that went through the network.
    pub images: u64,
    /// Ranks that took part in the end.
    pub ranks: u64,
    /// The found architecture: DARTS one-line text, or the architecture string of NAS-Bench-201.
    pub genotype: String,
    /// Its test accuracy in the benchmark's table, percent by data set; absent without a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark: Option<Accuracies>,
    /// Seconds since the program started, or went on from a checkpoint, the last time.
    pub wall_s: f64,
}

/// An evaluation begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Steps done before it.
    pub step: u64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Learned numbers without the auxiliary head, as papers count.
    pub parameters: i64,
    /// Learned numbers, all of them.
    pub num_weights: i64,
    /// Multiply-adds of convolutions and linear layers for one test image, without the auxiliary head.
    pub multiply_adds: i64,
    /// The architecture, DARTS one-line text.
    pub genotype: String,
}

/// One epoch of an evaluation: means over its steps, and the test that followed, if one did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedEpochRecord {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Steps done in the run when the epoch ended.
    pub step: u64,
    /// Steps of the epoch.
    pub steps: u64,
    /// Mean of what was minimised: smoothed, with the auxiliary head's part.
    pub loss: f64,
    /// Part of the training images whose class came first.
    pub top1: f64,
    /// Part of the training images whose class was among the first five.
    pub top5: f64,
    /// Mean cross entropy over the test set.
    pub test_loss: Option<f64>,
    /// Part of the test images whose class came first.
    pub test_top1: Option<f64>,
    /// Part of the test images whose class was among the first five.
    pub test_top5: Option<f64>,
    /// Images tested.
    pub test_images: Option<u64>,
    /// The best `test_top1` so far.
    pub best_top1: Option<f64>,
    /// The epoch that had it first.
    pub best_epoch: Option<u64>,
    /// Learning rate.
    pub lr: f64,
    /// Probability of drop path.
    pub drop_path: f64,
    /// Training images that went through the network, per second.
    pub images_per_s: f64,
    /// Time that rank 0 waited for images, milliseconds per step.
    pub data_wait_ms: f64,
    /// Time that rank 0 waited for other ranks, milliseconds per step.
    pub reduce_wait_ms: f64,
    /// Images that could not be decoded and were replaced.
    pub skipped_images: u64,
    /// Length of the epoch's steps, seconds.
    pub wall_s: f64,
}

/// An evaluation has ended well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedRecord {
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epochs: u64,
    /// Top-1 of the test after the last epoch.
    pub last_top1: f64,
    /// Top-5 of the same test.
    pub last_top5: f64,
    /// The epoch whose test had the highest top-1: chosen by the test images themselves.
    pub best_epoch: u64,
    /// Its top-1.
    pub best_top1: f64,
    /// Its top-5.
    pub best_top5: f64,
    /// Images of each test.
    pub test_images: u64,
    /// Learned numbers without the auxiliary head.
    pub parameters: i64,
    /// Multiply-adds for one test image, without the auxiliary head.
    pub multiply_adds: i64,
    /// Training images that went through the network.
    pub images: u64,
    /// Ranks that took part in the end.
    pub ranks: u64,
    /// The architecture, DARTS one-line text.
    pub genotype: String,
    /// Seconds in training steps.
    pub wall_s: f64,
}

impl Record {
    /// Steps done when the record was written.
    pub fn step(&self) -> u64 {
        match self {
            Record::Step(record) => record.step,
            Record::Epoch(record) => record.step,
            Record::Stage(record) => record.step,
            Record::Finish(record) => record.step,
            Record::Network(record) => record.step,
            Record::EvaluatedEpoch(record) => record.step,
            Record::Evaluated(record) => record.step,
        }
    }
}

/// The open file.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// A new log at `path`. A log that is already there is an error: no run is overwritten.
    pub fn create(path: &Path) -> Result<MetricsLog> {
        let file = OpenOptions::new().create_new(true).append(true).open(path);
        Self::opened(file, path)
    }

    /// The log of a run that goes on from the checkpoint made after `step` steps. Later lines, and one that was being
    /// written when the run was killed, are dropped: the file becomes that of a run that was never stopped.
    ///
    /// What belongs to step n (step, epoch, next stage) must have been written before the checkpoint of step n.
    pub fn resume(path: &Path, step: u64) -> Result<MetricsLog> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let kept: Vec<u8> = text
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| line.ends_with(b"\n"))
            .filter(|line| step_of(line).is_some_and(|at| at <= step))
            .flatten()
            .copied()
            .collect();
        // Only ever a whole file under the name: whoever is killed here loses nothing.
        let temporary = path.with_extension("jsonl.tmp");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&kept)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().map_err(Error::io("write", path))?;
        Self::opened(OpenOptions::new().append(true).open(path), path)
    }

    fn opened(file: std::io::Result<File>, path: &Path) -> Result<MetricsLog> {
        Ok(MetricsLog { file: file.map_err(Error::io("create", path))?, path: path.to_owned() })
    }

    /// Appends one line; it has left the program when this returns.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record).expect("records have only text and numbers");
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io("write", &self.path))
    }

    /// What brings the lines written so far to the disk, on any thread.
    pub fn syncer(&self) -> Result<impl FnOnce() -> Result<()> + Send + 'static> {
        let path = self.path.clone();
        let file = self.file.try_clone().map_err(Error::io("write", &path))?;
        Ok(move || file.sync_data().map_err(Error::io("write", path)))
    }

    /// Returns when all lines are on the disk. Before a checkpoint that stands for them.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

/// `step` of a line that is kept: lines with `null` in place of a number are, the end of a run that goes on is not.
fn step_of(line: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    if value.get("event").is_some_and(|event| event == "finish") {
        return None;
    }
    value.get("step")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> Record {
        Record::Step(StepRecord {
            stage: 1,
            epoch: 1 + step / 3,
            step,
            loss: 2.5,
            top1: 0.25,
            top5: 0.75,
            architecture_loss: None,
            lr: 0.1,
            eta_lr: 0.0,
            images_per_s: 90.0,
            data_wait_ms: 0.5,
            reduce_wait_ms: 1.5,
            checkpoint_ms: 0.0,
            card_memory_mib: None,
        })
    }

    fn finish(step: u64) -> Record {
        Record::Finish(FinishRecord {
            step,
            stages: 2,
            epochs: 2,
            images: 64,
            ranks: 1,
            genotype: "Genotype()".into(),
            benchmark: None,
            wall_s: 1.0,
        })
    }

    #[test]
    fn lines_say_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        log.write(&step(1)).unwrap();
        log.write(&finish(1)).unwrap();
        log.sync().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with(r#"{"event":"step","stage":1,"epoch":1,"step":1,"loss":2.5,"#));
        assert!(lines[1].starts_with(r#"{"event":"finish","step":1,"#));
        let read: Record = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(read, step(1));
        let error = MetricsLog::create(&path).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl"), "{error}");
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
        let mut log = MetricsLog::create(&whole).unwrap();
        (1..=6).for_each(|n| log.write(&step(n)).unwrap());

        let mut log = MetricsLog::create(&cut).unwrap();
        (1..=5).for_each(|n| log.write(&step(n)).unwrap());
        log.file.write_all(br#"{"event":"step","stage":1,"st"#).unwrap();
        let mut log = MetricsLog::resume(&cut, 3).unwrap();
        (4..=6).for_each(|n| log.write(&step(n)).unwrap());
        assert_eq!(fs::read(&whole).unwrap(), fs::read(&cut).unwrap());

        // A line cut off just before its end would swallow the next one.
        log.file.write_all(br#"{"event":"step","step":6}"#).unwrap();
        let mut log = MetricsLog::resume(&cut, 6).unwrap();
        assert_eq!(fs::read(&whole).unwrap(), fs::read(&cut).unwrap());

        // A run that was killed between its last line and its report says the last line again.
        log.write(&finish(6)).unwrap();
        MetricsLog::resume(&cut, 6).unwrap();
        assert_eq!(fs::read(&whole).unwrap(), fs::read(&cut).unwrap());
    }

    #[test]
    fn a_line_without_a_number_is_kept_by_its_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::resume(&path, 0).unwrap();
        let Record::Step(mut record) = step(1) else { unreachable!() };
        record.loss = f64::NAN;
        log.write(&Record::Step(record)).unwrap();
        let before = fs::read_to_string(&path).unwrap();
        assert!(before.contains(r#""loss":null"#));
        MetricsLog::resume(&path, 1).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
}
