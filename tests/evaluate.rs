//! Whole evaluations: results do not depend on the number of ranks or on interruptions, existing weights can be tested,
//! and invalid runs are refused.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::{Bench, Run, assert_same_result_after, finish, kill_all, output_text};
use drnas_dist::eval::state::read_weights;
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

/// Four epochs of five steps.
const STEPS: u64 = 20;

/// Enables all random parts: crops, flips, colour jitter, cutout, drop path.
const CONFIG: &str = "
device = \"cpu\"
[model]
space = \"darts-cifar\"
init_channels = 4
layers = 3
num_classes = 4
[data]
px = 32
crop = \"pad\"
jitter = [0.4, 0.4, 0.4, 0.2]
cutout = 8
[evaluate]
replicas = 4
global_batch = 32
epochs = 4
steps_per_epoch = 5
decay = \"cosine\"
drop_path = 0.3
test_batch = 10
[weights]
lr = 0.02
warmup_epochs = 1
[run]
log_every = 3
compare_every = 4
checkpoint_every = 100
time_limit_s = 100
threads = 1
";

fn bench() -> &'static Bench {
    static READY: Once = Once::new();
    let bench = Bench::get();
    READY.call_once(|| std::fs::write(bench.path("evaluate.toml"), CONFIG).unwrap());
    bench
}

/// The command that runs an evaluation on `ranks` ranks (0: without mpirun) into the run folder `run`.
fn command(ranks: usize, run: &str, more: &[&str]) -> Command {
    let bench = bench();
    let mut command = if ranks == 0 { bench.program() } else { bench.mpirun() };
    if ranks > 0 {
        command.args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_drnas-dist")]);
    }
    command.args(["evaluate-cifar", "--config", "evaluate.toml", "--genotype", "DrNAS_cifar10"]);
    command.args(["--test", "valid", "--out", run]);
    if !more.contains(&"--test-only") {
        command.args(["--train", "train"]);
    }
    command.args(more);
    command
}

fn run_evaluation(ranks: usize, run: &str, more: &[&str]) -> Run {
    let output = finish(command(ranks, run, more), Duration::from_secs(300));
    assert!(output.status.success(), "{ranks} ranks, {more:?}: {}", output_text(&output));
    bench().run(run)
}

fn epochs(run: &Run) -> Vec<serde_json::Value> {
    run.log().into_iter().filter(|line| line["event"] == "evaluated_epoch").collect()
}

fn assert_same(ours: &Run, theirs: &Run) {
    assert_same_result_after(STEPS, ours, theirs);
    let best = |run: &Run| read_weights(&run.folder.join("best.safetensors")).unwrap();
    let (a, b) = (best(ours), best(theirs));
    assert!(a.iter().all(|(name, tensor)| tensor.equal(&b[name])), "the best weights differ");
}

#[test]
fn evaluation_does_not_depend_on_the_number_of_ranks() {
    let one = run_evaluation(0, "one", &[]);
    for ranks in [2, 4] {
        assert_same(&run_evaluation(ranks, &format!("ranks-{ranks}"), &[]), &one);
    }
    // Each of the 84 test images once, although 84 is not a multiple of the ranks times the batch size.
    let epochs = epochs(&one);
    assert_eq!(epochs.len(), 4);
    assert!(epochs.iter().all(|epoch| epoch["test_images"] == 84), "{epochs:?}");
    let tops: Vec<f64> = epochs.iter().map(|epoch| epoch["test_top1"].as_f64().unwrap()).collect();
    let end = one.log().pop().unwrap();
    assert_eq!(end["event"], "evaluated");
    assert_eq!(end["last_top1"], tops[3]);
    let best = tops.iter().copied().fold(0.0, f64::max);
    assert_eq!((&end["best_top1"], &end["best_epoch"]), (&best.into(), &epochs[3]["best_epoch"]));
    assert_eq!(tops[epochs[3]["best_epoch"].as_u64().unwrap() as usize - 1], best);
    let report = std::fs::read_to_string(one.folder.join("report.txt")).unwrap();
    assert!(report.contains("last epoch (4): top-1 ") && report.contains("best epoch ("), "{report}");
    // Drop path rises from epoch to epoch; the learning rate warms up and falls.
    let column = |name: &str| epochs.iter().map(|epoch| epoch[name].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(column("drop_path"), [0.0, 0.3 / 4.0, 0.3 * 2.0 / 4.0, 0.3 * 3.0 / 4.0]);
    assert!(column("lr").is_sorted_by(|a, b| a >= b) && column("lr")[0] == 0.02, "{:?}", column("lr"));
}

#[test]
fn drop_path_and_the_auxiliary_head_affect_training() {
    let losses = |run: &str, more: &[&str]| run_evaluation(0, run, more).step_values("loss");
    let (with, without) = (losses("drop", &[]), losses("no-drop", &["--set", "evaluate.drop_path=0"]));
    // The first epoch has no drop path.
    assert_eq!(with[..5], without[..5]);
    assert!(with.iter().zip(&without).skip(5).all(|(with, without)| with != without), "{with:?} {without:?}");

    // The loss of the first step is that of the main head plus the weight times that of the auxiliary head.
    let first = |weight: &str| {
        let weight_set = format!("evaluate.auxiliary_weight={weight}");
        let more =
            ["--set", "evaluate.epochs=1", "--set", "evaluate.steps_per_epoch=1", "--set", &weight_set];
        losses(&format!("auxiliary-{weight}"), &more)[0]
    };
    let (low, middle, high) = (first("0.1"), first("0.2"), first("0.4"));
    let auxiliary = [(middle - low) / 0.1, (high - middle) / 0.2];
    // Four classes, untrained: near ln 4.
    assert!(
        (auxiliary[0] - auxiliary[1]).abs() < 1e-4 && (1.0..2.5).contains(&auxiliary[0]),
        "{auxiliary:?}"
    );
    let head = low - 0.1 * auxiliary[0];
    assert!((1.0..2.5).contains(&head), "{head}");
    // Two separate heads: the same head twice would pass the checks above.
    assert!((head - auxiliary[0]).abs() > 1e-3, "{head} {auxiliary:?}");
}

#[test]
fn killed_and_resumed_equals_uninterrupted() {
    let whole = run_evaluation(2, "whole", &[]);
    // Within an epoch, at the end of one, and late.
    for kill_after in [2, 5, 17] {
        let name = format!("killed-{kill_after}");
        let more = ["--set", "run.checkpoint_every=1", "--resume"];
        let child = command(2, &name, &more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let run = bench().run(&name);
        let start = Instant::now();
        while run.checkpoints().last().is_none_or(|&step| step < kill_after) {
            assert!(start.elapsed() < Duration::from_secs(200), "no checkpoint after step {kill_after}");
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_all(child, &run.folder);
        assert!(!run.folder.join("report.txt").exists(), "the run finished before it was killed");
        // Resumes on a different number of ranks.
        let output = finish(command(1, &name, &more), Duration::from_secs(300));
        assert!(output.status.success(), "{}", output_text(&output));
        assert!(output_text(&output).contains("resumed after step"), "{}", output_text(&output));
        assert_same(&run, &whole);
    }
    let again = finish(command(2, "whole", &["--resume"]), Duration::from_secs(100));
    assert!(output_text(&again).contains("this run has finished"), "{}", output_text(&again));
}

#[test]
fn trained_weights_can_be_tested_and_exported() {
    let trained = run_evaluation(0, "trained", &["--set", "evaluate.test_every=3"]);
    let tested: Vec<bool> = epochs(&trained).iter().map(|epoch| epoch["test_top1"].is_f64()).collect();
    assert_eq!(tested, [false, false, true, true], "tests run every third epoch and after the last");
    let end = trained.log().pop().unwrap();
    let result = |weights: &str, ranks: usize, out: &str| -> serde_json::Value {
        let output =
            finish(command(ranks, out, &["--test-only", "--weights", weights]), Duration::from_secs(100));
        assert!(output.status.success(), "{}", output_text(&output));
        serde_json::from_slice(&std::fs::read(bench().path(out).join("test.json")).unwrap()).unwrap()
    };
    let correct = |top1: &serde_json::Value| (84.0 * top1.as_f64().unwrap()).round() as u64;
    let newest = format!("trained/checkpoints/step-{STEPS:09}/state.safetensors");
    let last = result(&newest, 0, "tested-last");
    assert_eq!((&last["images"], &last["top1_hits"]), (&84.into(), &correct(&end["last_top1"]).into()));
    assert_eq!(result(&newest, 3, "tested-by-3"), last, "three ranks get a different result");
    let best = result("trained/best.safetensors", 2, "tested-best");
    assert_eq!(best["top1_hits"], correct(&end["best_top1"]));

    for (more, from) in [(None, "the checkpoint of step 20"), (Some("--best"), "the best test")] {
        let mut export = bench().program();
        export.args(["export", "trained", "--to", "exported", "--overwrite"]).args(more);
        let output = export.output().unwrap();
        assert!(output.status.success(), "{}", output_text(&output));
        let about = std::fs::read_to_string(bench().path("exported/network.json")).unwrap();
        assert!(about.contains(from), "{about}");
        let expected = if more.is_some() { &best } else { &last };
        let out = format!("tested-export{}", more.unwrap_or_default());
        assert_eq!(&result("exported/weights.safetensors", 0, &out), expected);
    }
    let genotype = std::fs::read_to_string(bench().path("exported/genotype.json")).unwrap();
    assert_eq!(genotype, trained.genotype());
}

#[test]
fn invalid_runs_are_refused_before_the_first_step() {
    let refused = |command: Command, words: &[&str]| {
        let output: Output = finish(command, Duration::from_secs(100));
        assert!(!output.status.success(), "accepted: {}", output_text(&output));
        for word in words {
            assert!(output_text(&output).contains(word), "no '{word}' in {}", output_text(&output));
        }
    };
    run_evaluation(0, "first", &["--set", "evaluate.epochs=1"]);
    let one_epoch = ["--set", "evaluate.epochs=1", "--resume"];
    refused(command(0, "first", &[]), &["first already contains a run", "--resume"]);
    refused(
        command(0, "first", &[&one_epoch[..], &["--set", "evaluate.drop_path=0.2"]].concat()),
        &["drop_path = 0.3", "to drop_path = 0.2"],
    );
    let mut other = bench().program();
    other.args(["evaluate-cifar", "--config", "evaluate.toml", "--genotype", "DARTS_V2", "--train", "train"]);
    other.args(["--test", "valid", "--out", "first"]).args(one_epoch);
    refused(other, &["the configuration changed since the run started: content hash of --genotype"]);
    refused(command(3, "three", &[]), &["evaluate.replicas = 4 is not divisible by 3 ranks"]);
    refused(command(0, "classes", &["--set", "model.num_classes=7"]), &["num_classes = 7", "found 4"]);
    refused(command(0, "nan", &["--set", "weights.lr=1e30"]), &["step ", "the loss is", "weights.lr"]);
    refused(
        command(0, "small", &["--set", "data.px=16"]),
        &["the auxiliary head gets a 4 x 4 map and requires 8 x 8", "data.px=32", "auxiliary_weight=0"],
    );
    let mut imagenet = bench().program();
    imagenet.args(["evaluate-imagenet", "--config", "evaluate.toml", "--genotype", "DARTS_V2"]);
    imagenet.args(["--train", "train", "--test", "valid", "--out", "imagenet"]);
    refused(imagenet, &["model.space = \"darts-cifar\" requires the command evaluate-cifar"]);
    let mut same = bench().program();
    same.args(["evaluate-cifar", "--config", "evaluate.toml", "--genotype", "DARTS_V2"]);
    same.args(["--train", "valid", "--test", "valid", "--out", "same"]);
    refused(same, &["--train valid and --test valid contain the same images"]);
    refused(command(0, "none", &["--test-only"]), &["--weights"]);
    refused(
        command(
            0,
            "wrong",
            &["--test-only", "--weights", "first/best.safetensors", "--set", "model.layers=4"],
        ),
        &["belong to another network"],
    );
    refused(
        command(0, "text", &["--test-only", "--weights", "evaluate.toml"]),
        &["expected a safetensors file"],
    );
    assert!(!bench().path("three").exists() && !bench().path("small").exists());
}

/// Packs the images as the data set `name` after renaming the last class so that it sorts first.
fn pack_with_renamed_class(name: &str) {
    let bench = bench();
    let images = format!("{name}-images");
    let copied = Command::new("cp").arg("-r").args([bench.path("images"), bench.path(&images)]).status();
    assert!(copied.unwrap().success());
    let mut classes: Vec<_> =
        std::fs::read_dir(bench.path(&images)).unwrap().map(|entry| entry.unwrap().path()).collect();
    classes.sort();
    let last = classes.pop().unwrap();
    std::fs::rename(&last, last.with_file_name("a-first-one")).unwrap();
    let output = bench.program().args(["pack", &images, name]).output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
}

#[test]
fn weights_are_tested_only_on_the_classes_they_were_trained_on() {
    use drnas_dist::train::checkpoint;
    let bench = bench();
    let trained = run_evaluation(0, "classes-trained", &["--set", "evaluate.epochs=1"]);
    pack_with_renamed_class("shifted");
    let export = |to: &str, more: &[&str]| {
        let output =
            bench.program().args(["export", "classes-trained", "--to", to]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", output_text(&output));
        output_text(&output)
    };
    export("classes-newest", &[]);
    export("classes-best", &["--best"]);
    let about = std::fs::read_to_string(bench.path("classes-best/network.json")).unwrap();
    let about: serde_json::Value = serde_json::from_str(&about).unwrap();
    assert_eq!(about["classes"][0], "checked-square");
    let test = |ranks: usize, weights: &str, set: &str, out: &str| -> Output {
        let mut command = command(ranks, out, &["--test-only", "--weights", weights]);
        // clap refuses a second `--test`, so the argument is replaced.
        if set != "valid" {
            let words: Vec<_> = command.get_args().map(|word| word.to_owned()).collect();
            command = if ranks == 0 { bench.program() } else { bench.mpirun() };
            command.args(words.into_iter().map(|word| if word == "valid" { set.into() } else { word }));
        }
        finish(command, Duration::from_secs(100))
    };
    let checkpoint = "classes-trained/checkpoints/step-000000005/state.safetensors";
    for (number, weights) in [
        "classes-trained/best.safetensors",
        checkpoint,
        "classes-newest/weights.safetensors",
        "classes-best/weights.safetensors",
    ]
    .into_iter()
    .enumerate()
    {
        let output = test(0, weights, "shifted", &format!("shifted-{number}"));
        assert!(!output.status.success(), "{weights}: {}", output_text(&output));
        for word in [weights, "shifted", "label 0", "checked-square", "a-first-one"] {
            assert!(output_text(&output).contains(word), "no '{word}' in {}", output_text(&output));
        }
        let output = test(0, weights, "valid", &format!("unshifted-{number}"));
        assert!(
            output.status.success() && !output_text(&output).contains("warning"),
            "{}",
            output_text(&output)
        );
    }

    // Files from older versions contain no class names: testing and exporting work, with one warning.
    let saved = checkpoint::read(&trained.folder.join("checkpoints"), 5).unwrap();
    let weights = read_weights(&bench.path(checkpoint)).unwrap();
    let named: Vec<_> = weights.iter().collect();
    tch::Tensor::write_safetensors(&named, bench.path("old.safetensors")).unwrap();
    let output = test(2, "old.safetensors", "valid", "old-tested");
    assert!(output.status.success(), "{}", output_text(&output));
    assert_eq!(
        output_text(&output).matches("old.safetensors has no class names").count(),
        1,
        "{}",
        output_text(&output)
    );
    let mut old = saved;
    old.meta["extra"].as_object_mut().unwrap().remove("classes").expect("classes are in the checkpoint");
    checkpoint::write(&trained.folder.join("checkpoints"), 5, &old, 1).unwrap();
    let text = export("classes-old", &[]);
    assert_eq!(text.matches("no class names").count(), 1, "{text}");
    let output = test(0, "classes-old/weights.safetensors", "valid", "old-export-tested");
    assert!(
        output.status.success() && output_text(&output).contains("no class names"),
        "{}",
        output_text(&output)
    );
    // A run resumes from such a checkpoint.
    let more = ["--set", "evaluate.epochs=1", "--resume"];
    let output = finish(command(0, "classes-trained", &more), Duration::from_secs(100));
    assert!(output.status.success(), "{}", output_text(&output));
}

#[test]
fn files_are_only_overwritten_on_request() {
    let bench = bench();
    let more = ["--set", "evaluate.epochs=2", "--set", "evaluate.test_every=1"];
    run_evaluation(0, "kept", &more);
    let run = |words: &[&str]| bench.program().args(words).output().unwrap();
    let good = |words: &[&str]| {
        let output = run(words);
        assert!(output.status.success(), "{words:?}: {}", output_text(&output));
    };
    let refused = |words: &[&str], file: &str| {
        let before = std::fs::read(bench.path(file)).unwrap();
        let output = run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?} was accepted: {}", output_text(&output));
        assert!(output_text(&output).contains(file), "{file} is not named in {}", output_text(&output));
        assert_eq!(std::fs::read(bench.path(file)).unwrap(), before, "{file} was changed");
    };
    // Exports: repeating the same export is accepted, a different one is refused.
    good(&["export", "kept", "--to", "kept-export", "--best"]);
    good(&["export", "kept", "--to", "kept-export", "--best"]);
    refused(&["export", "kept", "--to", "kept-export"], "kept-export/network.json");
    good(&["export", "kept", "--to", "kept-export", "--overwrite"]);
    std::fs::write(bench.path("kept-export/weights.safetensors"), "mine").unwrap();
    refused(&["export", "kept", "--to", "kept-export"], "kept-export/weights.safetensors");

    // Tests.
    let test = ["--test-only", "--weights", "kept/best.safetensors"];
    let tested = finish(command(0, "kept-test", &test), Duration::from_secs(100));
    assert!(tested.status.success(), "{}", output_text(&tested));
    for ranks in [0, 2] {
        std::fs::write(bench.path("kept-test/test.json"), "mine").unwrap();
        let again = finish(command(ranks, "kept-test", &test), Duration::from_secs(100));
        assert!(
            !again.status.success() && output_text(&again).contains("kept-test/test.json"),
            "{}",
            output_text(&again)
        );
        assert_eq!(std::fs::read(bench.path("kept-test/test.json")).unwrap(), b"mine");
    }

    // Runs: existing files in the run folder.
    for file in ["report.txt", "finished.json", "best.safetensors", "config.toml", "genotype.json"] {
        let name = format!("kept-{file}");
        std::fs::create_dir(bench.path(&name)).unwrap();
        std::fs::write(bench.path(&name).join(file), "mine").unwrap();
        let output = finish(command(0, &name, &[]), Duration::from_secs(100));
        assert_eq!(output.status.code(), Some(1), "{file}: {}", output_text(&output));
        assert!(output_text(&output).contains(&name), "{file}: {}", output_text(&output));
        assert_eq!(std::fs::read(bench.path(&name).join(file)).unwrap(), b"mine", "{file} was changed");
    }

    // Demonstration images.
    let demo = |seed| ["demo-data", "kept-demo", "--classes", "2", "--per-class", "2", "--seed", seed];
    good(&demo("1"));
    good(&demo("1"));
    refused(&demo("2"), "kept-demo/solid-disc/0000.jpg");
}
