//! Faults of every kind in every phase, on three ranks: the rank is named, everything ends, nothing is lost.
//!
//! Each case is a small search of which rank 1 (or 0) meets with a fault at one point. The ranks run this very program,
//! `rank_program`, which plants the fault by `phase::on_begin` and then does what `drnas-dist` does.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::mpirun::{RANK_PROGRAM, at_home, lives};
use bench::{Bench, assert_same_end_after, finish, said, signal};
use clap::Parser;
use drnas_dist::cli::Cli;
use drnas_dist::data::Error;
use drnas_dist::process::phase::{self, PlannedFailure};
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
/// Nothing takes so long, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(120);

// -- what a rank does ---------------------------------------------------------------------------------------------

const PLAN: &str = "DRNAS_TEST_FAULT";
const ARGUMENTS: &str = "DRNAS_TEST_ARGUMENTS";

#[test]
#[ignore = "the other tests start it under mpirun"]
fn rank_program() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    if let Ok(plan) = std::env::var(PLAN) {
        plant(&plan);
    }
    let words = std::iter::once("drnas-dist").chain(arguments.split('\n'));
    if let Err(why) = drnas_dist::run(Cli::parse_from(words).command) {
        eprintln!("error: {why}");
        std::process::exit(1);
    }
}

/// `plan` is "fault phase step rank".
fn plant(plan: &str) {
    let words: Vec<String> = plan.split('|').map(String::from).collect();
    let (fault, phase) = (words[0].clone(), words[1].clone());
    let (step, rank): (u64, usize) = (words[2].parse().unwrap(), words[3].parse().unwrap());
    phase::on_begin(Box::new(move |at, what| {
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
        // Once, in however many pieces the phase comes.
        if fs::File::create_new("met").is_err() {
            return Ok(());
        }
        // Time for a beat that says where it happens.
        std::thread::sleep(HEARTBEAT / 3);
        meet(&fault)
    }));
}

fn meet(fault: &str) -> Result<(), PlannedFailure> {
    match fault {
        // SAFETY: plain calls on this very process.
        "kill" => unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
        },
        // SAFETY: as above.
        "stop" => unsafe {
            libc::kill(libc::getpid(), libc::SIGSTOP);
            // This thread may run on until another one has stopped the process.
            std::thread::sleep(Duration::from_millis(200));
        },
        "panic" => panic!("a planned mistake"),
        "error" => return Err(PlannedFailure::new(Error::LoaderSpec("a planned failure".into()))),
        "slow" => std::thread::sleep(slowness()),
        "damage" => damage(Path::new("train")),
        "signal" => ask(libc::SIGUSR1),
        "terminate" => ask(libc::SIGTERM),
        "interrupt" | "hang-up" => {
            let group: i32 = fs::read_to_string("supervisor").unwrap().trim().parse().unwrap();
            let signal = if fault == "hang-up" { libc::SIGHUP } else { libc::SIGINT };
            // SAFETY: a plain call.
            unsafe { libc::kill(-group, signal) };
            std::thread::sleep(slowness());
        }
        "truncate" => shards(Path::new("train")).for_each(|path| {
            fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
        }),
        "remove" => shards(Path::new("train")).for_each(|path| fs::remove_file(path).unwrap()),
        other => panic!("no fault {other}"),
    }
    Ok(())
}

/// Sends this very process a signal, and gives it time to be heard.
fn ask(signal: i32) {
    // SAFETY: a plain call.
    unsafe { libc::kill(libc::getpid(), signal) };
    std::thread::sleep(Duration::from_millis(500));
}

fn shards(set: &Path) -> impl Iterator<Item = PathBuf> {
    let set = set.to_path_buf();
    (0..).map(move |number| set.join(format!("shard-{number:05}.bin"))).take_while(|path| path.exists())
}

/// Longer than a rank may be silent. `DRNAS_TEST_SLOW_S` asks for other seconds.
fn slowness() -> Duration {
    let asked = std::env::var("DRNAS_TEST_SLOW_S").ok().and_then(|seconds| seconds.parse().ok());
    asked.map_or(5 * HEARTBEAT / 2, Duration::from_secs)
}

/// Changes every image of a set that is in use, in place.
fn damage(set: &Path) {
    use std::os::unix::fs::FileExt;
    for path in shards(set) {
        let bytes = fs::read(&path).unwrap();
        let records = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
        let file = fs::File::options().write(true).open(&path).unwrap();
        let images = 64 + 40 * records;
        let changed: Vec<u8> = bytes[images..].iter().map(|byte| !byte).collect();
        // In place: a file of another inode would never be seen through the map.
        file.write_all_at(&changed, images as u64).unwrap();
    }
}

// -- one case -----------------------------------------------------------------------------------------------------

/// A folder of its own for each case: the shards are damaged in some.
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

    /// The search on `ranks` ranks (0: no mpirun), with a fault if one is planned.
    fn command(&self, ranks: usize, plan: Option<&str>, more: &[&str]) -> Command {
        let config = Bench::get().path("search.toml");
        let mut arguments = vec!["search-imagenet", "--config", config.to_str().unwrap(), "--resume"];
        arguments.extend(["--train", "train", "--valid", "valid", "--out", "run"]);
        arguments.extend(SETTINGS.iter().flat_map(|set| ["--set", set]));
        arguments.extend(more);
        self.command_of(&arguments, ranks, plan)
    }

    /// The same with other arguments of `drnas-dist`.
    fn command_of(&self, arguments: &[&str], ranks: usize, plan: Option<&str>) -> Command {
        let bench = Bench::get();
        let this = std::env::current_exe().unwrap();
        let mut command = if ranks == 0 { bench.at_home(&this) } else { bench.mpirun() };
        if ranks > 0 {
            command.args(["-n", &ranks.to_string()]).arg(&this);
        }
        command.args(RANK_PROGRAM).current_dir(&self.folder).env(ARGUMENTS, arguments.join("\n"));
        at_home(&mut command, &self.folder);
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

    /// No rank of the run is left.
    fn assert_gone(&self, ranks: usize, output: &Output) {
        let living = |rank: usize| {
            let pid = fs::read_to_string(self.path(&format!("pid-{rank}"))).ok()?;
            lives(&pid).then_some(pid)
        };
        let start = Instant::now();
        while let Some(pid) = (0..ranks).find_map(living) {
            assert!(start.elapsed() < Duration::from_secs(10), "{pid} is left: {}", said(output));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What killed ranks must not leave in shared memory, nor a lock, unless it was its holder that was killed.
    fn assert_clean(&self, output: &Output, rank: usize) {
        let left: Vec<_> = (fs::read_dir(&self.folder).unwrap().flatten())
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name.contains("sm_segment") || name.contains("vader"))
            .collect();
        assert!(left.is_empty(), "{left:?}: {}", said(output));
        let lock = self.path("run/lock.json").exists();
        assert!(!lock || rank == 0, "the lock is left: {}", said(output));
    }

    /// The run has ended with the bits of the run that nothing happened to.
    fn assert_whole(&self, output: &Output) {
        assert!(output.status.success(), "{}", said(output));
        assert!(self.path("run/finished.json").exists());
        assert!(!self.path("run/lock.json").exists());
        assert_same_end_after(STEPS, &self.bench_run(), &undisturbed().bench_run());
    }

    /// The run has ended as `other`, which ran on another number of ranks: means of 3 or 6 round differently.
    fn assert_agrees(&self, output: &Output, other: &Case, steps: u64) {
        assert!(output.status.success(), "{}", said(output));
        assert!(self.path("run/finished.json").exists());
        let mut largest = 0f64;
        for (name, count) in [("loss", steps), ("architecture_loss", steps / 2)] {
            let (a, b) = (self.bench_run().of_steps(name), other.bench_run().of_steps(name));
            assert_eq!((a.len() as u64, b.len() as u64), (count, count));
            for (step, (a, b)) in a.iter().zip(&b).enumerate() {
                largest = largest.max((a - b).abs() / b.abs());
                assert!((a - b).abs() <= 1e-4 * b.abs(), "{name} of step {}: {a} and {b}", step + 1);
            }
        }
        // Of each replica too, whichever rank computed it.
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

/// The run that nothing happened to, on three ranks.
fn undisturbed() -> &'static Case {
    static CASE: OnceLock<Case> = OnceLock::new();
    CASE.get_or_init(|| {
        let case = Case::new("undisturbed");
        let output = case.run(3, None, &[]);
        assert!(output.status.success(), "{}", said(&output));
        case
    })
}

/// Phases and the step in which a fault happens there.
const PHASES: [(&str, u64); 5] =
    [("start-up", 0), ("forward", 5), ("all-reduce", 5), ("checkpoint", 4), ("stage change", 6)];

/// `fault` of rank `rank` in every phase: the job ends in time with an error, `words` (and where it happened) are said,
/// nothing is left; resumed, it ends as if nothing had happened.
fn ends_and_resumes(fault: &str, rank: usize, words: &[&str]) {
    // What happens to rank 0 is seen by another judge; one phase tells.
    let phases = if rank == 0 { &PHASES[1..2] } else { &PHASES };
    for (phase, step) in phases {
        // Open MPI cleans up by a list of paths that commas separate: with one in the path, what is tested is ours.
        let case = Case::new(&format!("{fault} of {rank}, {phase}"));
        let output = case.run(3, Some(&format!("{fault}|{phase}|{step}|{rank}")), &[]);
        let text = said(&output);
        assert!(!output.status.success(), "{phase}: {text}");
        assert!(case.path("met").exists(), "{phase}: nothing happened: {text}");
        // mpirun may throw away what is printed while it ends a job: the run folder keeps it.
        let kept = fs::read_to_string(case.path("run/messages.log")).unwrap_or_default();
        for word in words {
            let at = if *step > 0 { ", step STEP, PHASE" } else { "" };
            let word = word.replace("WHERE", at).replace("STEP", &step.to_string()).replace("PHASE", phase);
            assert!(text.contains(&word) || kept.contains(&word), "{phase}: no {word:?} in {text}\n{kept}");
        }
        case.assert_gone(3, &output);
        case.assert_clean(&output, rank);
        if fault == "damage" {
            case.restore_data();
        }
        case.assert_whole(&case.run(3, None, &[]));
    }
}

#[test]
fn a_killed_rank_is_named_and_nothing_is_lost() {
    let how = ", step STEP, PHASE: its process is gone";
    ends_and_resumes("kill", 1, &["rank 0 on ", "lost rank 1 on ", how]);
    ends_and_resumes("kill", 0, &["rank 1 on ", "lost rank 0 on ", how]);
}

#[test]
fn a_stopped_rank_is_named_and_nothing_is_lost() {
    let how = ", step STEP, PHASE: no sign of life for 2 s";
    ends_and_resumes("stop", 1, &["rank 0 on ", "lost rank 1 on ", how]);
    ends_and_resumes("stop", 0, &["rank 1 on ", "lost rank 0 on ", how]);
}

#[test]
fn a_panic_is_named_and_nothing_is_lost() {
    ends_and_resumes("panic", 1, &["rank 1 on ", "WHERE: panicked at tests/faults.rs", "a planned mistake"]);
}

#[test]
fn an_error_is_named_and_nothing_is_lost() {
    ends_and_resumes("error", 1, &["rank 1 on ", "WHERE: loader: a planned failure"]);
}

#[test]
fn a_damaged_batch_is_named_and_nothing_is_lost() {
    ends_and_resumes("damage", 1, &["shard shard-0000", " is damaged (checksum ", "pack it again"]);
}

#[test]
fn a_slow_rank_survives() {
    for (phase, step) in PHASES {
        let case = Case::new(&format!("slow {phase}"));
        let output = case.run(3, Some(&format!("slow|{phase}|{step}|1")), &[]);
        assert!(case.path("met").exists(), "{phase}: nothing happened: {}", said(&output));
        case.assert_whole(&output);
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

/// A case whose `command_of` these arguments start an evaluation.
fn evaluation(name: &str) -> (Case, [&'static str; 12]) {
    let case = Case::new(name);
    fs::write(case.path("evaluate.toml"), EVALUATION).unwrap();
    let arguments = ["evaluate-cifar", "--config", "evaluate.toml", "--genotype", "DrNAS_cifar10", "--train"];
    let more = ["train", "--test", "valid", "--out", "run", "--resume"];
    (case, [arguments, more].concat().try_into().unwrap())
}

/// What rank `rank` of a traced run went through in step `step`, each phase once for as long as it lasts.
fn phases(case: &Case, rank: usize, step: u64) -> Vec<String> {
    let trace = fs::read_to_string(case.path(&format!("phases-{rank}"))).unwrap();
    let begins = trace.lines().filter_map(|line| line.split_once(' '));
    let mut phases: Vec<String> =
        (begins.filter(|(at, _)| *at == step.to_string())).map(|(_, phase)| phase.into()).collect();
    phases.dedup();
    phases
}

#[test]
fn a_rank_lost_in_a_test_is_named_with_the_test() {
    let (case, arguments) = evaluation("lost in a test");
    let output = finish(case.command_of(&arguments, 3, Some("kill|test|3|1")), LIMIT);
    assert!(case.path("met").exists(), "nothing happened: {}", said(&output));
    let kept = fs::read_to_string(case.path("run/messages.log")).unwrap_or_default();
    for words in ["lost rank 1 on ", ", step 3, test: its process is gone"] {
        assert!(said(&output).contains(words) || kept.contains(words), "{words}: {}", said(&output));
    }
    case.assert_gone(3, &output);
    // The run goes on; afterwards each rank is again where it says it is.
    let output = finish(case.command_of(&arguments, 3, Some("trace||0|0")), LIMIT);
    assert!(output.status.success() && case.path("run/finished.json").exists(), "{}", said(&output));
    let step = ["data", "forward", "backward", "all-reduce", "optimiser"];
    let after = ["metrics", "test", "comparison", "checkpoint"];
    for rank in 0..3 {
        // Two replicas on each rank.
        let twice = [&step[..3], &step[..]].concat();
        assert_eq!(phases(&case, rank, 1), twice);
        assert_eq!(phases(&case, rank, 3), [&twice[..], &after].concat());
        assert_eq!(phases(&case, rank, 6), [&twice[..], &after, &["end"]].concat());
    }

    // Given weights are tested without a run.
    fs::remove_file(case.path("met")).unwrap();
    let weights = ["--test-only", "--weights", "run/best.safetensors", "--out", "tested"];
    let arguments = [&arguments[..5], &["--test", "valid"], &weights].concat();
    let output = finish(case.command_of(&arguments, 3, Some("kill|test|0|1")), LIMIT);
    assert!(case.path("met").exists(), "nothing happened: {}", said(&output));
    assert!(said(&output).contains(", step 0, test: its process is gone"), "{}", said(&output));
    let output = finish(case.command_of(&arguments, 3, None), LIMIT);
    assert!(output.status.success() && said(&output).contains(": top-1 "), "{}", said(&output));
}

#[test]
fn a_rank_lost_while_a_checkpoint_is_read_is_named_with_it() {
    let case = Case::new("lost in a read");
    assert_stopped(&case, &case.run(3, Some("signal|forward|5|0"), &[]), 5);
    fs::remove_file(case.path("met")).unwrap();
    let output = case.run(3, Some("kill|checkpoint|0|1"), &[]);
    assert!(case.path("met").exists(), "nothing happened: {}", said(&output));
    assert!(said(&output).contains(", step 0, checkpoint: its process is gone"), "{}", said(&output));
    case.assert_gone(3, &output);
    let output = case.run(3, Some("trace||0|0"), &[]);
    let begun = phases(&case, 1, 0);
    assert_eq!(begun, ["start-up", "checkpoint", "start-up", "comparison"], "{}", said(&output));
    case.assert_whole(&output);
}

// -- signals ------------------------------------------------------------------------------------------------------

/// Stopped with a checkpoint of the step under way, and with the code that says so.
fn assert_stopped(case: &Case, output: &Output, step: u64) {
    assert_eq!(output.status.code(), Some(75), "{}", said(output));
    assert_eq!(case.bench_run().checkpoints().last(), Some(&step), "{}", said(output));
    assert!(
        said(output).contains(&format!("the newest checkpoint, after step {step}, is good")),
        "{}",
        said(output)
    );
    assert!(!case.path("run/finished.json").exists() && !case.path("run/lock.json").exists());
}

#[test]
fn a_signal_to_any_rank_stops_all_at_one_step() {
    for (ranks, rank, fault) in [(3, 2, "signal"), (3, 0, "signal"), (0, 0, "signal"), (0, 0, "terminate")] {
        let case = Case::new(&format!("{fault} {rank} of {ranks}"));
        let output = case.run(ranks, Some(&format!("{fault}|forward|5|{rank}")), &[]);
        assert_stopped(&case, &output, 5);
        match ranks {
            3 => case.assert_whole(&case.run(3, None, &[])),
            _ => case.assert_agrees(&case.run(ranks, None, &[]), undisturbed(), STEPS),
        }
    }
}

/// Starts a run that waits in step 5, calls `meanwhile` then, and returns how it ended.
fn while_it_waits(case: &Case, meanwhile: impl FnOnce(u32)) -> Output {
    let mut command = case.command(3, Some("slow|forward|5|1"), &[]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !case.path("met").exists() {
        assert!(start.elapsed() < LIMIT, "it never came to step 5");
        std::thread::sleep(Duration::from_millis(10));
    }
    meanwhile(child.id());
    child.wait_with_output().unwrap()
}

#[test]
fn a_signal_to_mpirun_stops_all_at_one_step() {
    let case = Case::new("mpirun signalled");
    let output = while_it_waits(&case, |mpirun| signal(mpirun, "USR1"));
    assert_stopped(&case, &output, 5);
    case.assert_whole(&case.run(3, None, &[]));
}

#[test]
fn other_numbers_of_ranks_go_on_as_if_nothing_had_changed() {
    let case = Case::new("elastic");
    let longer = ["--set", "search.steps_per_epoch=5"];
    for (ranks, step) in [(3, 4), (2, 9), (0, 13), (3, 17)] {
        let output = case.run(ranks, Some(&format!("signal|forward|{step}|0")), &longer);
        assert_stopped(&case, &output, step);
        fs::remove_file(case.path("met")).unwrap();
    }
    let whole = Case::new("inelastic");
    assert!(whole.run(3, None, &longer).status.success());
    case.assert_agrees(&case.run(1, None, &longer), &whole, 20);
}

// -- the run folder -----------------------------------------------------------------------------------------------

#[test]
fn two_jobs_do_not_write_one_run() {
    let case = Case::new("two jobs");
    let mut second = None;
    let first = while_it_waits(&case, |_| second = Some(case.run(0, None, &[])));
    let second = second.unwrap();
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(said(&second).contains("another job writes this run"), "{}", said(&second));
    case.assert_whole(&first);
}

/// Rank 0 watches the lock of another machine for longer than a collective operation may take.
#[test]
fn the_others_wait_as_long_as_rank_0_watches_a_lock() {
    let case = Case::new("foreign lock");
    fs::create_dir(case.path("run")).unwrap();
    let lock = "{\"host\":\"afar\",\"pid\":1,\"born\":1,\"machine\":\"afar\",\"slurm_job\":null,\"slurm_restarts\":0,\
                \"token\":\"0\"}";
    fs::write(case.path("run/lock.json"), lock).unwrap();
    let output = case.run(3, None, &["--set", "run.time_limit_s=12"]);
    let taken = "the lock of process 1 on afar, which has ended, is taken over";
    assert!(said(&output).contains(taken), "{}", said(&output));
    case.assert_whole(&output);
}

#[test]
fn a_shard_that_is_cut_while_it_is_read_is_named() {
    for ranks in [3, 0] {
        let case = Case::new(&format!("cut on {ranks}"));
        let rank = usize::from(ranks > 0);
        let output = case.run(ranks, Some(&format!("truncate|forward|5|{rank}")), &[]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let line = said(&output).lines().find(|line| line.contains("SIGBUS")).unwrap_or_default().to_string();
        for part in ["rank ", "train/shard-0000", "cut short, replaced in place or unreadable", "--resume"] {
            assert!(line.contains(part), "{part}: {}", said(&output));
        }
        case.assert_gone(ranks, &output);
        case.restore_data();
        case.assert_whole(&case.run(3, None, &[]));
    }
    // One that is only removed can be read to the end.
    let case = Case::new("removed");
    case.assert_whole(&case.run(3, Some("remove|forward|5|1"), &[]));
}

/// A small file system of its own, for as long as it lives.
struct Disk(PathBuf);

impl Disk {
    /// None where mounting is not allowed.
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
fn a_full_or_read_only_disk_is_told_and_nothing_is_lost() {
    let case = Case::new("disk");
    fs::create_dir(case.path("run")).unwrap();
    let Some(disk) = Disk::mount(&case.path("run"), "1600k") else {
        println!("skipped: a file system cannot be mounted here");
        return;
    };
    let output = case.run(3, None, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("No space left on device"), "{}", said(&output));
    let good = case.bench_run().checkpoints();
    println!("whole checkpoints on the full disk: {good:?}");
    assert!(!good.is_empty(), "one at least had room");
    checkpoint::read(&case.path("run/checkpoints"), *good.last().unwrap()).unwrap();

    disk.change("ro");
    let output = case.run(3, None, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("Read-only file system"), "{}", said(&output));

    disk.change("rw,size=64m");
    let output = case.run(3, None, &[]);
    assert!(said(&output).contains("resumed after step"), "{}", said(&output));
    case.assert_whole(&output);
}

/// `launch/supervise.sh` with the search and a fault, at most 4 ranks.
fn supervised(case: &Case, plan: &str) -> Command {
    let rank = format!("exec \"$0\" {}", RANK_PROGRAM.join(" "));
    let mut command = supervised_ranks(&case.command(3, Some(plan), &[]));
    command.args(["-c", &rank]).arg(std::env::current_exe().unwrap());
    command
}

/// `launch/supervise.sh` with mpirun, folder and variables of `plain`, and `sh` as the ranks, whose arguments are to follow.
/// `supervisor` then holds its process, which has a group of its own, as on a terminal.
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
fn a_supervised_run_goes_on_by_itself_on_the_hosts_that_answer() {
    let case = Case::new("supervised");
    let mut command = supervised(&case, "kill|forward|5|1");
    fs::write(case.path("alive.sh"), "[ \"$1\" = localhost ]").unwrap();
    command.env("HOSTS", "gone:2,localhost:6").env("ALIVE", "sh alive.sh");
    let output = finish(command, LIMIT);
    let start = "start with 3 ranks on localhost:6, from step";
    for line in [&format!("{start} 0"), "another start", &format!("{start} 4")] {
        assert!(said(&output).contains(line), "{line}: {}", said(&output));
    }
    case.assert_whole(&output);
    // A host without a number has one slot. Nothing runs here.
    let case = Case::new("hosts");
    for (hosts, start) in [
        ("localhost:2,gone,localhost", "start with 3 ranks on localhost:2,localhost, from step 0"),
        ("gone:6,localhost", "start with 1 ranks on localhost, from step 0"),
    ] {
        let mut command = supervised(&case, "kill|forward|5|1");
        fs::write(case.path("alive.sh"), "[ \"$1\" = localhost ]").unwrap();
        command.env("HOSTS", hosts).env("ALIVE", "sh alive.sh").env("MPIRUN", "true").env("RESTARTS", "0");
        let output = finish(command, LIMIT);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(start), "{start}: {}", said(&output));
    }
}

/// An mpirun that hangs without ranks, before there is a run folder: a stopped one here, a locked-up one in life.
#[test]
fn an_mpirun_that_hangs_without_ranks_is_ended() {
    let case = Case::new("no-ranks");
    let mut supervised = supervised_ranks(&case.command(1, None, &[]));
    supervised.args(["-c", "kill -STOP $PPID; exit 1"]).env("RANKS", "1").env("RESTARTS", "0");
    let mut batch = Command::new("bash");
    batch.args([
        "-euc",
        "run=$PWD/run; cd \"$0\"; . launch/slurm/common.sh; ranks 1; go \"$run\" sh -c \"$1\"",
    ]);
    batch.args([env!("CARGO_MANIFEST_DIR"), "kill -STOP $PPID; exit 1"]).current_dir(&case.folder);
    at_home(&mut batch, &case.folder)
        .env("LAUNCHER", "mpirun")
        .env("RETRIES", "0")
        .env("DRNAS_COMMAND", "...");
    for (mut command, code) in [(supervised, 137), (batch, 1)] {
        command.env("LINGER_S", "2");
        let output = finish(command, LIMIT);
        for line in ["the ranks have ended, mpirun has not", "exit code 137"] {
            assert!(said(&output).contains(line), "{line}: {}", said(&output));
        }
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    }
}

/// Ctrl-C, or the end of the terminal, reaches every process in its foreground; mpirun would end the ranks at once.
#[test]
fn a_supervised_run_is_stopped_from_the_keyboard() {
    for fault in ["interrupt", "hang-up"] {
        let case = Case::new(fault);
        let output = finish(supervised(&case, &format!("{fault}|forward|5|1")), LIMIT);
        assert_eq!(output.status.code(), Some(75), "{fault}: {}", said(&output));
        assert!(said(&output).contains("start with 3 ranks, from step 0"), "{fault}: {}", said(&output));
        assert!(
            said(&output).contains("stopped with a checkpoint, after step 5"),
            "{fault}: {}",
            said(&output)
        );
    }
}
