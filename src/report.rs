//! Rank 0's voice: the progress line, `metrics.jsonl`, and the report at the end. Other ranks make none of these.

mod metrics;
mod progress;
mod scaling;

pub use metrics::{EpochRecord, FinishRecord, MetricsLog, Record, StageRecord, StepRecord};
pub use progress::{Progress, Status};
pub use scaling::scaling;

use crate::error::{Error, Result};
use std::{fs, path::Path, time::Duration};

/// Name of the report inside the run folder; it is there when, and only when, the run has finished.
pub const REPORT_FILE: &str = "report.txt";

/// The end of a run, for people: the architecture, where everything lies, and what can be done with it.
pub fn final_text(run: &Path, finish: &FinishRecord) -> String {
    let rows = [
        ("genotype.json", "the architecture, for programs"),
        ("metrics.jsonl", "every step and epoch, one JSON object a line"),
        ("config.toml", "the configuration as it was used"),
        ("checkpoints/", "the newest states; the last one holds the trained supernet"),
    ];
    let files: String = rows.iter().map(|(file, what)| format!("  {file:<14} {what}\n")).collect();
    format!(
        "Found architecture, after {} stages, {} epochs, {} steps ({}, {} images, {} ranks):\n\n{}\n\n\
         Run folder: {}\n{files}\n\
         What next:\n\
         - Paste the line above into `genotypes.py` of the DARTS, PC-DARTS or DrNAS code to train that network.\n\
         - Watch how it came about: the epoch lines of metrics.jsonl hold the genotype of each epoch.\n\
         - Search again with another seed (--set seed=1) and compare: one search is one sample.\n",
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

/// Prints the report and leaves it in the run folder as `REPORT_FILE`, whole or not at all. Rank 0 only, last.
pub fn finish(run: &Path, text: &str) -> Result<()> {
    let (path, temporary) = (run.join(REPORT_FILE), run.join("report.txt.tmp"));
    fs::write(&temporary, text).map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(Error::io("write", &path))?;
    println!("\n{text}");
    Ok(())
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
            ranks: 2,
            genotype: "Genotype(normal=[('skip_connect', 0)])".into(),
            wall_s: 161.0,
        };
        finish(folder.path(), &final_text(folder.path(), &record)).unwrap();
        let text = fs::read_to_string(folder.path().join(REPORT_FILE)).unwrap();
        assert!(text.contains("2 stages, 4 epochs, 40 steps (2 min 41 s, 1280 images, 2 ranks)"));
        assert!(text.contains("\n\nGenotype(normal=[('skip_connect', 0)])\n\n"));
        assert!(text.contains(&format!("Run folder: {}\n", folder.path().display())));
    }
}
