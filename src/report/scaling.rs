//! Scaling table: throughput of finished runs by number of ranks, from their logs.

use crate::files;
use crate::report::error::{Error, Result};
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Measurements of the last epoch of a run. Images: both data sets; times: rank 0, milliseconds per step.
#[derive(Clone, Debug, PartialEq)]
struct Speed {
    ranks: u64,
    steps: usize,
    images_per_s: f64,
    /// First and third quartile over the steps.
    quartiles: [f64; 2],
    data_wait_ms: f64,
    reduce_wait_ms: f64,
}

/// Returns a Markdown table of `runs`, sorted by number of ranks. Efficiency: images/s per rank relative to the first
/// row. Errors: the log of a run is missing, has no epoch, or has no end.
pub fn scaling(runs: &[PathBuf]) -> Result<String> {
    let mut speeds: Vec<Speed> = runs.iter().map(|run| Speed::of(run)).collect::<Result<_>>()?;
    speeds.sort_by_key(|speed| speed.ranks);
    let per_rank = |speed: &Speed| speed.images_per_s / speed.ranks as f64;
    let mut table = String::from(
        "| ranks | images/s | quartiles over steps | per rank | efficiency | waiting for images | for other ranks | steps |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for speed in &speeds {
        let [low, high] = speed.quartiles;
        let _ = writeln!(
            table,
            "| {} | {:.1} | {low:.1} - {high:.1} | {:.1} | {:.1} % | {:.1} ms | {:.1} ms | {} |",
            speed.ranks,
            speed.images_per_s,
            per_rank(speed),
            100.0 * per_rank(speed) / per_rank(&speeds[0]),
            speed.data_wait_ms,
            speed.reduce_wait_ms,
            speed.steps,
        );
    }
    Ok(table)
}

impl Speed {
    fn of(run: &Path) -> Result<Speed> {
        let path = run.join("metrics.jsonl");
        let text = fs::read_to_string(&path).map_err(files::io("read", &path))?;
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let last = |event: &str| lines.iter().rev().find(|line| line["event"] == event);
        let missing = |what| Error::NotMeasured { run: run.into(), what };
        let epoch = last("epoch").ok_or_else(|| missing("epoch"))?;
        let finish = last("finish").ok_or_else(|| missing("end"))?;
        let number = |line: &Value, name: &'static str| line[name].as_f64().ok_or_else(|| missing(name));
        let mut steps: Vec<f64> = (lines.iter())
            .filter(|line| line["event"] == "step" && line["epoch"] == epoch["epoch"])
            .filter_map(|line| line["images_per_s"].as_f64())
            .collect();
        steps.sort_by(f64::total_cmp);
        // Nearest rank, not interpolated.
        let quantile = |part: f64| steps.get((part * (steps.len().max(1) - 1) as f64).round() as usize);
        Ok(Speed {
            ranks: number(finish, "ranks")? as u64,
            steps: steps.len(),
            images_per_s: number(epoch, "images_per_s")?,
            quartiles: [0.25, 0.75].map(|part| quantile(part).copied().unwrap_or(f64::NAN)),
            data_wait_ms: number(epoch, "data_wait_ms")?,
            reduce_wait_ms: number(epoch, "reduce_wait_ms")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a run whose 4 steps of the last epoch reached 0.5, 0.9, 1.1 and 1.5 times `images_per_s`.
    fn run(dir: &Path, ranks: u64, images_per_s: f64) -> PathBuf {
        let run = dir.join(ranks.to_string());
        fs::create_dir(&run).unwrap();
        let mut text = String::from("{\"event\":\"step\",\"epoch\":1,\"step\":1,\"images_per_s\":1.0}\n");
        for (step, part) in [1.5, 0.9, 0.5, 1.1].iter().enumerate() {
            let _ = writeln!(
                text,
                "{{\"event\":\"step\",\"epoch\":2,\"step\":{},\"images_per_s\":{}}}",
                step + 2,
                part * images_per_s
            );
        }
        let _ = writeln!(
            text,
            "{{\"event\":\"epoch\",\"epoch\":2,\"images_per_s\":{images_per_s},\"data_wait_ms\":0.25,\"reduce_wait_ms\":2.0}}"
        );
        let _ = writeln!(text, "{{\"event\":\"finish\",\"step\":5,\"ranks\":{ranks}}}");
        fs::write(run.join("metrics.jsonl"), text).unwrap();
        run
    }

    #[test]
    fn efficiency_is_relative_to_the_fewest_ranks() {
        let dir = tempfile::tempdir().unwrap();
        let runs = [run(dir.path(), 4, 300.0), run(dir.path(), 1, 100.0)];
        let table = scaling(&runs).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[2], "| 1 | 100.0 | 90.0 - 110.0 | 100.0 | 100.0 % | 0.2 ms | 2.0 ms | 4 |");
        assert_eq!(lines[3], "| 4 | 300.0 | 270.0 - 330.0 | 75.0 | 75.0 % | 0.2 ms | 2.0 ms | 4 |");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn an_unfinished_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = run(dir.path(), 2, 100.0);
        let log = path.join("metrics.jsonl");
        let text = fs::read_to_string(&log).unwrap();
        fs::write(&log, text.lines().filter(|line| !line.contains("finish")).collect::<Vec<_>>().join("\n"))
            .unwrap();
        let error = scaling(&[path]).unwrap_err().to_string();
        assert!(error.contains("no end in its log"), "{error}");
    }
}
