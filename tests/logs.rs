//! Output of runs and other commands: closed or full output streams, log files of the run folder, timestamps, and the
//! names of replaced images.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::{Bench, finish, output_text, signal, wait};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);

/// One stage of one epoch: three steps.
const SHORT: [&str; 8] = [
    "--set",
    "search.stage=[{k=6,ops_kept=7,epochs=1}]",
    "--set",
    "search.architecture_from_epoch=0",
    "--set",
    "search.steps_per_epoch=3",
    "--set",
    "run.log_every=1",
];

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// The write end of a pipe without a reader.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// The lines of a log file without the UTC timestamp that each must start with.
fn lines_without_time(path: &Path) -> Vec<String> {
    let line = |line: &str| {
        let (time, rest) = line.split_once(' ').unwrap_or((line, ""));
        assert!(is_time(time), "no timestamp in {line:?} of {}", path.display());
        rest.to_owned()
    };
    text(path).lines().map(line).collect()
}

/// Whether `word` is a timestamp such as 2026-11-27T18:58:28Z.
fn is_time(word: &str) -> bool {
    let shape: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00Z" && word.starts_with("20")
}

fn assert_finished(name: &str, output: &Output) {
    let bench = Bench::get();
    assert!(output.status.success(), "{name}: {:?} {}", output.status, output_text(output));
    assert!(!output_text(output).contains("panicked"), "{name}: {}", output_text(output));
    assert!(bench.path(name).join("finished.json").exists(), "{name}: {}", output_text(output));
    assert!(text(&bench.path(name).join("report.txt")).contains("Architecture found"), "{name}");
    let log = lines_without_time(&bench.path(name).join("console.log"));
    assert!(log.iter().any(|line| line.starts_with("epoch 1: loss ")), "{name}: {log:?}");
    assert!(log.iter().any(|line| line.starts_with("Architecture found")), "{name}: {log:?}");
}

/// Two threads that share one core always wait for it.
#[test]
fn competition_for_cores_is_reported() {
    let bench = Bench::get();
    let run = |name: &str, threads: &str, policy: Option<&str>| {
        let steps = ["--set", "search.steps_per_epoch=5", "--set", threads];
        let search = bench.search(0, name, &[&SHORT, &steps[..]].concat());
        let mut command = bench.command("taskset");
        command.args(["--cpu-list", "0"]).arg(search.get_program()).args(search.get_args());
        command.env_remove("OMP_WAIT_POLICY").env_remove("GOMP_SPINCOUNT");
        command.envs(policy.map(|policy| ("OMP_WAIT_POLICY", policy)));
        let output = finish(command, LIMIT);
        assert_finished(name, &output);
        output_text(&output).matches("waited for a core").count()
    };
    assert_eq!(run("shared-core", "run.threads=2", None), 1);
    assert_eq!(run("passive", "run.threads=2", Some("passive")), 0);
    assert_eq!(run("one-thread", "run.threads=1", None), 0);
}

#[test]
fn run_continues_when_its_output_cannot_be_written() {
    let bench = Bench::get();
    for (name, stdout, stderr) in [
        ("closed-out", closed(), Stdio::piped()),
        ("full-out", full().into(), Stdio::piped()),
        ("closed-both", closed(), closed()),
        ("full-both", full().into(), full().into()),
    ] {
        let child = bench.search(0, name, &SHORT).stdout(stdout).stderr(stderr).spawn().unwrap();
        assert_finished(name, &wait(child, LIMIT));
    }
    // With the updated progress line.
    let mut command = bench.search(0, "bar", &SHORT);
    command.env("DRNAS_PROGRESS", "bar").stdout(full()).stderr(Stdio::piped());
    assert_finished("bar", &wait(command.spawn().unwrap(), LIMIT));
    // Started with both streams closed.
    let mut shell = bench.command("sh");
    let program = env!("CARGO_BIN_EXE_drnas-dist");
    let words = bench.search(0, "none", &SHORT);
    let words: Vec<_> = words.get_args().collect();
    shell.args(["-c", "exec \"$0\" \"$@\" >&- 2>&-", program]).args(words);
    assert_finished("none", &finish(shell, LIMIT));
}

#[test]
fn ranks_continue_when_the_output_of_mpirun_cannot_be_written() {
    let bench = Bench::get();
    for (name, stdout) in [("mpirun-closed", closed()), ("mpirun-full", full().into())] {
        let child = bench.search(2, name, &SHORT).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let output = wait(child, LIMIT);
        assert!(bench.path(name).join("finished.json").exists(), "{name}: {}", output_text(&output));
        assert!(!output_text(&output).contains("panicked"), "{name}: {}", output_text(&output));
    }
}

#[test]
fn other_commands_end_quietly_on_a_closed_pipe() {
    let bench = Bench::get();
    let golden = format!("{}/tests/golden/schedules.json", env!("CARGO_MANIFEST_DIR"));
    bench.run_search(0, "reported", &SHORT);
    // Arguments, and whether the printed text is the result of the command.
    let commands: [(&[&str], bool); 8] = [
        (&["doctor"], true),
        (&["verify", &golden], true),
        (&["report", "scaling", "reported"], true),
        (&["--help"], false), // clap ignores write errors
        (
            &["search-imagenet", "--train", "train", "--valid", "valid", "--out", "reported", "--resume"],
            false,
        ),
        (&["demo-data", "quiet", "--classes", "2", "--per-class", "2"], false),
        (&["split", "images", "--fractions", "0.6,0.3", "--names", "train,valid", "--out", "lists"], false),
        (&["pack", "images", "train", "--list", "lists/train.txt", "--shard-images", "40"], false),
    ];
    for (words, prints) in commands {
        let run = |stdout: Stdio, stderr: Stdio| -> Output {
            let mut command = bench.program();
            command.args(words);
            if words[0] == "search-imagenet" {
                command.args(["--config", "search.toml"]).args(SHORT);
            }
            wait(command.stdout(stdout).stderr(stderr).spawn().unwrap(), LIMIT)
        };
        let output = run(closed(), Stdio::piped());
        assert!(output.status.success(), "{words:?}: {:?} {}", output.status, output_text(&output));
        assert!(
            !output_text(&output).contains("panicked") && !output_text(&output).contains("error:"),
            "{}",
            output_text(&output)
        );
        // Both closed: there is nowhere to report an error.
        let output = run(closed(), closed());
        assert!(output.status.success(), "{words:?}: {:?}", output.status);
        // Unlike a reader that has closed the pipe, a full disk leaves the result incomplete.
        let output = run(full().into(), Stdio::piped());
        assert_eq!(output.status.code(), Some(i32::from(prints)), "{words:?}: {}", output_text(&output));
        let expected = if prints { "error: write standard output: " } else { "" };
        assert!(
            output_text(&output).contains(expected) && !output_text(&output).contains("panicked"),
            "{}",
            output_text(&output)
        );
        let output = run(Stdio::piped(), full().into());
        assert!(output.status.success(), "{words:?}: {:?}", output.status);
    }
    // An error that cannot be printed still sets the exit code.
    let mut wrong = bench.program();
    wrong.args(["verify", "no/such.file"]).stdout(closed()).stderr(full());
    assert_eq!(wait(wrong.spawn().unwrap(), LIMIT).status.code(), Some(1));
}

#[test]
fn every_log_line_has_a_timestamp() {
    let bench = Bench::get();
    let name = "timestamps";
    let more = ["--set", "run.checkpoint_every=1", "--set", "run.log_every=1", "--resume"];
    let child = bench.search(2, name, &more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let run = bench.run(name);
    let start = Instant::now();
    while run.checkpoints().last().is_none_or(|&step| step < 2) {
        assert!(start.elapsed() < LIMIT, "no checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(child.id(), "USR1");
    let output = wait(child, LIMIT);
    assert_eq!(output.status.code(), Some(75), "{}", output_text(&output));
    let messages = run.folder.join("messages.log");
    assert!(lines_without_time(&messages).iter().any(|line| line.contains("stopped; newest checkpoint")));
    let output = finish(bench.search(2, name, &more), LIMIT);
    assert!(output.status.success(), "{}", output_text(&output));

    let lines = lines_without_time(&messages);
    assert!(lines.iter().any(|line| line.starts_with("resumed after step ")), "{lines:?}");
    assert_eq!(lines.last().unwrap(), &format!("finished after step {}", bench::STEPS), "{lines:?}");

    // console.log holds everything that rank 0 printed, in both parts of the run.
    let console = lines_without_time(&run.folder.join("console.log"));
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        assert!(console.iter().any(|kept| kept == line), "no {line:?} in {console:?}");
    }
    for words in
        ["stage 1/2: k 6", "epoch 1: ", "stopped; newest checkpoint", "resumed after", "Architecture found"]
    {
        assert!(console.iter().any(|line| line.starts_with(words)), "no {words:?} in {console:?}");
    }
    // metrics.jsonl has timestamps too, in order.
    let log = text(&run.folder.join("metrics.jsonl"));
    let time = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["time"].as_str().unwrap_or_else(|| panic!("no timestamp in {line}")).to_owned()
    };
    let times: Vec<String> = log.lines().map(time).collect();
    assert!(times.iter().all(|time| is_time(time)) && times.is_sorted(), "{times:?}");
}

/// Packs the training images again as the data set `name`, with one truncated image, whose name is returned.
fn pack_with_truncated_image(name: &str) -> String {
    let bench = Bench::get();
    let images = format!("{name}-images");
    let copied = Command::new("cp").arg("-r").args([bench.path("images"), bench.path(&images)]).status();
    assert!(copied.unwrap().success());
    let list = text(&bench.path("lists/train.txt"));
    let truncated = list.lines().filter(|line| !line.starts_with('#')).nth(30).unwrap().to_owned();
    let path = bench.path(&images).join(&truncated);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 40]).unwrap();
    let output = bench
        .program()
        .args(["pack", &images, name, "--list", "lists/train.txt", "--shard-images", "40", "--no-decode"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    truncated
}

#[test]
fn replaced_images_are_counted_and_named_and_corrupt_shards_are_not_skipped() {
    let bench = Bench::get();
    let truncated = pack_with_truncated_image("truncated");
    // Two epochs that see nearly all of the 168 images, on one rank and on two.
    let sets = ["data.skip_bad=true", "search.stage=[{k=6,ops_kept=7,epochs=2}]", "run.checkpoint_every=3"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let search = |ranks: usize, run: &str, more: &[&str]| {
        let mut command = if ranks == 0 { bench.program() } else { bench.mpirun() };
        if ranks > 0 {
            command.args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_drnas-dist")]);
        }
        command.args([
            "search-imagenet",
            "--config",
            "search.toml",
            "--train",
            "truncated",
            "--valid",
            "valid",
        ]);
        command.args(["--out", run]).args(&sets).args(more);
        finish(command, LIMIT)
    };
    let mut reports = Vec::new();
    for (ranks, run) in [(0, "replaced-1"), (2, "replaced-2")] {
        let output = search(ranks, run, &[]);
        assert!(output.status.success(), "{}", output_text(&output));
        let folder = bench.path(run);
        let log: Vec<serde_json::Value> = text(&folder.join("metrics.jsonl"))
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let of = |event: &str| log.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
        let epochs: u64 = of("epoch").iter().map(|epoch| epoch["skipped_images"].as_u64().unwrap()).sum();
        assert!(epochs >= 1, "{}", output_text(&output));
        assert_eq!(of("finish")[0]["replaced_images"], epochs);
        // Named once in each file, with the reason.
        let named = of("replaced");
        assert_eq!(named.len(), 1, "{named:?}");
        let image = named[0]["images"][0].as_str().unwrap();
        assert!(
            image.contains(&truncated)
                && image.contains("shard shard-0000")
                && image.contains("the JPEG is truncated"),
            "{image}"
        );
        for (place, times) in [(output_text(&output), 2), (text(&folder.join("report.txt")), 1)] {
            assert_eq!(place.matches(image).count(), times, "{place}");
        }
        assert_eq!(text(&folder.join("messages.log")).matches(image).count(), 1);
        let report = text(&folder.join("report.txt"));
        let counted = format!("{epochs} time{}", if epochs == 1 { "" } else { "s" });
        assert!(report.contains(&counted), "no {counted} in {report}");
        reports.push((epochs, image.to_owned()));
    }
    assert_eq!(reports[0], reports[1]);

    // A corrupt shard still ends the run.
    for shard in fs::read_dir(bench.path("truncated")).unwrap().flatten().map(|entry| entry.path()) {
        if shard.extension().is_some_and(|extension| extension == "bin") {
            let mut bytes = fs::read(&shard).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&shard, bytes).unwrap();
        }
    }
    let output = search(0, "corrupt", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    assert!(output_text(&output).contains("is corrupt (expected checksum "), "{}", output_text(&output));
}
