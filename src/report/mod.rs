//! Rank 0's voice: the progress line, `metrics.jsonl`, and the report at the end. Other ranks make none of these.

pub(crate) mod error;
mod metrics;
pub mod plot;
mod progress;
mod records;
mod scaling;

pub use error::{Error, Result};
pub use metrics::MetricsLog;
pub use progress::{Means, Progress, Status};
pub use records::{
    Accuracies, EpochRecord, EpochSummary, EvaluatedEpochRecord, EvaluatedRecord, FinishRecord, LogRecord,
    NetworkRecord, ReplacedRecord, StageRecord, StepRecord,
};
pub use scaling::scaling;

use crate::files;
use crate::process::messages::print;
use serde::Serialize;
use std::io::Write;
use std::{fs, path::Path, time::Duration};

/// Name of the report inside the run folder.
pub const REPORT_FILE: &str = "report.txt";

/// Name of the completion record inside the run folder: written last, there when, and only when, the run has finished.
/// Scripts ask for it: a launcher's exit code 0 is no proof.
pub const FINISHED_FILE: &str = "finished.json";

/// Appends `value` to the file `path`, as one line of JSON.
pub fn append_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value).expect("numbers and texts have a JSON form");
    line.push(b'\n');
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    Ok(file.and_then(|mut file| file.write_all(&line)).map_err(files::io("write", path))?)
}

/// The end of a search, for people: the architecture, what it is to be seen beside (`beside`, whole lines or nothing), where
/// everything lies, and what can be done with it (`next`, one thing a line).
pub fn final_text(run: &Path, finish: &FinishRecord, beside: &str, next: &[&str]) -> String {
    let rows = [
        ("genotype.json", "the architecture, for programs"),
        ("metrics.jsonl", "every step and epoch, one JSON object a line"),
        ("config.toml", "the configuration as it was used"),
        ("checkpoints/", "the newest states; the last one holds the trained supernet"),
    ];
    let files: String = rows.iter().map(|(file, what)| format!("  {file:<14} {what}\n")).collect();
    let next: String = next.iter().map(|what| format!("- {what}\n")).collect();
    let beside = if beside.is_empty() { String::new() } else { format!("{beside}\n") };
    format!(
        "Found architecture, after {} stages, {} epochs, {} steps ({}, {} images, {} ranks):\n\n{}\n\n\
         {beside}Run folder: {}\n{files}\nWhat next:\n{next}",
        finish.stages,
        finish.epochs,
        finish.step,
        human_time(Duration::from_secs_f64(finish.wall_s.max(0.0))),
        finish.images,
        finish.ranks,
        finish.genotype,
        run.display(),
    )
}

/// The end of an evaluation, for people: what the tests found, and what can be done with the network.
pub fn evaluated_text(run: &Path, evaluated: &EvaluatedRecord) -> String {
    let percent = |part: f64| format!("{:.2} %", 100.0 * part);
    let result = |top1: f64, top5: f64| {
        format!("top-1 {} (error {}), top-5 {}", percent(top1), percent(1.0 - top1), percent(top5))
    };
    format!(
        "Evaluated, after {} epochs, {} steps ({}, {} images, {} ranks), on {} test images:\n\n  \
         last epoch ({}): {}\n  best epoch ({}): {}\n\n\
         The best epoch is chosen by the test images themselves: tables of papers often hold it, the last one is the\n\
         honest figure. {:.3} M parameters, {:.1} M multiply-adds.\n\n{}\n\n\
         Run folder: {}\n  best.safetensors  weights of the best epoch\n  metrics.jsonl     every step, epoch and test, \
         one JSON object a line\n  checkpoints/      the newest states; the last one holds the last epoch's weights\n\n\
         What next:\n- drnas-dist export {} --to DIR   takes the network to PyTorch.\n\
         - Train again with another seed (--set seed=1): one training is one sample.\n",
        evaluated.epochs,
        evaluated.step,
        human_time(Duration::from_secs_f64(evaluated.wall_s.max(0.0))),
        evaluated.images,
        evaluated.ranks,
        evaluated.test_images,
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

/// Prints the report of a run of `step` steps, leaves it in the run folder as `REPORT_FILE`, and then the completion
/// record; each whole or not at all. Rank 0 only, last.
pub fn finish(run: &Path, step: u64, text: &str) -> Result<()> {
    files::write(&run.join(REPORT_FILE), text.as_bytes())?;
    let record = serde_json::json!({ "step": step, "version": env!("CARGO_PKG_VERSION") });
    files::write(&run.join(FINISHED_FILE), format!("{record}\n").as_bytes())?;
    print(&format!("\n{text}"));
    Ok(())
}

/// The report of a run that has finished; `None` for another one. Any rank.
pub fn finished(run: &Path) -> Result<Option<String>> {
    let path = run.join(REPORT_FILE);
    match run.join(FINISHED_FILE).exists() {
        true => Ok(Some(fs::read_to_string(&path).map_err(files::io("read", path))?)),
        false => Ok(None),
    }
}

/// Takes the completion record away: the run goes on. Rank 0 only, before it writes anything else.
pub fn unfinish(run: &Path) -> Result<()> {
    let path = run.join(FINISHED_FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(files::io("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}

/// "1 h 02 min", "3 min 07 s", "12 s".
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
    fn times_read_well() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (187, "3 min 07 s"), (3720, "1 h 02 min"), (360_000, "100 h 00 min")]
        {
            assert_eq!(human_time(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_finished_run_leaves_its_report() {
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
