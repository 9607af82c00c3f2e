//! Output of a run, on rank 0: the progress line, `metrics.jsonl`, and the final report.

pub(crate) mod error;
mod metrics;
pub mod plot;
mod progress;
mod records;
mod scaling;

pub use error::{Error, Result};
pub use metrics::MetricsLog;
pub use progress::{Progress, Status, StepMeans};
pub use records::{
    Accuracies, EpochRecord, EpochSummary, EvaluatedEpochRecord, EvaluatedRecord, FinishRecord, LogRecord,
    NetworkRecord, ReplacedRecord, StageRecord, StepRecord,
};
pub use scaling::scaling;

use crate::files;
use crate::process::messages::{counted, print_stdout};
use serde::Serialize;
use std::io::Write;
use std::{fs, path::Path, time::Duration};

/// Name of the report inside the run folder.
pub const REPORT_FILE: &str = "report.txt";

/// Name of the completion record inside the run folder: written last, exists if and only if the run has finished.
/// Scripts check for it, because exit code 0 of a launcher proves nothing.
pub const FINISHED_FILE: &str = "finished.json";

/// Appends `value` to the file `path`, as one line of JSON.
pub fn append_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value).expect("numbers and text can be serialised as JSON");
    line.push(b'\n');
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    Ok(file.and_then(|mut file| file.write_all(&line)).map_err(files::io("write", path))?)
}

/// Formats the report of a search: the architecture, a comparison (whole lines or empty), the files of the run folder,
/// and suggested next steps (one per line).
pub fn final_text(run: &Path, finish: &FinishRecord, comparison: &str, next: &[&str]) -> String {
    let rows = [
        ("genotype.json", "the architecture as JSON"),
        ("metrics.jsonl", "every step and epoch, one JSON object per line"),
        ("config.toml", "the resolved configuration"),
        ("checkpoints/", "the newest checkpoints; the last one contains the trained supernet"),
    ];
    let files: String = rows.iter().map(|(file, what)| format!("  {file:<14} {what}\n")).collect();
    let next: String = next.iter().map(|what| format!("- {what}\n")).collect();
    let comparison = if comparison.is_empty() { String::new() } else { format!("{comparison}\n") };
    format!(
        "Architecture found after {}, {}, {} ({}, {}, {}):\n\n{}\n\n\
         {comparison}Run folder: {}\n{files}\nNext steps:\n{next}",
        counted(finish.stages, "stage"),
        counted(finish.epochs, "epoch"),
        counted(finish.step, "step"),
        human_time(Duration::from_secs_f64(finish.wall_s.max(0.0))),
        counted(finish.images, "image"),
        counted(finish.ranks, "rank"),
        finish.genotype,
        run.display(),
    )
}

/// Formats the report of an evaluation: the test results, the files of the run folder, and suggested next steps.
pub fn evaluated_text(run: &Path, evaluated: &EvaluatedRecord) -> String {
    let percent = |fraction: f64| format!("{:.2} %", 100.0 * fraction);
    let result = |top1: f64, top5: f64| {
        format!("top-1 {} (error {}), top-5 {}", percent(top1), percent(1.0 - top1), percent(top5))
    };
    format!(
        "Evaluation finished after {}, {} ({}, {}, {}), tested on {}:\n\n  \
         last epoch ({}): {}\n  best epoch ({}): {}\n\n\
         The best epoch is selected on the test set and therefore optimistic; report the last one.\n\
         {:.3} M parameters, {:.1} M multiply-adds.\n\n{}\n\n\
         Run folder: {}\n  best.safetensors  weights of the best epoch\n  metrics.jsonl     every step, epoch and \
         test, one JSON object per line\n  checkpoints/      the newest checkpoints; the last one contains the weights \
         of the last epoch\n\n\
         Next steps:\n- Export it to PyTorch: drnas-dist export {} --to DIR.\n\
         - Repeat the training with other seeds (--set seed=1): results vary between seeds.\n",
        counted(evaluated.epochs, "epoch"),
        counted(evaluated.step, "step"),
        human_time(Duration::from_secs_f64(evaluated.wall_s.max(0.0))),
        counted(evaluated.images, "image"),
        counted(evaluated.ranks, "rank"),
        counted(evaluated.test_images, "test image"),
        evaluated.epochs,
        result(evaluated.last_top1, evaluated.last_top5),
        evaluated.best_epoch,
        result(evaluated.best_top1, evaluated.best_top5),
        evaluated.parameters as f64 / 1e6,
        evaluated.multiply_adds as f64 / 1e6,
        evaluated.genotype,
        run.display(),
        run.display(),
    )
}

/// Writes the report of a run of `step` steps to `REPORT_FILE` in the run folder, then the completion record (both
/// atomically), and prints the report. Rank 0 only, last.
pub fn finish(run: &Path, step: u64, text: &str) -> Result<()> {
    files::write(&run.join(REPORT_FILE), text.as_bytes())?;
    let record = serde_json::json!({ "step": step, "version": env!("CARGO_PKG_VERSION") });
    files::write(&run.join(FINISHED_FILE), format!("{record}\n").as_bytes())?;
    print_stdout(&format!("\n{text}"));
    Ok(())
}

/// Returns the report of a finished run, `None` if the run has not finished. Any rank.
pub fn finished(run: &Path) -> Result<Option<String>> {
    let path = run.join(REPORT_FILE);
    match run.join(FINISHED_FILE).exists() {
        true => Ok(Some(fs::read_to_string(&path).map_err(files::io("read", path))?)),
        false => Ok(None),
    }
}

/// Removes the completion record, because the run resumes. Rank 0 only, before it writes anything else.
pub fn unfinish(run: &Path) -> Result<()> {
    let path = run.join(FINISHED_FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(files::io("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}

/// Formats a duration: "1 h 02 min", "3 min 07 s", "12 s".
pub fn human_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_formatted() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (187, "3 min 07 s"), (3720, "1 h 02 min"), (360_000, "100 h 00 min")]
        {
            assert_eq!(human_time(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_finished_run_has_a_report() {
        let folder = tempfile::tempdir().unwrap();
        let record = FinishRecord {
            step: 40,
            stages: 2,
            epochs: 4,
            images: 1280,
            replaced_images: 0,
            ranks: 2,
            genotype: "Genotype(normal=[('skip_connect', 0)])".into(),
            benchmark: None,
            wall_s: 161.0,
        };
        assert_eq!(finished(folder.path()).unwrap(), None);
        finish(folder.path(), 40, &final_text(folder.path(), &record, "", &[])).unwrap();
        assert_eq!(finished(folder.path()).unwrap(), Some(final_text(folder.path(), &record, "", &[])));
        let text = fs::read_to_string(folder.path().join(REPORT_FILE)).unwrap();
        assert!(text.contains("2 stages, 4 epochs, 40 steps (2 min 41 s, 1280 images, 2 ranks)"));
        assert!(text.contains("\n\nGenotype(normal=[('skip_connect', 0)])\n\n"));
        assert!(text.contains(&format!("Run folder: {}\n", folder.path().display())));
        let record = fs::read_to_string(folder.path().join(FINISHED_FILE)).unwrap();
        assert!(record.contains("\"step\":40"), "{record}");
        unfinish(folder.path()).unwrap();
        unfinish(folder.path()).unwrap();
        assert_eq!(finished(folder.path()).unwrap(), None);
    }
}
