//! Fault injection: on three ranks, every kind of fault in every phase is reported with its rank, ends all ranks and
//! loses no work.
//!
//! Each case is a small search in which one rank hits a fault at a given step and phase. The ranks run `rank_program`
//! of this test program: it installs the fault with `phase::set_begin_hook` and then runs a `drnas-dist` command line.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::mpirun::{RANK_PROGRAM, configure_mpi, is_alive};
use bench::{Bench, assert_same_result_after, finish, output_text, signal};
use clap::Parser;
use drnas_dist::cli::Cli;
use drnas_dist::data::Error;
use drnas_dist::process::phase::{self, InjectedFailure};
use drnas_dist::train::checkpoint;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Two stages of two epochs of three steps; a checkpoint every second step.
const STEPS: u64 = 12;
const SETTINGS: [&str; 8] = [
    "data.px=32",
    "search.replicas=6",
    "search.global_batch=12",
    "search.steps_per_epoch=3",
    "run.log_every=2",
    "run.checkpoint_every=2",
    "run.time_limit_s=60",
    "run.heartbeat_s=2",
];
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Time limit of one run, generous enough for a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

// -- the rank program ---------------------------------------------------------------------------------------------

const PLAN: &str = "DRNAS_TEST_FAULT";
const ARGUMENTS: &str = "DRNAS_TEST_ARGUMENTS";

#[test]
#[ignore = "run under mpirun by the other tests"]
fn rank_program() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    if let Ok(plan) = std::env::var(PLAN) {
        install_fault(&plan);
    }
    let words = std::iter::once("drnas-dist").chain(arguments.split('\n'));
    if let Err(why) = drnas_dist::run(Cli::parse_from(words).command) {
        eprintln!("error: {why}");
        std::process::exit(1);
    }
}

/// `plan` is "fault|phase|step|rank".
fn install_fault(plan: &str) {
    let words: Vec<String> = plan.split('|').map(String::from).collect();
    let (fault, phase) = (words[0].clone(), words[1].clone());
    let (step, rank): (u64, usize) = (words[2].parse().unwrap(), words[3].parse().unwrap());
    phase::set_begin_hook(Box::new(move |at, what| {
        let here = phase::here();
        if at == 0 {
            fs::write(format!("pid-{}", here.rank), std::process::id().to_string()).unwrap();
        }
        if fault == "trace" {
            use std::io::Write;
            let name = format!("phases-{}", here.rank);
            let mut file = fs::File::options().create(true).append(true).open(name).unwrap();
            writeln!(file, "{at} {what}").unwrap();
            return Ok(());
        }
        if (at, what.to_string(), here.rank) != (step, phase.clone(), rank) {
            return Ok(());
        }
        // Only once: a phase may be entered several times in a step.
        if fs::File::create_new("fault-injected").is_err() {
            return Ok(());
        }
        // Leave time for a heartbeat that reports this step and phase.
        std::thread::sleep(HEARTBEAT / 3);
        inject(&fault)
    }));
}

fn inject(fault: &str) -> Result<(), InjectedFailure> {
    match fault {
        // SAFETY: signals this process; no pointers are involved.
        "kill" => unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
        },
        // SAFETY: as above.
        "stop" => unsafe {
            libc::kill(libc::getpid(), libc::SIGSTOP);
            // The signal may stop the process with a delay.
            std::thread::sleep(Duration::from_millis(200));
        },
        "panic" => panic!("injected panic"),
        "error" => return Err(InjectedFailure::new(Error::LoaderSpec("injected failure".into()))),
        "slow" => std::thread::sleep(slow_duration()),
        "corrupt" => corrupt(Path::new("train")),
        "signal" => raise(libc::SIGUSR1),
        "terminate" => raise(libc::SIGTERM),
        "interrupt" | "hang-up" => {
            let group: i32 = fs::read_to_string("supervisor").unwrap().trim().parse().unwrap();
            let signal = if fault == "hang-up" { libc::SIGHUP } else { libc::SIGINT };
            // SAFETY: signals the supervisor's process group; no pointers are involved.
            unsafe { libc::kill(-group, signal) };
            std::thread::sleep(slow_duration());
        }
        "truncate" => shards(Path::new("train")).for_each(|path| {
            fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
        }),
        "remove" => shards(Path::new("train")).for_each(|path| fs::remove_file(path).unwrap()),
        other => panic!("unknown fault {other}"),
    }
    Ok(())
}

/// Sends this process a signal and waits for it to be handled.
fn raise(signal: i32) {
    // SAFETY: signals this process; no pointers are involved.
    unsafe { libc::kill(libc::getpid(), signal) };
    std::thread::sleep(Duration::from_millis(500));
}

fn shards(set: &Path) -> impl Iterator<Item = PathBuf> {
    let set = set.to_path_buf();
    (0..).map(move |number| set.join(format!("shard-{number:05}.bin"))).take_while(|path| path.exists())
}

/// Longer than the heartbeat timeout. `DRNAS_TEST_SLOW_S` overrides it, in seconds.
fn slow_duration() -> Duration {
    let seconds = std::env::var("DRNAS_TEST_SLOW_S").ok().and_then(|seconds| seconds.parse().ok());
    seconds.map_or(5 * HEARTBEAT / 2, Duration::from_secs)
}

/// Overwrites every image of a data set that is in use.
fn corrupt(set: &Path) {
    use std::os::unix::fs::FileExt;
    for path in shards(set) {
        let bytes = fs::read(&path).unwrap();
        let records = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
        let file = fs::File::options().write(true).open(&path).unwrap();
        let images = 64 + 40 * records;
        let changed: Vec<u8> = bytes[images..].iter().map(|byte| !byte).collect();
        // In place: the existing memory map would not see a new inode.
        file.write_all_at(&changed, images as u64).unwrap();
    }
}

// -- test cases ---------------------------------------------------------------------------------------------------

/// A folder with its own copy of the data sets, since some cases corrupt the shards.
struct Case {
    folder: PathBuf,
}

impl Case {
    fn new(name: &str) -> Case {
        let bench = Bench::get();
        let folder = bench.path(name);
        fs::create_dir(&folder).unwrap();
        let case = Case { folder };
        case.restore_data();
        case
    }

    fn restore_data(&self) {
        for set in ["train", "valid"] {
            fs::create_dir_all(self.folder.join(set)).unwrap();
            for entry in fs::read_dir(Bench::get().path(set)).unwrap().flatten() {
                fs::copy(entry.path(), self.folder.join(set).join(entry.file_name())).unwrap();
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The command that runs the search on `ranks` ranks (0: without mpirun), with a fault if `plan` is given.
    fn command(&self, ranks: usize, plan: Option<&str>, more: &[&str]) -> Command {
        let config = Bench::get().path("search.toml");
        let mut arguments = vec!["search-imagenet", "--config", config.to_str().unwrap(), "--resume"];
        arguments.extend(["--train", "train", "--valid", "valid", "--out", "run"]);
        arguments.extend(SETTINGS.iter().flat_map(|set| ["--set", set]));
        arguments.extend(more);
        self.command_of(&arguments, ranks, plan)
    }

    /// The command with arbitrary arguments of `drnas-dist`.
    fn command_of(&self, arguments: &[&str], ranks: usize, plan: Option<&str>) -> Command {
        let bench = Bench::get();
        let this = std::env::current_exe().unwrap();
        let mut command = if ranks == 0 { bench.command(&this) } else { bench.mpirun() };
        if ranks > 0 {
            command.args(["-n", &ranks.to_string()]).arg(&this);
        }
        command.args(RANK_PROGRAM).current_dir(&self.folder).env(ARGUMENTS, arguments.join("\n"));
        configure_mpi(&mut command, &self.folder);
        match plan {
            Some(plan) => command.env(PLAN, plan),
            None => command.env_remove(PLAN),
        };
        command
    }

    fn run(&self, ranks: usize, plan: Option<&str>, more: &[&str]) -> Output {
        finish(self.command(ranks, plan, more), LIMIT)
    }

    fn bench_run(&self) -> bench::Run {
        bench::Run { folder: self.path("run") }
    }

    /// Asserts that no rank of the run is still running.
    fn assert_gone(&self, ranks: usize, output: &Output) {
        let running = |rank: usize| {
            let pid = fs::read_to_string(self.path(&format!("pid-{rank}"))).ok()?;
            is_alive(&pid).then_some(pid)
        };
        let start = Instant::now();
        while let Some(pid) = (0..ranks).find_map(running) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "process {pid} is still running: {}",
                output_text(output)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asserts that killed ranks left no shared memory and no lock; a lock may remain if its holder, rank 0, died.
    fn assert_clean(&self, output: &Output, rank: usize) {
        let left: Vec<_> = (fs::read_dir(&self.folder).unwrap().flatten())
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name.contains("sm_segment") || name.contains("vader"))
            .collect();
        assert!(left.is_empty(), "{left:?}: {}", output_text(output));
        let lock = self.path("run/lock.json").exists();
        assert!(!lock || rank == 0, "the lock file remains: {}", output_text(output));
    }

    /// Asserts that the run finished with the same result as `undisturbed`, bit for bit.
    fn assert_finished(&self, output: &Output) {
        assert!(output.status.success(), "{}", output_text(output));
        assert!(self.path("run/finished.json").exists());
        assert!(!self.path("run/lock.json").exists());
        assert_same_result_after(STEPS, &self.bench_run(), &undisturbed().bench_run());
    }

    /// Asserts that the run finished with the result of `other` up to rounding. `other` ran on a different number of
    /// ranks, and means over 3 and over 6 round differently.
    fn assert_agrees(&self, output: &Output, other: &Case, steps: u64) {
        assert!(output.status.success(), "{}", output_text(output));
        assert!(self.path("run/finished.json").exists());
        let mut largest = 0f64;
        for (name, count) in [("loss", steps), ("architecture_loss", steps / 2)] {
            let (a, b) = (self.bench_run().step_values(name), other.bench_run().step_values(name));
            assert_eq!((a.len() as u64, b.len() as u64), (count, count));
            for (step, (a, b)) in a.iter().zip(&b).enumerate() {
                largest = largest.max((a - b).abs() / b.abs());
                assert!((a - b).abs() <= 1e-4 * b.abs(), "{name} of step {}: {a} and {b}", step + 1);
            }
        }
        // The running statistics of each replica as well, whichever rank computed them.
        let (ours, theirs) = (self.bench_run().state(steps), other.bench_run().state(steps));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        let mut apart = 0f64;
        for (name, tensor) in ours.iter().filter(|(name, _)| name.contains("running")) {
            let far = (tensor - &theirs[name]).abs().max() / theirs[name].abs().max();
            apart = apart.max(far.double_value(&[]));
            assert!(apart <= 1e-4, "{name}: {apart:e} apart, relative");
        }
        println!("{}: within {largest:e} (losses), {apart:e} (running), relative", self.folder.display());
        assert_eq!(self.bench_run().genotype(), other.bench_run().genotype());
    }
}

/// The run without faults, on three ranks.
fn undisturbed() -> &'static Case {
    static CASE: OnceLock<Case> = OnceLock::new();
    CASE.get_or_init(|| {
        let case = Case::new("undisturbed");
        let output = case.run(3, None, &[]);
        assert!(output.status.success(), "{}", output_text(&output));
        case
    })
}

/// Phases, and the step in which the fault is injected.
const PHASES: [(&str, u64); 5] =
    [("start-up", 0), ("forward", 5), ("all-reduce", 5), ("checkpoint", 4), ("stage change", 6)];

/// Injects `fault` on rank `rank` in every phase: the job ends in time with an error, prints `words` and the place of
/// the fault, and leaves nothing behind; the resumed run matches the undisturbed one.
fn fails_and_resumes(fault: &str, rank: usize, words: &[&str]) {
    // Another rank watches rank 0; one phase is enough to test that.
    let phases = if rank == 0 { &PHASES[1..2] } else { &PHASES };
    for (phase, step) in phases {
        // Open MPI's own clean-up uses a comma-separated list of paths. The comma in this path disables it, so that
        // ours is tested.
        let case = Case::new(&format!("{fault} of {rank}, {phase}"));
        let output = case.run(3, Some(&format!("{fault}|{phase}|{step}|{rank}")), &[]);
        let text = output_text(&output);
        assert!(!output.status.success(), "{phase}: {text}");
        assert!(case.path("fault-injected").exists(), "{phase}: no fault was injected: {text}");
        // mpirun may discard output while it ends a job; messages.log keeps it.
        let messages = fs::read_to_string(case.path("run/messages.log")).unwrap_or_default();
        for word in words {
            let at = if *step > 0 { ", step STEP, PHASE" } else { "" };
            let word = word.replace("WHERE", at).replace("STEP", &step.to_string()).replace("PHASE", phase);
            assert!(
                text.contains(&word) || messages.contains(&word),
                "{phase}: no {word:?} in {text}\n{messages}"
            );
        }
        case.assert_gone(3, &output);
        case.assert_clean(&output, rank);
        if fault == "corrupt" {
            case.restore_data();
        }
        case.assert_finished(&case.run(3, None, &[]));
    }
}

#[test]
fn killed_rank_is_reported_and_the_run_resumes() {
    let how = ", step STEP, PHASE: process died";
    fails_and_resumes("kill", 1, &["rank 0 on ", "lost rank 1 on ", how]);
    fails_and_resumes("kill", 0, &["rank 1 on ", "lost rank 0 on ", how]);
}

#[test]
fn stopped_rank_is_reported_and_the_run_resumes() {
    let how = ", step STEP, PHASE: no heartbeat for 2 s";
    fails_and_resumes("stop", 1, &["rank 0 on ", "lost rank 1 on ", how]);
    fails_and_resumes("stop", 0, &["rank 1 on ", "lost rank 0 on ", how]);
}

#[test]
fn panic_is_reported_and_the_run_resumes() {
    fails_and_resumes("panic", 1, &["rank 1 on ", "WHERE: panicked at tests/faults.rs", "injected panic"]);
}

#[test]
fn error_is_reported_and_the_run_resumes() {
    fails_and_resumes("error", 1, &["rank 1 on ", "WHERE: loader: injected failure"]);
}

#[test]
fn corrupt_shard_is_reported_and_the_run_resumes() {
    fails_and_resumes(
        "corrupt",
        1,
        &["shard shard-0000", " is corrupt (expected checksum ", "pack it again"],
    );
}

#[test]
fn slow_rank_is_tolerated() {
    for (phase, step) in PHASES {
        let case = Case::new(&format!("slow {phase}"));
        let output = case.run(3, Some(&format!("slow|{phase}|{step}|1")), &[]);
        assert!(
            case.path("fault-injected").exists(),
            "{phase}: no fault was injected: {}",
            output_text(&output)
        );
        case.assert_finished(&output);
    }
}

// -- tests of the network, and reading a checkpoint ---------------------------------------------------------------

/// Two epochs of three steps, each tested; a checkpoint after each.
const EVALUATION: &str = "
device = \"cpu\"
[model]
space = \"darts-cifar\"
init_channels = 4
layers = 3
num_classes = 4
[data]
px = 32
[evaluate]
replicas = 6
global_batch = 12
epochs = 2
steps_per_epoch = 3
test_batch = 10
[weights]
warmup_epochs = 1
[run]
log_every = 2
compare_every = 3
checkpoint_every = 3
time_limit_s = 60
heartbeat_s = 2
threads = 1
";

/// Returns a case and the arguments that start an evaluation in it.
fn evaluation(name: &str) -> (Case, [&'static str; 12]) {
    let case = Case::new(name);
    fs::write(case.path("evaluate.toml"), EVALUATION).unwrap();
    let arguments = ["evaluate-cifar", "--config", "evaluate.toml", "--genotype", "DrNAS_cifar10", "--train"];
    let more = ["train", "--test", "valid", "--out", "run", "--resume"];
    (case, [arguments, more].concat().try_into().unwrap())
}

/// Returns the phases of rank `rank` in step `step` of a traced run, without repetitions.
fn phases(case: &Case, rank: usize, step: u64) -> Vec<String> {
    let trace = fs::read_to_string(case.path(&format!("phases-{rank}"))).unwrap();
    let begins = trace.lines().filter_map(|line| line.split_once(' '));
    let mut phases: Vec<String> =
        (begins.filter(|(at, _)| *at == step.to_string())).map(|(_, phase)| phase.into()).collect();
    phases.dedup();
    phases
}

#[test]
fn rank_lost_during_a_test_is_reported_in_that_phase() {
    let (case, arguments) = evaluation("lost in a test");
    let output = finish(case.command_of(&arguments, 3, Some("kill|test|3|1")), LIMIT);
    assert!(case.path("fault-injected").exists(), "no fault was injected: {}", output_text(&output));
    let kept = fs::read_to_string(case.path("run/messages.log")).unwrap_or_default();
    for words in ["lost rank 1 on ", ", step 3, test: process died"] {
        assert!(
            output_text(&output).contains(words) || kept.contains(words),
            "{words}: {}",
            output_text(&output)
        );
    }
    case.assert_gone(3, &output);
    // The run resumes, and each rank reports the right phases.
    let output = finish(case.command_of(&arguments, 3, Some("trace||0|0")), LIMIT);
    assert!(output.status.success() && case.path("run/finished.json").exists(), "{}", output_text(&output));
    let step = ["data", "forward", "backward", "all-reduce", "optimiser"];
    let after = ["metrics", "test", "comparison", "checkpoint"];
    for rank in 0..3 {
        // Two replicas on each rank.
        let twice = [&step[..3], &step[..]].concat();
        assert_eq!(phases(&case, rank, 1), twice);
        assert_eq!(phases(&case, rank, 3), [&twice[..], &after].concat());
        assert_eq!(phases(&case, rank, 6), [&twice[..], &after, &["end"]].concat());
    }

    // `--test-only` without a run.
    fs::remove_file(case.path("fault-injected")).unwrap();
    let weights = ["--test-only", "--weights", "run/best.safetensors", "--out", "tested"];
    let arguments = [&arguments[..5], &["--test", "valid"], &weights].concat();
    let output = finish(case.command_of(&arguments, 3, Some("kill|test|0|1")), LIMIT);
    assert!(case.path("fault-injected").exists(), "no fault was injected: {}", output_text(&output));
    assert!(output_text(&output).contains(", step 0, test: process died"), "{}", output_text(&output));
    let output = finish(case.command_of(&arguments, 3, None), LIMIT);
    assert!(output.status.success() && output_text(&output).contains(": top-1 "), "{}", output_text(&output));
}

#[test]
fn rank_lost_while_reading_a_checkpoint_is_reported_in_that_phase() {
    let case = Case::new("lost in a read");
    assert_stopped(&case, &case.run(3, Some("signal|forward|5|0"), &[]), 5);
    fs::remove_file(case.path("fault-injected")).unwrap();
    let output = case.run(3, Some("kill|checkpoint|0|1"), &[]);
    assert!(case.path("fault-injected").exists(), "no fault was injected: {}", output_text(&output));
    assert!(output_text(&output).contains(", step 0, checkpoint: process died"), "{}", output_text(&output));
    case.assert_gone(3, &output);
    let output = case.run(3, Some("trace||0|0"), &[]);
    let begun = phases(&case, 1, 0);
    assert_eq!(begun, ["start-up", "checkpoint", "start-up", "comparison"], "{}", output_text(&output));
    case.assert_finished(&output);
}

// -- signals ------------------------------------------------------------------------------------------------------

/// Asserts that the run stopped with a checkpoint of step `step`, the step in progress, and exit code 75.
fn assert_stopped(case: &Case, output: &Output, step: u64) {
    assert_eq!(output.status.code(), Some(75), "{}", output_text(output));
    assert_eq!(case.bench_run().checkpoints().last(), Some(&step), "{}", output_text(output));
    assert!(
        output_text(output).contains(&format!("newest checkpoint: step {step}")),
        "{}",
        output_text(output)
    );
    assert!(!case.path("run/finished.json").exists() && !case.path("run/lock.json").exists());
}

#[test]
fn signal_to_any_rank_stops_all_ranks_at_the_same_step() {
    for (ranks, rank, fault) in [(3, 2, "signal"), (3, 0, "signal"), (0, 0, "signal"), (0, 0, "terminate")] {
        let case = Case::new(&format!("{fault} {rank} of {ranks}"));
        let output = case.run(ranks, Some(&format!("{fault}|forward|5|{rank}")), &[]);
        assert_stopped(&case, &output, 5);
        match ranks {
            3 => case.assert_finished(&case.run(3, None, &[])),
            _ => case.assert_agrees(&case.run(ranks, None, &[]), undisturbed(), STEPS),
        }
    }
}

/// Starts a run with a slow rank in step 5, calls `meanwhile` during that step, and returns the output of the run.
fn during_slow_step(case: &Case, meanwhile: impl FnOnce(u32)) -> Output {
    let mut command = case.command(3, Some("slow|forward|5|1"), &[]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !case.path("fault-injected").exists() {
        assert!(start.elapsed() < LIMIT, "the run never reached step 5");
        std::thread::sleep(Duration::from_millis(10));
    }
    meanwhile(child.id());
    child.wait_with_output().unwrap()
}

#[test]
fn signal_to_mpirun_stops_all_ranks_at_the_same_step() {
    let case = Case::new("mpirun signalled");
    let output = during_slow_step(&case, |mpirun| signal(mpirun, "USR1"));
    assert_stopped(&case, &output, 5);
    case.assert_finished(&case.run(3, None, &[]));
}

#[test]
fn run_resumes_on_any_number_of_ranks() {
    let case = Case::new("elastic");
    let longer = ["--set", "search.steps_per_epoch=5"];
    for (ranks, step) in [(3, 4), (2, 9), (0, 13), (3, 17)] {
        let output = case.run(ranks, Some(&format!("signal|forward|{step}|0")), &longer);
        assert_stopped(&case, &output, step);
        fs::remove_file(case.path("fault-injected")).unwrap();
    }
    let reference = Case::new("fixed-ranks");
    assert!(reference.run(3, None, &longer).status.success());
    case.assert_agrees(&case.run(1, None, &longer), &reference, 20);
}

// -- the run folder -----------------------------------------------------------------------------------------------

#[test]
fn second_job_on_the_same_run_folder_is_refused() {
    let case = Case::new("two jobs");
    let mut second = None;
    let first = during_slow_step(&case, |_| second = Some(case.run(0, None, &[])));
    let second = second.unwrap();
    assert_eq!(second.status.code(), Some(1), "{}", output_text(&second));
    assert!(
        output_text(&second).contains("another job writes to this run folder"),
        "{}",
        output_text(&second)
    );
    case.assert_finished(&first);
}

/// Rank 0 watches the lock of another machine for longer than a collective operation may take.
#[test]
fn other_ranks_wait_while_rank_0_watches_a_lock() {
    let case = Case::new("foreign lock");
    fs::create_dir(case.path("run")).unwrap();
    let lock = "{\"host\":\"afar\",\"pid\":1,\"born\":1,\"machine\":\"afar\",\"slurm_job\":null,\"slurm_restarts\":0,\
                \"token\":\"0\"}";
    fs::write(case.path("run/lock.json"), lock).unwrap();
    let output = case.run(3, None, &["--set", "run.time_limit_s=12"]);
    let taken = "taking over the lock of process 1 on afar, which has ended";
    assert!(output_text(&output).contains(taken), "{}", output_text(&output));
    case.assert_finished(&output);
}

#[test]
fn shard_truncated_while_in_use_is_reported() {
    for ranks in [3, 0] {
        let case = Case::new(&format!("cut on {ranks}"));
        let rank = usize::from(ranks > 0);
        let output = case.run(ranks, Some(&format!("truncate|forward|5|{rank}")), &[]);
        assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
        let line =
            output_text(&output).lines().find(|line| line.contains("SIGBUS")).unwrap_or_default().to_string();
        for part in ["rank ", "train/shard-0000", "truncated, replaced in place or unreadable", "--resume"] {
            assert!(line.contains(part), "{part}: {}", output_text(&output));
        }
        case.assert_gone(ranks, &output);
        case.restore_data();
        case.assert_finished(&case.run(3, None, &[]));
    }
    // A removed shard stays readable through the existing map.
    let case = Case::new("removed");
    case.assert_finished(&case.run(3, Some("remove|forward|5|1"), &[]));
}

/// A small temporary file system, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None` if this process may not mount file systems.
    fn mount(at: &Path, size: &str) -> Option<Disk> {
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Disk(at.into()))
    }

    fn change(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn full_or_read_only_disk_is_reported_and_the_run_resumes() {
    let case = Case::new("disk");
    fs::create_dir(case.path("run")).unwrap();
    let Some(disk) = Disk::mount(&case.path("run"), "1600k") else {
        println!("skipped: mounting a file system is not permitted");
        return;
    };
    let output = case.run(3, None, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    assert!(output_text(&output).contains("No space left on device"), "{}", output_text(&output));
    let good = case.bench_run().checkpoints();
    println!("complete checkpoints on the full disk: {good:?}");
    assert!(!good.is_empty(), "no checkpoint fitted on the disk");
    checkpoint::read(&case.path("run/checkpoints"), *good.last().unwrap()).unwrap();

    disk.change("ro");
    let output = case.run(3, None, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    assert!(output_text(&output).contains("Read-only file system"), "{}", output_text(&output));

    disk.change("rw,size=64m");
    let output = case.run(3, None, &[]);
    assert!(output_text(&output).contains("resumed after step"), "{}", output_text(&output));
    case.assert_finished(&output);
}

/// `launch/supervise.sh` running the search with a fault, on at most 4 ranks.
fn supervised(case: &Case, plan: &str) -> Command {
    let rank = format!("exec \"$0\" {}", RANK_PROGRAM.join(" "));
    let mut command = supervised_ranks(&case.command(3, Some(plan), &[]));
    command.args(["-c", &rank]).arg(std::env::current_exe().unwrap());
    command
}

/// `launch/supervise.sh` with the mpirun, folder and variables of `plain`. Each rank runs `sh`; the caller appends its
/// arguments. The supervisor leads its own process group, as on a terminal; the file `supervisor` holds its process id.
fn supervised_ranks(plain: &Command) -> Command {
    let mut command = Command::new("sh");
    for (name, value) in plain.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let mpirun = format!("{} --bind-to none", plain.get_program().to_str().unwrap());
    command.env("MPIRUN", mpirun).env("RANKS", "4").env("REPLICAS", "6").env("PAUSE_S", "0").process_group(0);
    command.current_dir(plain.get_current_dir().unwrap());
    command.args(["-c", "echo $$ >supervisor; exec \"$0\" run sh \"$@\""]);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/supervise.sh"));
    command
}

#[test]
fn supervised_run_resumes_on_the_hosts_that_respond() {
    let case = Case::new("supervised");
    let mut command = supervised(&case, "kill|forward|5|1");
    fs::write(case.path("alive.sh"), "[ \"$1\" = localhost ]").unwrap();
    command.env("HOSTS", "gone:2,localhost:6").env("ALIVE", "sh alive.sh");
    let output = finish(command, LIMIT);
    let start = "starting 3 ranks on localhost:6, from step";
    for line in [&format!("{start} 0"), "restarting", &format!("{start} 4")] {
        assert!(output_text(&output).contains(line), "{line}: {}", output_text(&output));
    }
    case.assert_finished(&output);
    // A host without a number has one slot. mpirun is `true`: no rank runs.
    let case = Case::new("hosts");
    for (hosts, start) in [
        ("localhost:2,gone,localhost", "starting 3 ranks on localhost:2,localhost, from step 0"),
        ("gone:6,localhost", "starting 1 rank on localhost, from step 0"),
    ] {
        let mut command = supervised(&case, "kill|forward|5|1");
        fs::write(case.path("alive.sh"), "[ \"$1\" = localhost ]").unwrap();
        command.env("HOSTS", hosts).env("ALIVE", "sh alive.sh").env("MPIRUN", "true").env("RESTARTS", "0");
        let output = finish(command, LIMIT);
        assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
        assert!(output_text(&output).contains(start), "{start}: {}", output_text(&output));
    }
}

/// mpirun hangs after its ranks exited, before the run folder exists. Here it is stopped; in practice it deadlocks.
#[test]
fn mpirun_that_hangs_without_ranks_is_killed() {
    let case = Case::new("no-ranks");
    let mut supervised = supervised_ranks(&case.command(1, None, &[]));
    supervised.args(["-c", "kill -STOP $PPID; exit 1"]).env("RANKS", "1").env("RESTARTS", "0");
    let mut batch = Command::new("bash");
    batch.args([
        "-euc",
        "run=$PWD/run; cd \"$0\"; . launch/slurm/common.sh; ranks 1; go \"$run\" sh -c \"$1\"",
    ]);
    batch.args([env!("CARGO_MANIFEST_DIR"), "kill -STOP $PPID; exit 1"]).current_dir(&case.folder);
    configure_mpi(&mut batch, &case.folder)
        .env("LAUNCHER", "mpirun")
        .env("RETRIES", "0")
        .env("DRNAS_COMMAND", "...");
    for (mut command, code) in [(supervised, 137), (batch, 1)] {
        command.env("LINGER_S", "2");
        let output = finish(command, LIMIT);
        for line in ["all ranks have exited but mpirun has not", "exit code 137"] {
            assert!(output_text(&output).contains(line), "{line}: {}", output_text(&output));
        }
        assert_eq!(output.status.code(), Some(code), "{}", output_text(&output));
    }
}

/// Ctrl-C or closing the terminal signals every foreground process; mpirun on its own would kill the ranks immediately.
#[test]
fn supervised_run_stops_with_a_checkpoint_on_ctrl_c_and_hang_up() {
    for fault in ["interrupt", "hang-up"] {
        let case = Case::new(fault);
        let output = finish(supervised(&case, &format!("{fault}|forward|5|1")), LIMIT);
        assert_eq!(output.status.code(), Some(75), "{fault}: {}", output_text(&output));
        assert!(
            output_text(&output).contains("starting 3 ranks, from step 0"),
            "{fault}: {}",
            output_text(&output)
        );
        assert!(
            output_text(&output).contains("stopped with a checkpoint, after step 5"),
            "{fault}: {}",
            output_text(&output)
        );
    }
}
