//! Whole searches: the result does not depend on the number of ranks or on interruptions.

#[path = "common/bench.rs"]
mod bench;

use bench::mpirun::{SCENARIO, run_with};
use bench::{Bench, Run, STAGE_CHANGE, STEPS, assert_same_result, finish, kill_all, output_text, signal};
use drnas_dist::Settings;
use drnas_dist::comm::Result;
use drnas_dist::comm::{Communicator, ReduceWait};
use drnas_dist::config::Config;
use drnas_dist::data::{Crop, DecodePool, Loader, LoaderSpec, ShardSet};
use drnas_dist::search::Search;
use drnas_dist::search::timeline::Timeline;
use drnas_dist::train::checkpoint;
use drnas_dist::train::state::State;
use drnas_dist::world::World;
use std::cell::RefCell;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Relative distance between two tensors.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |x: Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    let size = norm(b.shallow_clone());
    let off = norm(a.to_kind(Kind::Double) - b.to_kind(Kind::Double));
    if off == 0.0 { 0.0 } else { off / size }
}

/// Asserts that losses agree within `losses` and weights and eta within `state`, both relative, and that the
/// architectures are equal.
fn assert_agree(ours: &Run, theirs: &Run, losses: f64, state: f64) {
    for name in ["loss", "architecture_loss"] {
        let (a, b) = (ours.step_values(name), theirs.step_values(name));
        assert_eq!((a.len(), b.len()), if name == "loss" { (20, 20) } else { (10, 10) });
        for (step, (a, b)) in a.iter().zip(&b).enumerate() {
            assert!((a - b).abs() <= losses * b.abs(), "{name} {step}: {a} and {b}");
        }
    }
    let (a, b) = (ours.state(STEPS), theirs.state(STEPS));
    // All weights as one vector: single tensors can be almost zero.
    let all = |state: &std::collections::BTreeMap<String, Tensor>| {
        let weights = state.iter().filter(|(name, _)| name.starts_with("weights/"));
        Tensor::cat(&weights.map(|(_, tensor)| tensor.reshape([-1])).collect::<Vec<_>>(), 0)
    };
    println!("weights {:e}, eta {:e}", distance(&all(&a), &all(&b)), distance(&a["eta"], &b["eta"]));
    assert!(distance(&all(&a), &all(&b)) <= state, "weights: {}", distance(&all(&a), &all(&b)));
    assert!(distance(&a["eta"], &b["eta"]) <= state, "eta: {}", distance(&a["eta"], &b["eta"]));
    assert_eq!(ours.genotype(), theirs.genotype());
}

#[test]
fn search_does_not_depend_on_the_number_of_ranks() {
    let bench = Bench::get();
    let one = bench.run_search(0, "float-1", &[]);
    for ranks in [2, 4] {
        let several = bench.run_search(ranks, &format!("float-{ranks}"), &[]);
        assert_agree(&several, &one, 1e-4, 1e-3);
        // Even bit-identical: gradients are summed in float64, where the order does not affect the float32 result.
        assert_same_result(&several, &one);
    }
    let double = ["--set", "precision=fp64"];
    let one = bench.run_search(1, "double-1", &double);
    for ranks in [2, 4] {
        let several = bench.run_search(ranks, &format!("double-{ranks}"), &double);
        assert_agree(&several, &one, 1e-9, 1e-9);
    }
    let losses = one.step_values("loss");
    assert!(
        losses[15..].iter().sum::<f64>() < losses[..5].iter().sum::<f64>(),
        "the loss does not decrease: {losses:?}"
    );
}

#[test]
fn shared_theta_changes_the_search() {
    let bench = Bench::get();
    let shared = ["--set", "search.theta=shared", "--set", "precision=fp64"];
    let one = bench.run_search(0, "shared-1", &shared);
    let two = bench.run_search(2, "shared-2", &shared);
    assert_agree(&two, &one, 1e-9, 1e-9);
    let per_replica = bench.run_search(0, "own-1", &["--set", "precision=fp64"]);
    assert_ne!(one.step_values("loss"), per_replica.step_values("loss"));
}

#[test]
fn killed_and_resumed_equals_uninterrupted() {
    let bench = Bench::get();
    let whole = bench.run_search(2, "whole", &["--set", "run.checkpoint_every=1"]);
    let again = bench.run_search(2, "again", &["--set", "run.checkpoint_every=7"]);
    assert_same_result(&again, &whole);
    // Within an epoch before and after the first update of eta; just before, at and after the stage change; late.
    for kill_after in [2, 7, STAGE_CHANGE - 1, STAGE_CHANGE, STAGE_CHANGE + 1, 18] {
        let name = format!("killed-{kill_after}");
        let more = ["--set", "run.checkpoint_every=1", "--resume"];
        let mut command = bench.search(2, &name, &more);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let run = bench.run(&name);
        let start = Instant::now();
        while run.checkpoints().last().is_none_or(|&step| step < kill_after) {
            assert!(start.elapsed() < Duration::from_secs(200), "no checkpoint after step {kill_after}");
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_all(child, &run.folder);
        let found = run.checkpoints();
        println!("killed after step {kill_after} was saved; complete checkpoints: {found:?}");
        assert!(!run.folder.join("genotype.json").exists(), "the run finished before it was killed");
        let output = finish(bench.search(2, &name, &more), Duration::from_secs(300));
        assert!(output.status.success(), "{}", output_text(&output));
        assert!(output_text(&output).contains("resumed after step"), "{}", output_text(&output));
        assert_same_result(&run, &whole);
    }
}

/// The configuration of [`Bench`] as written into run folders and checkpoints before there were several methods.
const OLD_CONFIG: &str = r#"seed = 0
device = "cpu"
precision = "fp32"
channels_last = true
checkpoint_cells = false

[model]
space = "darts-imagenet"
init_channels = 12
layers = 3
num_classes = 4

[data]
px = 64
crop = "random-resized"
crop_area_min = 0.3
pad = 4
flip = true
jitter = [0.0, 0.0, 0.0, 0.0]
cutout = 0
test_resize = 0
test_crop = 0
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
decode_threads = 0
prefetch = 2
skip_bad = false

[search]
replicas = 4
global_batch = 32
theta = "per-replica"
order = 1
grad_clip = 5.0
architecture_from_epoch = 1
steps_per_epoch = 5

[[search.stage]]
k = 6
ops_kept = 7
epochs = 2

[[search.stage]]
k = 3
ops_kept = 4
epochs = 2

[weights]
lr = 0.003
lr_min = 0.0
momentum = 0.9
weight_decay = 0.0003
warmup_epochs = 1

[eta]
lr = 0.006
betas = [0.5, 0.999]
weight_decay = 0.001
regulariser = "l2"
kl_scale = 0.001
grad_clip = 5.0

[run]
log_every = 3
compare_every = 4
checkpoint_every = 3
checkpoints_kept = 3
bucket_mib = 1.0
reduce = "fp32"
threads = 1
start_limit_s = 30.0
time_limit_s = 100.0
heartbeat_s = 20.0
"#;

/// A run folder of an earlier version, whose configuration has `[eta]` and names neither method nor operations,
/// resumes, with that configuration or a new one.
#[test]
fn run_of_an_earlier_version_resumes() {
    let bench = Bench::get();
    let every = ["--set", "run.checkpoint_every=3"];
    let whole = bench.run_search(0, "new", &every);
    for (name, config) in [("old-by-old", "old-by-old/config.toml"), ("old-by-new", "search.toml")] {
        let run = bench.run_search(0, name, &every);
        std::fs::write(run.folder.join("config.toml"), OLD_CONFIG).unwrap();
        // Interrupted after step 18: with the checkpoints of steps 15 and 18 and without a result.
        let folder = checkpoint::folder(&run.folder);
        for step in run.checkpoints() {
            let mut saved = checkpoint::read(&folder, step).unwrap();
            std::fs::remove_dir_all(folder.join(format!("step-{step:09}"))).unwrap();
            if step < STEPS {
                assert!(saved.meta["extra"]["config"].is_string());
                saved.meta["extra"]["config"] = OLD_CONFIG.into();
                checkpoint::write(&folder, step, &saved, 3).unwrap();
            }
        }
        assert_eq!(run.checkpoints(), [15, 18]);
        std::fs::remove_file(run.folder.join("genotype.json")).unwrap();
        let mut command = bench.program();
        command.args(["search-imagenet", "--config", config, "--train", "train", "--valid", "valid"]);
        command.args(["--out", name, "--resume"]).args(every);
        let output = finish(command, Duration::from_secs(300));
        assert!(output.status.success(), "{}", output_text(&output));
        assert!(output_text(&output).contains("resumed after step 18"), "{}", output_text(&output));
        assert_same_result(&run, &whole);
    }
}

#[test]
fn corrupt_checkpoint_is_skipped() {
    let bench = Bench::get();
    let every = ["--set", "run.checkpoint_every=3"];
    let whole = bench.run_search(0, "intact", &every);
    bench.run_search(0, "corrupt", &every);
    let run = bench.run("corrupt");
    let steps = run.checkpoints();
    assert_eq!(steps, [15, 18, 20], "the newest three are kept");
    let newest = run.folder.join("checkpoints/step-000000020/state.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    std::fs::remove_file(run.folder.join("genotype.json")).unwrap();
    let output =
        finish(bench.search(0, "corrupt", &[&every[..], &["--resume"]].concat()), Duration::from_secs(300));
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(output_text(&output).contains("warning: "), "{}", output_text(&output));
    assert!(output_text(&output).contains("resumed after step 18"), "{}", output_text(&output));
    assert_same_result(&run, &whole);
}

#[test]
fn resuming_keeps_the_results_of_the_old_run() {
    let bench = Bench::get();
    let resume = |run: &str| finish(bench.search(0, run, &["--resume"]), Duration::from_secs(300));
    // A finished run is reported and left unchanged.
    let run = bench.run_search(0, "done", &[]);
    let files = |run: &Run| {
        ["metrics.jsonl", "report.txt", "genotype.json"]
            .map(|name| std::fs::read(run.folder.join(name)).unwrap())
    };
    let before = files(&run);
    let output = resume("done");
    assert!(
        output.status.success() && output_text(&output).contains("this run has finished"),
        "{}",
        output_text(&output)
    );
    assert_eq!(files(&run), before);
    // Without a readable checkpoint the run does not restart from the beginning.
    for step in run.checkpoints() {
        let marker = run.folder.join(format!("checkpoints/step-{step:09}/DONE"));
        std::fs::write(marker, "{}").unwrap();
    }
    let output = resume("done");
    assert!(!output.status.success());
    let none = "none of the 2 checkpoints in done/checkpoints can be read";
    assert!(output_text(&output).contains(none), "{}", output_text(&output));
    assert_eq!(files(&run), before);
    // A run that was killed before its first checkpoint restarts, with a single log.
    std::fs::create_dir_all(bench.path("early")).unwrap();
    std::fs::write(bench.path("early/metrics.jsonl"), "{\"event\":\"stage\",\"step\":0}\n").unwrap();
    let output = resume("early");
    assert!(output.status.success(), "{}", output_text(&output));
    assert_same_result(&bench.run("early"), &bench.run_search(0, "early-whole", &[]));
}

#[test]
fn clip_norm_of_0_disables_clipping() {
    let bench = Bench::get();
    let losses = |clip: &str| {
        let set = format!("search.grad_clip={clip}");
        bench.run_search(0, &format!("clip-{clip}"), &["--set", &set]).step_values("loss")
    };
    let unclipped = losses("0");
    assert_eq!(unclipped, losses("1000000.0"), "no gradient is that large");
    assert_ne!(unclipped, losses("0.1"));
}

#[test]
fn ctrl_c_writes_a_checkpoint_and_prints_how_to_resume() {
    let bench = Bench::get();
    let whole = bench.run_search(0, "uninterrupted", &[]);
    let child =
        bench.search(0, "interrupted", &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let run = bench.run("interrupted");
    let start = Instant::now();
    let logged = || std::fs::read_to_string(run.folder.join("metrics.jsonl")).unwrap_or_default();
    while !logged().contains("\"step\":3,") {
        assert!(start.elapsed() < Duration::from_secs(100));
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(child.id(), "INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", output_text(&output));
    let command = "drnas-dist search-imagenet --config search.toml --train train --valid valid --out interrupted --resume";
    assert!(output_text(&output).contains(command), "{}", output_text(&output));
    let steps = run.checkpoints();
    assert!(steps.len() == 1 && steps[0] < STEPS, "{steps:?}");
    let output = finish(bench.search(0, "interrupted", &["--resume"]), Duration::from_secs(300));
    assert!(output.status.success(), "{}", output_text(&output));
    assert_same_result(&run, &whole);
}

#[test]
fn invalid_runs_are_refused_before_the_first_step() {
    let bench = Bench::get();
    bench.run_search(0, "first", &["--set", "search.stage.2.epochs=2"]);
    let refused = |ranks: usize, run: &str, more: &[&str], words: &[&str]| {
        let output = finish(bench.search(ranks, run, more), Duration::from_secs(100));
        assert!(!output.status.success(), "{more:?} was accepted: {}", output_text(&output));
        for word in words {
            assert!(output_text(&output).contains(word), "{more:?}: no '{word}' in {}", output_text(&output));
        }
    };
    refused(0, "first", &[], &["first already contains a run", "--resume"]);
    refused(0, "first", &["--resume", "--set", "weights.lr=0.02"], &["lr = 0.003", "to lr = 0.02"]);
    refused(0, "first", &["--resume", "--train", "valid"], &["cannot be used multiple times"]);
    refused(3, "three", &[], &["search.replicas = 4 is not divisible by 3 ranks"]);
    refused(0, "classes", &["--set", "model.num_classes=7"], &["model.num_classes = 7", "found 4"]);
    refused(0, "large", &["--set", "search.global_batch=400"], &["168", "400"]);
    refused(0, "nan", &["--set", "weights.lr=1e30"], &["step ", "the loss is", "weights.lr"]);
    assert!(!bench.path("three").exists() && !bench.path("classes").exists());

    // The same images in both data sets.
    let mut command = bench.program();
    command.args(["search-imagenet", "--config", "search.toml", "--train", "valid", "--valid", "valid"]);
    let output = finish_with(command, &["--out", "same"]);
    assert!(
        output_text(&output).contains("--train valid and --valid valid contain the same images"),
        "{}",
        output_text(&output)
    );

    // Different data under the same names.
    std::fs::rename(bench.path("first"), bench.path("moved")).unwrap();
    let mut command = bench.program();
    command.args(["search-imagenet", "--config", "search.toml", "--train", "valid", "--valid", "train"]);
    let output = finish_with(command, &["--out", "moved", "--resume"]);
    assert!(
        output_text(&output)
            .contains("the configuration changed since the run started: content hash of --train"),
        "{}",
        output_text(&output)
    );
}

fn finish_with(mut command: std::process::Command, more: &[&str]) -> std::process::Output {
    command.args(more);
    finish(command, Duration::from_secs(100))
}

#[test]
fn different_configurations_on_ranks_are_refused() {
    let bench = Bench::get();
    let mut command = bench.mpirun();
    for (index, seed) in ["seed=1", "seed=2"].iter().enumerate() {
        if index > 0 {
            command.arg(":");
        }
        command.args([
            "-n",
            "1",
            env!("CARGO_BIN_EXE_drnas-dist"),
            "search-imagenet",
            "--config",
            "search.toml",
        ]);
        command.args(["--train", "train", "--valid", "valid", "--out", "mixed", "--set", seed]);
    }
    let output = finish(command, Duration::from_secs(100));
    assert!(!output.status.success());
    assert!(
        output_text(&output).contains("rank 1 and rank 0 were started with a different configuration"),
        "{}",
        output_text(&output)
    );
    assert!(!bench.path("mixed").exists());
}

// -- when reductions start -----------------------------------------------------------------------------------------

/// A communicator of one rank that records its calls in order.
#[derive(Default)]
struct Recorder(RefCell<Vec<String>>);

impl Communicator for Recorder {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn start_mean(&self, buffer: &Tensor) -> Result<()> {
        self.0.borrow_mut().push(format!("start {}", buffer.numel()));
        Ok(())
    }

    fn progress(&self) -> Result<()> {
        self.0.borrow_mut().push("progress".into());
        Ok(())
    }

    fn finish(&self) -> Result<ReduceWait> {
        self.0.borrow_mut().push("finish".into());
        Ok(ReduceWait::Host(0.0))
    }

    fn stop_requested(&self) -> bool {
        unreachable!("a step does not ask")
    }

    fn broadcast(&self, _: &Tensor, _: usize) -> Result<()> {
        unreachable!("a step has no broadcast")
    }

    fn all_gather(&self, _: &[u8]) -> Result<Vec<Vec<u8>>> {
        unreachable!("a step has no all-gather")
    }

    fn barrier(&self) -> Result<()> {
        unreachable!("a step has no barrier")
    }

    fn abort(&self, why: &dyn std::error::Error) -> ! {
        panic!("{why}")
    }
}

#[test]
fn reductions_start_during_backward() {
    let bench = Bench::get();
    let sets = ["search.stage.1.epochs=1", "search.architecture_from_epoch=0", "run.bucket_mib=0.01"];
    let config = Config::load(&bench.path("search.toml"), &sets.map(String::from)).unwrap();
    let pool = DecodePool::new(1);
    let loader = |stream: u64, name: &str| {
        let spec = LoaderSpec {
            px: 64,
            augment: Crop::Centre { resize: 64 }.into(),
            seed: 0,
            stream,
            num_replicas: 2,
            replicas: 0..2,
            batch: 4,
            prefetch: 1,
            skip_bad: false,
        };
        Loader::open(Arc::new(ShardSet::open(&bench.path(name)).unwrap()), spec, &pool, 0).unwrap()
    };
    let (mut weights, mut architecture) = (loader(0, "train"), loader(1, "valid"));
    let mut search = Search::new(&config, Timeline::new(&config, 5), 0..2, Device::Cpu);
    let recorder = Recorder::default();
    search.bilevel_step(&mut weights, &mut architecture, &recorder).unwrap();

    // eta first; no reduction during the first replica's backward; during the last replica's, each bucket as soon as
    // its segment is done, last segment first.
    let buckets = &search.net().params.buckets;
    assert!(buckets.len() > 2);
    let mut expected = vec![format!("start {}", 2 * 14 * 7), "finish".to_string()];
    expected.extend(buckets.iter().map(|_| "progress".to_string()));
    for bucket in buckets.iter().rev() {
        expected.extend([format!("start {}", bucket.grads.numel()), "progress".into()]);
    }
    expected.push("finish".into());
    assert_eq!(*recorder.0.borrow(), expected);
}

// -- a rank with a wrong value -------------------------------------------------------------------------------------

/// A search in which one bit of eta flips on rank 2.
#[test]
#[ignore = "run under mpirun by another test"]
fn rank_program() {
    if std::env::var(SCENARIO).is_err() {
        return;
    }
    let world = World::start(Duration::from_secs(60), Some(1)).expect("a world");
    let mut config = Config::default();
    (config.model.init_channels, config.model.layers, config.search.replicas) = (12, 3, 3);
    let timeline = Timeline::new(&config, 10);
    let mut search = Search::new(&config, timeline, world.rank()..world.rank() + 1, Device::Cpu);
    let outcome = search.compare_ranks(world.communicator()).and_then(|()| {
        println!("equal at the start");
        if world.rank() == 2 {
            let eta = &mut search.architecture_mut().values_mut()[0];
            let value = eta.double_value(&[1, 13, 6]) as f32;
            let _ = eta.get(1).get(13).narrow(0, 6, 1).fill_(f64::from(f32::from_bits(value.to_bits() ^ 1)));
        }
        search.compare_ranks(world.communicator())
    });
    world.end(outcome).expect("ends the process unless the world has one rank");
}

#[test]
fn flipped_bit_on_one_rank_ends_the_run() {
    let differ = "after step 0: weights, eta or masks of ranks [2] (of 3) differ";
    run_with("one wrong bit", 3, &[]).expect_failure(&["equal at the start", differ]);
}
