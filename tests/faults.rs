//! Faults of every kind in every phase, on three ranks: the rank is named, everything ends, nothing is lost.
//!
//! Each case is a small search of which rank 1 (or 0) meets with a fault at one point. The ranks run this very program,
//! `rank_program`, which plants the fault by `whereabouts::on_begin` and then does what `drnas-dist` does.

#[path = "common/bench.rs"]
mod bench;

use bench::{Bench, finish, said, signal};
use clap::Parser;
use drnas_dist::cli::Cli;
use drnas_dist::whereabouts::{self, Phase};
use drnas_dist::{Error, checkpoint};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Two stages of two epochs of three steps; a checkpoint every second step.
const STEPS: u64 = 12;
const CONFIG: &str = "
[model]
init_channels = 12
layers = 3
num_classes = 4
[data]
px = 32
crop_area_min = 0.3
[search]
replicas = 6
global_batch = 12
architecture_from_epoch = 1
steps_per_epoch = 3
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
warmup_epochs = 1
[run]
log_every = 2
compare_every = 4
checkpoint_every = 2
time_limit_s = 60
threads = 1
heartbeat_s = 2
";
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
    whereabouts::on_begin(Box::new(move |at, what| {
        let here = whereabouts::here();
        if at == 0 && what == Phase::StartUp {
            fs::write(format!("pid-{}", here.rank), std::process::id().to_string()).unwrap();
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

fn meet(fault: &str) -> Result<(), Error> {
    match fault {
        // SAFETY: plain calls on this very process.
        "kill" => unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
        },
        // SAFETY: as above.
        "stop" => unsafe {
            libc::kill(libc::getpid(), libc::SIGSTOP);
        },
        "panic" => panic!("a planned mistake"),
        "error" => return Err(Error::LoaderSpec("a planned failure".into())),
        "slow" => std::thread::sleep(slowness()),
        "damage" => damage(Path::new("train")),
        other => panic!("no fault {other}"),
    }
    Ok(())
}

/// Longer than a rank may be silent. `DRNAS_TEST_SLOW_S` asks for other seconds.
fn slowness() -> Duration {
    let asked = std::env::var("DRNAS_TEST_SLOW_S").ok().and_then(|seconds| seconds.parse().ok());
    asked.map_or(5 * HEARTBEAT / 2, Duration::from_secs)
}

/// Changes every image of a set that is in use, in place.
fn damage(set: &Path) {
    use std::os::unix::fs::FileExt;
    for number in 0.. {
        let path = set.join(format!("shard-{number:05}.bin"));
        let Ok(bytes) = fs::read(&path) else { break };
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
        fs::write(folder.join("search.toml"), CONFIG).unwrap();
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
        let bench = Bench::get();
        let this = std::env::current_exe().unwrap();
        let mut command = if ranks == 0 { bench.at_home(&this) } else { bench.mpirun() };
        if ranks > 0 {
            command.args(["-n", &ranks.to_string()]).arg(&this);
        }
        command.args(["--exact", "rank_program", "--ignored", "--nocapture", "--test-threads=1"]);
        let arguments =
            ["search-imagenet", "--config", "search.toml", "--train", "train", "--valid", "valid"];
        let arguments = [&arguments[..], &["--out", "run", "--resume"], more].concat();
        command.current_dir(&self.folder).env(ARGUMENTS, arguments.join("\n"));
        // What a rank leaves in shared memory and in its session lies here.
        command.env("TMPDIR", &self.folder).env("OMPI_MCA_btl_sm_backing_directory", &self.folder);
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

    /// No rank of the run is left: a zombie whose parent is slow is none.
    fn assert_gone(&self, ranks: usize, output: &Output) {
        let living = |rank: usize| {
            let pid = fs::read_to_string(self.path(&format!("pid-{rank}"))).ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let state = stat.rsplit(')').next()?.trim_start().chars().next()?;
            (state != 'Z').then_some(pid)
        };
        let start = Instant::now();
        while let Some(pid) = (0..ranks).find_map(living) {
            assert!(start.elapsed() < Duration::from_secs(10), "{pid} is left: {}", said(output));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What killed ranks must not leave in shared memory, nor a lock.
    fn assert_clean(&self, output: &Output) {
        let left: Vec<_> = (fs::read_dir(&self.folder).unwrap().flatten())
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name.contains("sm_segment") || name.contains("vader"))
            .collect();
        assert!(left.is_empty(), "{left:?}: {}", said(output));
        assert!(!self.path("run/lock.json").exists(), "the lock is left: {}", said(output));
    }

    /// The run has ended with the bits of the run that nothing happened to.
    fn assert_whole(&self, output: &Output) {
        assert!(output.status.success(), "{}", said(output));
        assert!(self.path("run/finished.json").exists());
        assert!(!self.path("run/lock.json").exists());
        let undisturbed = undisturbed();
        let (ours, theirs) = (self.bench_run(), undisturbed.bench_run());
        let (a, b) = (ours.state(STEPS), theirs.state(STEPS));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (name, tensor) in &a {
            assert!(tensor.equal(&b[name]), "{name} differs");
        }
        assert_eq!(ours.genotype(), theirs.genotype());
        assert_eq!(ours.log(), theirs.log());
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
    for (phase, step) in PHASES {
        let case = Case::new(&format!("{fault} {phase}"));
        let output = case.run(3, Some(&format!("{fault}|{phase}|{step}|{rank}")), &[]);
        let text = said(&output);
        assert!(!output.status.success(), "{phase}: {text}");
        assert!(case.path("met").exists(), "{phase}: nothing happened: {text}");
        // mpirun may throw away what is printed while it ends a job: the run folder keeps it.
        let kept = fs::read_to_string(case.path("run/messages.log")).unwrap_or_default();
        for word in words {
            let word = word.replace("STEP", &step.to_string()).replace("PHASE", phase);
            assert!(text.contains(&word) || kept.contains(&word), "{phase}: no {word:?} in {text}\n{kept}");
        }
        case.assert_gone(3, &output);
        case.assert_clean(&output);
        if fault == "damage" {
            case.restore_data();
        }
        case.assert_whole(&case.run(3, None, &[]));
    }
}

#[test]
fn a_killed_rank_is_named_and_nothing_is_lost() {
    ends_and_resumes("kill", 1, &["lost rank 1 on ", ", step STEP, PHASE: its process is gone"]);
}

#[test]
fn a_stopped_rank_is_named_and_nothing_is_lost() {
    ends_and_resumes("stop", 1, &["lost rank 1 on ", ", step STEP, PHASE: no sign of life for 2 s"]);
}

#[test]
fn a_panic_is_named_and_nothing_is_lost() {
    ends_and_resumes("panic", 1, &["rank 1 on ", "panicked at tests/faults.rs", "a planned mistake"]);
}

#[test]
fn an_error_is_named_and_nothing_is_lost() {
    ends_and_resumes("error", 1, &["rank 1 on ", "loader: a planned failure"]);
}

#[test]
fn a_damaged_batch_is_named_and_nothing_is_lost() {
    ends_and_resumes("damage", 1, &["shard shard-0000", "is damaged", "pack it again"]);
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
