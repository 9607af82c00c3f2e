//! What a run and the other commands tell, and where: an output that is closed or full, the files of the run folder, times,
//! and the names of images that were replaced.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::{Bench, finish, said, signal, wait};
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

/// The writing end of a pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// The lines of a log of the run folder, each of which begins with the time in UTC: that is taken off.
fn untimed(path: &Path) -> Vec<String> {
    let line = |line: &str| {
        let (time, rest) = line.split_once(' ').unwrap_or((line, ""));
        assert!(is_time(time), "no time in {line:?} of {}", path.display());
        rest.to_owned()
    };
    text(path).lines().map(line).collect()
}

/// 2026-11-27T18:58:28Z
fn is_time(word: &str) -> bool {
    let shape: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00Z" && word.starts_with("20")
}

fn assert_finished(name: &str, output: &Output) {
    let bench = Bench::get();
    assert!(output.status.success(), "{name}: {:?} {}", output.status, said(output));
    assert!(!said(output).contains("panicked"), "{name}: {}", said(output));
    assert!(bench.path(name).join("finished.json").exists(), "{name}: {}", said(output));
    assert!(text(&bench.path(name).join("report.txt")).contains("Found architecture"), "{name}");
    let log = untimed(&bench.path(name).join("console.log"));
    assert!(log.iter().any(|line| line.starts_with("epoch 1: loss ")), "{name}: {log:?}");
    assert!(log.iter().any(|line| line.starts_with("Found architecture")), "{name}: {log:?}");
}

#[test]
fn a_run_goes_on_when_its_output_cannot_be_written() {
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
    // With the line that is updated.
    let mut command = bench.search(0, "bar", &SHORT);
    command.env("DRNAS_PROGRESS", "bar").stdout(full()).stderr(Stdio::piped());
    assert_finished("bar", &wait(command.spawn().unwrap(), LIMIT));
    // The streams of no process at all: `>&- 2>&-`.
    let mut shell = bench.at_home("sh");
    let program = env!("CARGO_BIN_EXE_drnas-dist");
    let words = bench.search(0, "none", &SHORT);
    let words: Vec<_> = words.get_args().collect();
    shell.args(["-c", "exec \"$0\" \"$@\" >&- 2>&-", program]).args(words);
    assert_finished("none", &finish(shell, LIMIT));
}

#[test]
fn ranks_go_on_when_the_output_of_mpirun_cannot_be_written() {
    let bench = Bench::get();
    for (name, stdout) in [("mpirun-closed", closed()), ("mpirun-full", full().into())] {
        let child = bench.search(2, name, &SHORT).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let output = wait(child, LIMIT);
        assert!(bench.path(name).join("finished.json").exists(), "{name}: {}", said(&output));
        assert!(!said(&output).contains("panicked"), "{name}: {}", said(&output));
    }
}

#[test]
fn other_commands_end_quietly_when_nobody_reads() {
    let bench = Bench::get();
    let golden = format!("{}/tests/golden/schedules.json", env!("CARGO_MANIFEST_DIR"));
    bench.searched(0, "reported", &SHORT);
    // Whether the command's result is what it prints.
    let commands: [(&[&str], bool); 8] = [
        (&["doctor"], true),
        (&["verify", &golden], true),
        (&["report", "scaling", "reported"], true),
        (&["--help"], false), // clap says nothing of it
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
        assert!(output.status.success(), "{words:?}: {:?} {}", output.status, said(&output));
        assert!(
            !said(&output).contains("panicked") && !said(&output).contains("error:"),
            "{}",
            said(&output)
        );
        // Both closed: nobody is left to be told.
        let output = run(closed(), closed());
        assert!(output.status.success(), "{words:?}: {:?}", output.status);
        // A full disk is not a reader that has seen enough: the result is incomplete.
        let output = run(full().into(), Stdio::piped());
        assert_eq!(output.status.code(), Some(i32::from(prints)), "{words:?}: {}", said(&output));
        let expected = if prints { "error: write standard output: " } else { "" };
        assert!(said(&output).contains(expected) && !said(&output).contains("panicked"), "{}", said(&output));
        let output = run(Stdio::piped(), full().into());
        assert!(output.status.success(), "{words:?}: {:?}", output.status);
    }
    // An error that cannot be told is still one.
    let mut wrong = bench.program();
    wrong.args(["verify", "no/such.file"]).stdout(closed()).stderr(full());
    assert_eq!(wait(wrong.spawn().unwrap(), LIMIT).status.code(), Some(1));
}

#[test]
fn every_line_of_a_log_says_when() {
    let bench = Bench::get();
    let name = "timed";
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
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    let messages = run.folder.join("messages.log");
    assert!(untimed(&messages).iter().any(|line| line.contains("stopped; the newest checkpoint")));
    let output = finish(bench.search(2, name, &more), LIMIT);
    assert!(output.status.success(), "{}", said(&output));

    let told = untimed(&messages);
    assert!(told.iter().any(|line| line.starts_with("resumed after step ")), "{told:?}");
    assert_eq!(told.last().unwrap(), &format!("finished after step {}", bench::STEPS), "{told:?}");

    // The run folder holds what rank 0 printed, of both parts of the run.
    let console = untimed(&run.folder.join("console.log"));
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        assert!(console.iter().any(|kept| kept == line), "{line:?} is not in {console:?}");
    }
    for words in
        ["stage 1/2: k 6", "epoch 1: ", "stopped; the newest checkpoint", "resumed after", "Found arch"]
    {
        assert!(console.iter().any(|line| line.starts_with(words)), "{words:?} is not in {console:?}");
    }
    // What is for programs has times too, which do not go backwards.
    let log = text(&run.folder.join("metrics.jsonl"));
    let time = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["time"].as_str().unwrap_or_else(|| panic!("no time in {line}")).to_owned()
    };
    let times: Vec<String> = log.lines().map(time).collect();
    assert!(times.iter().all(|time| is_time(time)) && times.is_sorted(), "{times:?}");
}

/// Packs the training images anew as the set `name`, with one that cannot be decoded; its name.
fn with_a_cut_image(name: &str) -> String {
    let bench = Bench::get();
    let images = format!("{name}-images");
    let copied = Command::new("cp").arg("-r").args([bench.path("images"), bench.path(&images)]).status();
    assert!(copied.unwrap().success());
    let list = text(&bench.path("lists/train.txt"));
    let cut = list.lines().filter(|line| !line.starts_with('#')).nth(30).unwrap().to_owned();
    let path = bench.path(&images).join(&cut);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 40]).unwrap();
    let output = bench
        .program()
        .args(["pack", &images, name, "--list", "lists/train.txt", "--shard-images", "40", "--no-decode"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    cut
}

#[test]
fn replaced_images_are_counted_and_named_and_damage_is_not_passed_over() {
    let bench = Bench::get();
    let cut = with_a_cut_image("cut");
    // Two epochs that see nearly all of the 168 images, on one rank and on two.
    let sets = ["data.skip_bad=true", "search.stage=[{k=6,ops_kept=7,epochs=2}]", "run.checkpoint_every=3"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let search = |ranks: usize, run: &str, more: &[&str]| {
        let mut command = if ranks == 0 { bench.program() } else { bench.mpirun() };
        if ranks > 0 {
            command.args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_drnas-dist")]);
        }
        command.args(["search-imagenet", "--config", "search.toml", "--train", "cut", "--valid", "valid"]);
        command.args(["--out", run]).args(&sets).args(more);
        finish(command, LIMIT)
    };
    let mut reports = Vec::new();
    for (ranks, run) in [(0, "replaced-1"), (2, "replaced-2")] {
        let output = search(ranks, run, &[]);
        assert!(output.status.success(), "{}", said(&output));
        let folder = bench.path(run);
        let log: Vec<serde_json::Value> = text(&folder.join("metrics.jsonl"))
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let of = |event: &str| log.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
        let epochs: u64 = of("epoch").iter().map(|epoch| epoch["skipped_images"].as_u64().unwrap()).sum();
        assert!(epochs >= 1, "{}", said(&output));
        assert_eq!(of("finish")[0]["replaced_images"], epochs);
        // Named once, with the reason, in every place.
        let named = of("replaced");
        assert_eq!(named.len(), 1, "{named:?}");
        let image = named[0]["images"][0].as_str().unwrap();
        assert!(
            image.contains(&cut) && image.contains("shard shard-0000") && image.contains("cut short"),
            "{image}"
        );
        for (place, times) in [(said(&output), 2), (text(&folder.join("report.txt")), 1)] {
            assert_eq!(place.matches(image).count(), times, "{place}");
        }
        assert_eq!(text(&folder.join("messages.log")).matches(image).count(), 1);
        let report = text(&folder.join("report.txt"));
        let counted = format!("{epochs} time{}", if epochs == 1 { "" } else { "s" });
        assert!(report.contains(&counted), "{counted} is not in {report}");
        reports.push((epochs, image.to_owned()));
    }
    assert_eq!(reports[0], reports[1]);

    // A damaged shard ends the run all the same.
    for shard in fs::read_dir(bench.path("cut")).unwrap().flatten().map(|entry| entry.path()) {
        if shard.extension().is_some_and(|extension| extension == "bin") {
            let mut bytes = fs::read(&shard).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&shard, bytes).unwrap();
        }
    }
    let output = search(0, "damaged", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("is damaged (checksum "), "{}", said(&output));
}
