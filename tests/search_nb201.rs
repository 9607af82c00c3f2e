//! Whole searches on NAS-Bench-201 and of CIFAR cells: numbers of ranks, interruptions, and results from the benchmark
//! table.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other test programs use the rest")]
mod bench;

use bench::{Bench, Run, STAGE_CHANGE, assert_same_result, finish, kill_all, output_text};
use drnas_dist::space::nb201::{Architecture, DRNAS};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Two stages of two epochs of five steps, as in tests/search.rs.
const CONFIG: &str = "
device = \"cpu\"
[model]
space = \"nas-bench-201\"
init_channels = 4
layers = 1
num_classes = 4
[data]
px = 16
crop_area_min = 0.3
[search]
replicas = 2
global_batch = 16
architecture_from_epoch = 1
steps_per_epoch = 5
[[search.stage]]
k = 4
ops_kept = 5
epochs = 2
[[search.stage]]
k = 2
ops_kept = 3
epochs = 2
[weights]
lr = 0.02
warmup_epochs = 0
[eta]
lr = 0.05
grad_clip = 0.0
[run]
log_every = 3
compare_every = 4
checkpoint_every = 100
time_limit_s = 100
threads = 1
";

/// Writes the configuration, and a table in which an architecture's accuracies follow from its code.
fn bench() -> &'static Bench {
    static READY: std::sync::Once = std::sync::Once::new();
    let bench = Bench::get();
    READY.call_once(|| {
        std::fs::write(bench.path("nb201.toml"), CONFIG).unwrap();
        let row = |(index, architecture): (usize, Architecture)| {
            let [a, b, c] = accuracies(&architecture);
            format!("{architecture},{index},{a:.4},{b:.4},{c:.4}\n")
        };
        let rows: String = Architecture::all().enumerate().map(row).collect();
        let csv = format!("arch,index,c10_test_200,c100_test_200,in16_test_200\n{rows}");
        std::fs::write(bench.path("table.csv"), csv).unwrap();
        let output =
            bench.program().args(["nb201", "import", "table.csv", "--out", "nb201.table"]).output().unwrap();
        assert!(output.status.success(), "{}", output_text(&output));
    });
    bench
}

fn accuracies(architecture: &Architecture) -> [f64; 3] {
    let code = architecture.code() as f64;
    [code / 1000.0, code / 2000.0, code / 4000.0]
}

/// Overrides what `--dataset` sets and does not match the demonstration images.
const SETS: [&str; 4] = ["--set", "model.num_classes=4", "--set", "data.px=16"];

fn run_search(ranks: usize, run: &str, more: &[&str]) -> Run {
    let bench = bench();
    let words = ["search-nb201", "--dataset", "cifar10", "--config", "nb201.toml", "--table", "nb201.table"];
    let command = bench.search_with(&words, ranks, run, &[&SETS, more].concat());
    let output = finish(command, Duration::from_secs(300));
    assert!(output.status.success(), "{ranks} ranks, {more:?}: {}", output_text(&output));
    bench.run(run)
}

#[test]
fn search_does_not_depend_on_the_number_of_ranks_in_either_order() {
    let one = run_search(0, "one", &[]);
    assert_same_result(&run_search(2, "two", &[]), &one);
    let kl = ["--set", "eta.regulariser=kl"];
    let second = [&kl[..], &["--set", "search.order=2"]].concat();
    let one_second = run_search(0, "one-second", &second);
    assert_same_result(&run_search(2, "two-second", &second), &one_second);
    let (plain, kl) = (one.step_values("loss"), run_search(0, "one-kl", &kl).step_values("loss"));
    let second = one_second.step_values("loss");
    // KL replaces weight decay; it also differs from no weight decay.
    let free = run_search(0, "one-free", &["--set", "eta.weight_decay=0"]).step_values("loss");
    assert!(plain != kl && kl != free && kl != second, "second order or the regulariser has no effect");
    // Identical until the first update of eta.
    assert!(plain[..5] == kl[..5] && kl[..5] == second[..5]);
    assert_eq!(one_second.step_values("architecture_loss").len(), 10);
}

#[test]
fn killed_after_the_stage_change_and_resumed_equals_uninterrupted() {
    let bench = bench();
    let more = ["--set", "search.order=2", "--set", "run.checkpoint_every=1"];
    let whole = run_search(2, "whole", &more);
    let words = ["search-nb201", "--dataset", "cifar10", "--config", "nb201.toml", "--table", "nb201.table"];
    let mut command = bench.search_with(&words, 2, "killed", &[&SETS[..], &more].concat());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let run = bench.run("killed");
    let start = Instant::now();
    while run.checkpoints().last().is_none_or(|&step| step < STAGE_CHANGE + 1) {
        assert!(start.elapsed() < Duration::from_secs(200), "no checkpoint after the stage change");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill_all(child, &run.folder);
    assert!(!run.folder.join("genotype.json").exists(), "the run finished before it was killed");
    assert_same_result(&run_search(2, "killed", &[&more[..], &["--resume"]].concat()), &whole);
}

#[test]
fn every_epoch_logs_eta_and_the_benchmark_accuracies() {
    let run = run_search(0, "epochs", &[]);
    let epochs: Vec<_> = run.log().into_iter().filter(|line| line["event"] == "epoch").collect();
    assert_eq!(epochs.len(), 4);
    for (number, epoch) in epochs.iter().enumerate() {
        let architecture: Architecture = epoch["genotype"].as_str().unwrap().parse().unwrap();
        let expected = accuracies(&architecture);
        for (name, expected) in ["cifar10", "cifar100", "imagenet16-120"].iter().zip(expected) {
            assert!((epoch["benchmark"][name].as_f64().unwrap() - expected).abs() < 1e-4, "{name}");
        }
        let eta: Vec<Vec<Vec<f64>>> = serde_json::from_value(epoch["eta"].clone()).unwrap();
        let masks: Vec<Vec<Vec<bool>>> = serde_json::from_value(epoch["masks"].clone()).unwrap();
        assert_eq!((eta.len(), eta[0].len(), eta[0][0].len()), (1, 6, 5));
        for (eta, mask) in eta[0].iter().zip(&masks[0]) {
            let kept = mask.iter().filter(|kept| **kept).count();
            assert_eq!(kept, if number < 2 { 5 } else { 3 });
            assert!(eta.iter().all(|eta| eta.is_finite()));
        }
        assert_eq!(epoch["eta_entropy"].as_array().unwrap().len(), 1);
    }
    let found: serde_json::Value = serde_json::from_str(&run.genotype()).unwrap();
    assert_eq!(found["architecture"], epochs[3]["genotype"]);
    let report = std::fs::read_to_string(run.folder.join("report.txt")).unwrap();
    // Accuracies of this table rise with the code, so the best architecture is the last one.
    let best = Architecture::all().last().unwrap();
    for words in [found["architecture"].as_str().unwrap(), &DRNAS.to_string(), &best.to_string()] {
        assert!(report.contains(words), "no {words} in {report}");
    }
    let rank = |architecture: &Architecture| 15625 - architecture.code();
    for words in [format!("({:>6})", rank(&DRNAS)), format!("({:>6})", 1), "median".into()] {
        assert!(report.contains(&words), "no {words} in {report}");
    }
}

#[test]
fn cifar_cells_are_searched_in_two_stages() {
    let bench = bench();
    let config = CONFIG
        .replace("nas-bench-201", "darts-cifar")
        .replace("layers = 1", "layers = 3")
        .replace("ops_kept = 5", "ops_kept = 7")
        .replace("ops_kept = 3", "ops_kept = 4");
    std::fs::write(bench.path("cifar.toml"), config).unwrap();
    let words = ["search-cifar", "--config", "cifar.toml"];
    let output = finish(bench.search_with(&words, 0, "cifar", &[]), Duration::from_secs(300));
    assert!(output.status.success(), "{}", output_text(&output));
    let found = output_text(&output);
    assert!(found.contains("stage 2/2: k 2, 4 operations per edge"), "{found}");
    assert!(
        found.contains("Published result of DrNAS:\n\nGenotype(normal=[('sep_conv_3x3', 0), "),
        "{found}"
    );
    let words = ["search-cifar", "--config", "nb201.toml"];
    let output = finish(bench.search_with(&words, 0, "wrong", &[]), Duration::from_secs(100));
    assert!(output_text(&output).contains("this is search-cifar, but the configuration is for search-nb201"));
}
