//! `metrics.jsonl`: log of a run, one JSON object per line, appended when the losses are read back (`run.log_every`).

use super::LogRecord;
use crate::files::{self, IoError};
use crate::process::console::utc_now;
use crate::report::error::Result;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A line of the file.
#[derive(Serialize)]
struct Timed<'a> {
    #[serde(flatten)]
    record: &'a LogRecord,
    /// Time of writing, UTC.
    time: String,
}

/// The open log.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Creates a log at `path`. An existing log is an error: no run is overwritten.
    pub fn create(path: &Path) -> Result<MetricsLog> {
        let file = OpenOptions::new().create_new(true).append(true).open(path);
        Self::opened(file, path)
    }

    /// Opens the log of a run that resumes after `step` steps. Later lines, and a partial line written when the run was
    /// killed, are dropped: the file equals that of an uninterrupted run.
    ///
    /// The lines of step n (step, epoch, next stage) must have been written before the checkpoint of step n.
    pub fn resume(path: &Path, step: u64) -> Result<MetricsLog> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(files::io("read", path)(error).into()),
        };
        let kept: Vec<u8> = text
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| line.ends_with(b"\n"))
            .filter(|line| step_of(line).is_some_and(|at| at <= step))
            .flatten()
            .copied()
            .collect();
        files::write(path, &kept)?;
        Self::opened(OpenOptions::new().append(true).open(path), path)
    }

    fn opened(file: std::io::Result<File>, path: &Path) -> Result<MetricsLog> {
        Ok(MetricsLog { file: file.map_err(files::io("create", path))?, path: path.to_owned() })
    }

    /// Appends one line, unbuffered.
    pub fn write(&mut self, record: &LogRecord) -> Result<(), IoError> {
        let timed = Timed { record, time: utc_now() };
        let mut line = serde_json::to_vec(&timed).expect("records contain only text and numbers");
        line.push(b'\n');
        self.file.write_all(&line).map_err(files::io("write", &self.path))
    }

    /// Returns a function that syncs the lines written so far to disk, on any thread.
    pub fn syncer(&self) -> Result<impl FnOnce() -> Result<(), IoError> + Send + 'static> {
        let path = self.path.clone();
        let file = self.file.try_clone().map_err(files::io("write", &path))?;
        Ok(move || file.sync_data().map_err(files::io("write", path)))
    }

    /// Syncs all lines to disk. Called before a checkpoint that covers them.
    pub fn sync(&mut self) -> Result<(), IoError> {
        self.file.sync_data().map_err(files::io("write", &self.path))
    }
}

/// Returns the step of a line to keep. Lines with `null` in place of a number are kept; the last line of a finished
/// search is not, because the run resumes.
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
    use crate::report::{FinishRecord, StepRecord};

    fn step(step: u64) -> LogRecord {
        LogRecord::Step(StepRecord {
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

    fn finish(step: u64) -> LogRecord {
        LogRecord::Finish(FinishRecord {
            step,
            stages: 2,
            epochs: 2,
            images: 64,
            replaced_images: 0,
            ranks: 1,
            genotype: "Genotype()".into(),
            benchmark: None,
            wall_s: 1.0,
        })
    }

    /// Lines without their times.
    fn untimed(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.ends_with("\n"), "{text}");
        text.lines().map(|line| line.rsplit_once(r#","time":""#).unwrap().0.to_owned()).collect()
    }

    #[test]
    fn a_line_starts_with_its_event() {
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
        let read: LogRecord = serde_json::from_str(lines[0]).unwrap();
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
        assert_eq!(untimed(&whole), untimed(&cut));

        // A line truncated just before its end would swallow the next one.
        log.file.write_all(br#"{"event":"step","step":6}"#).unwrap();
        let mut log = MetricsLog::resume(&cut, 6).unwrap();
        assert_eq!(untimed(&whole), untimed(&cut));

        // A run killed between its last line and its report writes the last line again.
        log.write(&finish(6)).unwrap();
        MetricsLog::resume(&cut, 6).unwrap();
        assert_eq!(untimed(&whole), untimed(&cut));
    }

    #[test]
    fn a_line_without_a_number_is_kept_by_its_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::resume(&path, 0).unwrap();
        let LogRecord::Step(mut record) = step(1) else { unreachable!() };
        record.loss = f64::NAN;
        log.write(&LogRecord::Step(record)).unwrap();
        let before = fs::read_to_string(&path).unwrap();
        assert!(before.contains(r#""loss":null"#));
        MetricsLog::resume(&path, 1).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
}
