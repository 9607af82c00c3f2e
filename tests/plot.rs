//! `plot trajectory` on run folders of searches: figures, values, and error messages.

use drnas_dist::config::Method;
use drnas_dist::nb201::{Table, import};
use drnas_dist::random::{Purpose, stream};
use drnas_dist::report::plot::{Trajectory, png, svg};
use drnas_dist::report::{EpochRecord, EpochSummary, LogRecord};
use drnas_dist::space::nb201::{Architecture, Dataset};
use drnas_dist::space::{Mask, Operation};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A benchmark in which the accuracy of an architecture is the mean index of its operations times 20 percent (0 to 80),
/// and 1 percentage point more on CIFAR-100.
fn table(folder: &Path) -> PathBuf {
    let line = |architecture: Architecture| {
        let percent = accuracy(&architecture);
        format!("{architecture},{percent:.4},{:.4}", percent + 1.0)
    };
    let lines: Vec<String> = Architecture::all().map(line).collect();
    let (source, out) = (folder.join("source.csv"), folder.join("nb201.table"));
    fs::write(&source, format!("arch,c10_test_200,c100_test_200\n{}\n", lines.join("\n"))).unwrap();
    import(&source, &out, &[], true).unwrap();
    out
}

fn accuracy(architecture: &Architecture) -> f64 {
    (architecture.0.iter().sum::<usize>() as f64 / 6.0 * 20.0 * 1e4).round() / 1e4
}

/// An eta table in which `operation` has `value` on every edge and the rest have `others`.
fn eta(operation: usize, value: f64, others: f64) -> Value {
    let row: Vec<f64> = (0..5).map(|o| if o == operation { value } else { others }).collect();
    json!([vec![row; 6]])
}

fn epoch(stage: u64, epoch: u64, eta: Value) -> Value {
    json!({"event": "epoch", "stage": stage, "epoch": epoch, "step": 10 * epoch, "loss": null, "eta": eta,
        "masks": [vec![[true; 5]; 6]]})
}

/// A run of two stages whose distribution goes from nearly uniform to a single architecture.
fn lines() -> Vec<Value> {
    vec![
        json!({"event": "stage", "stage": 1, "step": 0, "k": 4, "ops_kept": 5, "epochs": 2, "num_weights": 7}),
        json!({"event": "step", "stage": 1, "epoch": 1, "step": 1, "loss": 2.0}),
        epoch(1, 1, eta(2, 0.001, 0.0)),
        epoch(1, 2, eta(3, 2.0, 0.0)),
        json!({"event": "stage", "stage": 2, "step": 20, "k": 2, "ops_kept": 3, "epochs": 1, "num_weights": 8}),
        epoch(2, 3, eta(4, 3.0, -40.0)),
        json!({"event": "finish", "stages": 2, "epochs": 3, "step": 30}),
    ]
}

fn write_run(folder: &Path, lines: &[Value]) -> PathBuf {
    let run = folder.join("run");
    fs::create_dir_all(&run).unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(run.join("metrics.jsonl"), text).unwrap();
    run
}

#[test]
fn values_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let table = Table::open(&table(folder.path())).unwrap();
    let run = write_run(folder.path(), &lines());
    let read = |dataset, samples, seed| Trajectory::read(&run, &table, dataset, samples, seed).unwrap();
    let trajectory = read(Dataset::Cifar10, 100, 0);
    assert_eq!((trajectory.optimum, trajectory.median), (80.0, 40.0));
    let epochs: Vec<_> = trajectory.epochs.iter().map(|epoch| (epoch.epoch, epoch.accuracy)).collect();
    assert_eq!(epochs, [(1, 40.0), (2, 60.0), (3, 80.0)]);
    let stages: Vec<_> = trajectory.stages.iter().map(|s| (s.stage, s.first_epoch, s.k_and_ops)).collect();
    assert_eq!(stages, [(1, 1, Some((4, 5))), (2, 3, Some((2, 3)))]);
    let drawn: Vec<_> = trajectory.epochs.iter().map(|epoch| epoch.sampled).collect();
    // Nearly uniform at first (mean 40, standard deviation 11.5); a single architecture at the end.
    assert!(drawn[0].min < 25.0 && drawn[0].max > 55.0, "{:?}", drawn[0]);
    assert!((drawn[0].median - 40.0).abs() < 5.0, "{:?}", drawn[0]);
    assert!(drawn[0].lower_quartile < drawn[0].median && drawn[0].median < drawn[0].upper_quartile);
    assert_eq!((drawn[2].min, drawn[2].max), (80.0, 80.0));

    assert_eq!(read(Dataset::Cifar10, 100, 0), trajectory);
    assert_ne!(read(Dataset::Cifar10, 100, 1).epochs[0], trajectory.epochs[0]);
    // The same architectures are drawn for every data set.
    let other = read(Dataset::Cifar100, 100, 0);
    assert!((other.epochs[0].sampled.max - trajectory.epochs[0].sampled.max - 1.0).abs() < 1e-9);
    // Drawn again and summarised with a full sort.
    let mut random = stream(0, Purpose::Trajectory, &[2]);
    let table_of_epoch: Vec<Vec<f64>> = serde_json::from_value(eta(3, 2.0, 0.0)[0].clone()).unwrap();
    let draw = |_| {
        accuracy(&drnas_dist::report::plot::sample_architecture(
            Method::Drnas,
            &table_of_epoch,
            &Mask::full(6, 5),
            &mut random,
        ))
    };
    let mut accuracies: Vec<f64> = (0..100).map(draw).collect();
    accuracies.sort_by(f64::total_cmp);
    assert_eq!((drawn[1].min, drawn[1].max), (accuracies[0], accuracies[99]));
    // 99 intervals: the lower quartile is at 24.75, the median at 49.5.
    assert!((drawn[1].lower_quartile - (0.25 * accuracies[24] + 0.75 * accuracies[25])).abs() < 1e-9);
    assert!((drawn[1].median - (accuracies[49] + accuracies[50]) / 2.0).abs() < 1e-9);
    let [least, largest] = [accuracies[0], accuracies[99]];
    let told = format!("epoch   2: selected 60.00 %, sampled {least:.2} to {largest:.2} %, quartiles ");
    assert!(least < largest && trajectory.text().contains(&told), "{told} {}", trajectory.text());
}

/// Number of pixels in the colour of the selected architectures, in the bytes of a PNG file.
fn orange(bytes: &[u8]) -> usize {
    let pixels = image::load_from_memory(bytes).unwrap().into_rgb8();
    pixels.pixels().filter(|p| p.0[0] > 180 && p.0[2] < 60).count()
}

#[test]
fn unfinished_search_is_plotted_up_to_its_last_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let table = Table::open(&table(folder.path())).unwrap();
    let read = |run: &Path| Trajectory::read(run, &table, Dataset::Cifar10, 100, 0);
    let whole = read(&write_run(folder.path(), &lines())).unwrap();
    // After the first epoch; after the start of the second stage.
    for (num_lines, num_epochs) in [(3, 1), (5, 2)] {
        let run = write_run(folder.path(), &lines()[..num_lines]);
        let mut text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        text += "{\"event\":\"epoch\",\"stage\":1,\"ep";
        fs::write(run.join("metrics.jsonl"), text).unwrap();
        let partial = read(&run).unwrap();
        assert_eq!(
            partial.epochs,
            whole.epochs[..num_epochs],
            "the draws differ from those of the finished run"
        );
        let figure = svg(&partial, Path::new("f.svg")).unwrap();
        assert!(
            figure.contains("k = 4, 5 operations") && !figure.contains("stage"),
            "a single stage must not be numbered"
        );
        // More than the sample in the legend, although a single epoch has no extent.
        let drawn = orange(&png(&partial, Path::new("f.png")).unwrap());
        assert!(drawn > 1000, "the line of the selected architectures has {drawn} pixels");
    }
}

/// The epoch records of a search contain all fields that the plot reads.
#[test]
fn records_of_a_search_can_be_plotted() {
    let folder = tempfile::tempdir().unwrap();
    let table = Table::open(&table(folder.path())).unwrap();
    // Another method, without nor_conv_1x1.
    let columns = [Operation::None, Operation::SkipConnect, Operation::NorConv3x3, Operation::AvgPool3x3];
    let mut mask = Mask::full(6, 4);
    mask.0.iter_mut().for_each(|row| row[3] = false);
    let summary = EpochSummary {
        stage: 1,
        epoch: 1,
        step: 5,
        steps: 5,
        loss: f64::NAN,
        top1: 0.1,
        top5: 0.5,
        architecture_loss: None,
        architecture_top1: None,
        lr: 0.025,
        images_per_s: 100.0,
        data_wait_ms: 0.0,
        reduce_wait_ms: 0.0,
        skipped_images: 0,
        wall_s: 1.0,
    };
    let record = EpochRecord {
        summary,
        eta_entropy: vec![1.6],
        method: Method::Snas,
        eta: vec![vec![vec![0.0, 0.0, 0.5, 0.9]; 6]],
        beta: None,
        masks: vec![mask],
        operations: columns.to_vec(),
        genotype: String::new(),
        benchmark: None,
    };
    let run = write_run(folder.path(), &[serde_json::to_value(LogRecord::Epoch(record)).unwrap()]);
    let trajectory = Trajectory::read(&run, &table, Dataset::Cifar10, 100, 0).unwrap();
    assert_eq!(trajectory.epochs[0].selected, Architecture([3; 6]), "a pruned operation was chosen");
    assert!(trajectory.epochs[0].sampled.max <= 60.0);
}

#[test]
fn unusable_runs_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let table = Table::open(&table(folder.path())).unwrap();
    let refusal = |lines: &[Value], text: &str| {
        let run = write_run(folder.path(), lines);
        let path = run.join("metrics.jsonl");
        fs::write(&path, fs::read_to_string(&path).unwrap() + text).unwrap();
        let error = Trajectory::read(&run, &table, Dataset::Cifar10, 10, 0).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error.replace(path.to_str().unwrap(), "METRICS")
    };
    let expected = "METRICS: line 1: expected one table of 6 edges and 5 operations";
    for another_space in [
        json!([vec![[0.0; 7]; 14], vec![[0.0; 7]; 14]]),
        json!([vec![[0.0; 5]; 6], vec![[0.0; 5]; 6]]),
        json!([vec![[0.0; 5]; 7]]),
        json!([vec![[0.0; 6]; 6]]),
    ] {
        let error = refusal(&[epoch(1, 1, another_space)], "");
        assert!(error.starts_with(expected), "{error}");
    }
    let mut masked = epoch(1, 1, eta(0, 0.0, 0.0));
    masked["masks"] = json!([vec![[false; 5]; 6]]);
    let without = json!({"event": "epoch", "stage": 1, "epoch": 1, "step": 1});
    for (lines, text, what) in [
        (&lines()[..2], "", "METRICS: no epoch has finished yet"),
        (&[without], "", "METRICS: no epoch contains eta"),
        (&[masked], "", "METRICS: line 1: an edge has no operation left"),
        (&[epoch(1, 1, json!([vec![[None::<f64>; 5]; 6]]))], "", "not finite"),
        (
            &[epoch(1, 2, eta(0, 0.0, 0.0)), epoch(1, 2, eta(0, 0.0, 0.0))],
            "",
            "line 2: epoch 2 is out of order",
        ),
        (&lines()[..3], "no JSON\n", "METRICS: line 4: "),
    ] {
        let error = refusal(lines, text);
        assert!(error.contains(what), "no {what} in {error}");
    }
    let error = Trajectory::read(&folder.path().join("none"), &table, Dataset::Cifar10, 10, 0).unwrap_err();
    assert!(error.to_string().starts_with("read "), "{error}");
    let run = write_run(folder.path(), &lines());
    let error = Trajectory::read(&run, &table, Dataset::ImageNet16, 10, 0).unwrap_err().to_string();
    assert!(error.contains("no column \"in16_test_200\"; available: c10_test_200, c100_test_200"), "{error}");
}

#[test]
fn command_writes_svg_and_png() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(folder.path());
    let run = write_run(folder.path(), &lines());
    let plot = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drnas-dist"));
        let output =
            command.args(["plot", "trajectory"]).arg(&run).args(more).output().expect("the program starts");
        let (stdout, stderr) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (output.status.code(), stdout, stderr)
    };
    let table = table.to_str().unwrap();
    assert_eq!(plot(&[]).0, Some(2), "without a table");
    // The default is the data set of the run.
    fs::write(run.join("config.toml"), "seed = 3\n[model]\nnum_classes = 100\n").unwrap();
    let (code, stdout, error) = plot(&["--table", table]);
    assert_eq!(code, Some(0), "{error}");
    assert!(stdout.starts_with(
        "CIFAR-100 test accuracy, 100 architectures sampled per epoch (search space: best 81.00 %, median 41.00 %)\n"
    ));
    assert!(
        stdout.contains(
            "\nepoch   3: selected 81.00 %, sampled 81.00 to 81.00 %, quartiles 81.00 81.00 81.00 %\n"
        ),
        "{stdout}"
    );
    assert!(run.join("trajectory-cifar100.svg").exists() && run.join("trajectory-cifar100.png").exists());

    fs::write(run.join("config.toml"), "[model]\nnum_classes = 120\n").unwrap();
    let (code, _, error) = plot(&["--table", table]);
    assert!(code == Some(1) && error.contains("no column \"in16_test_200\""), "{error}");

    let out = folder.path().join("figures/v1.2.svg");
    // The same two files with and without the extension.
    for out in [&out, &out.with_extension("")] {
        let (code, _, error) =
            plot(&["--dataset", "cifar10", "--out", out.to_str().unwrap(), "--table", table]);
        assert_eq!(code, Some(0), "{error}");
    }
    // A different figure of that name is replaced only with --overwrite; figures in the run folder are always replaced.
    let before = fs::read(&out).unwrap();
    let other = ["--dataset", "cifar100", "--out", out.to_str().unwrap(), "--table", table];
    let (code, _, error) = plot(&other);
    assert!(code == Some(1) && error.contains("v1.2.svg already exists with different content"), "{error}");
    assert_eq!(fs::read(&out).unwrap(), before);
    assert_eq!(plot(&[&other[..], &["--overwrite"]].concat()).0, Some(0));
    assert_ne!(fs::read(&out).unwrap(), before);
    assert_eq!(plot(&["--dataset", "cifar100", "--table", table, "--seed", "1"]).0, Some(0));
    let again = ["--dataset", "cifar10", "--out", out.to_str().unwrap(), "--table", table, "--overwrite"];
    assert_eq!(plot(&again).0, Some(0));
    let figure = fs::read_to_string(&out).unwrap();
    assert!(figure.starts_with("<svg ") && figure.trim_end().ends_with("</svg>"));
    for text in [
        "CIFAR-10: search trajectory",
        "Search epoch",
        "Test accuracy (%)",
        "stage 1: k = 4, 5 operations",
        "stage 2: k = 2, 3 operations",
        "selected by the Dirichlet mean (last: 80.00 %)",
        "100 sampled architectures: min to max",
        "quartiles of the samples",
        "best of the space, 80.00 %",
        "median of the space, 40.00 %",
    ] {
        assert!(figure.contains(text), "no {text} in the figure");
    }
    assert_eq!(figure.matches("<polygon").count(), 4, "range and quartiles, in both panels");
    let bytes = fs::read(folder.path().join("figures/v1.2.png")).unwrap();
    let pixels = image::load_from_memory(&bytes).unwrap().into_rgb8();
    assert_eq!(pixels.dimensions().0, 1720);
    let orange = orange(&bytes);
    assert!(orange > 1000, "the line of the selected architectures has {orange} pixels");
    assert!(
        pixels.pixels().filter(|p| p.0 == [255; 3]).count() > pixels.len() / 3 / 4,
        "the background is not white"
    );
    assert_eq!(fs::read_dir(folder.path().join("figures")).unwrap().count(), 2, "a temporary file remains");
}
