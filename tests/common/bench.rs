//! A workspace for whole-program tests: a small packed data set, the program under a real mpirun, and the resulting run
//! folders.

#[path = "mpirun.rs"]
#[allow(dead_code, reason = "the rest is for tests that start themselves as ranks")]
pub mod mpirun;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tch::Tensor;

/// Two stages of two epochs of five steps: 20 steps; the stage changes after step 10.
pub const STEPS: u64 = 20;
pub const STAGE_CHANGE: u64 = 10;

const CONFIG: &str = "
device = \"cpu\"
[model]
init_channels = 12
layers = 3
num_classes = 4
[data]
px = 64
crop_area_min = 0.3
[search]
replicas = 4
global_batch = 32
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
warmup_epochs = 1
[run]
log_every = 3
compare_every = 4
checkpoint_every = 100
time_limit_s = 100
threads = 1
";

/// A folder with a packed data set and a configuration, created once per test program.
pub struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// Returns the instance of this test program.
    pub fn get() -> &'static Bench {
        static BENCH: OnceLock<Bench> = OnceLock::new();
        BENCH.get_or_init(|| {
            let bench = Bench { folder: tempfile::tempdir().unwrap() };
            std::fs::write(bench.path("search.toml"), CONFIG).unwrap();
            let run = |arguments: &[&str]| {
                let output = bench.program().args(arguments).output().unwrap();
                assert!(output.status.success(), "{arguments:?}: {}", output_text(&output));
            };
            run(&["demo-data", "images", "--classes", "4", "--per-class", "70", "--px", "56..72"]);
            run(&["split", "images", "--fractions", "0.6,0.3", "--names", "train,valid", "--out", "lists"]);
            run(&["pack", "images", "train", "--list", "lists/train.txt", "--shard-images", "40"]);
            run(&["pack", "images", "valid", "--list", "lists/valid.txt"]);
            bench
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `drnas-dist`, run in this folder.
    pub fn program(&self) -> Command {
        self.command(env!("CARGO_BIN_EXE_drnas-dist"))
    }

    /// `program`, run in this folder with the environment that Open MPI needs in tests.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path()).env_remove("DRNAS_PROGRESS");
        mpirun::configure_mpi(&mut command, self.folder.path());
        command
    }

    /// mpirun, run in this folder.
    pub fn mpirun(&self) -> Command {
        let mut command = self.command(mpirun::mpirun());
        command.args(["--bind-to", "none"]);
        command
    }

    /// The command that runs a search on `ranks` ranks (0: without mpirun) into the run folder `run`.
    pub fn search(&self, ranks: usize, run: &str, more: &[&str]) -> Command {
        self.search_with(&["search-imagenet", "--config", "search.toml"], ranks, run, more)
    }

    /// The same for another subcommand, given with its first arguments.
    pub fn search_with(&self, subcommand: &[&str], ranks: usize, run: &str, more: &[&str]) -> Command {
        let mut command = if ranks == 0 { self.program() } else { self.mpirun() };
        if ranks > 0 {
            command.args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_drnas-dist")]);
        }
        command.args(subcommand).args(["--train", "train", "--valid", "valid"]);
        command.args(["--out", run]).args(more);
        command
    }

    /// Runs a search, which must succeed.
    pub fn run_search(&self, ranks: usize, run: &str, more: &[&str]) -> Run {
        let output = finish(self.search(ranks, run, more), Duration::from_secs(300));
        assert!(output.status.success(), "{ranks} ranks, {more:?}: {}", output_text(&output));
        self.run(run)
    }

    pub fn run(&self, run: &str) -> Run {
        Run { folder: self.path(run) }
    }
}

/// A run folder.
pub struct Run {
    pub folder: PathBuf,
}

impl Run {
    /// The lines of metrics.jsonl without the fields that depend on time, the number of ranks or the GPU.
    pub fn log(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.folder.join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| {
                let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
                let fields = line.as_object_mut().unwrap();
                for field in [
                    "images_per_s",
                    "data_wait_ms",
                    "reduce_wait_ms",
                    "checkpoint_ms",
                    "wall_s",
                    "time",
                    "ranks",
                    "card_memory_mib",
                ] {
                    fields.remove(field);
                }
                line
            })
            .collect()
    }

    /// The field `name` of every step that has it.
    pub fn step_values(&self, name: &str) -> Vec<f64> {
        let steps = self.log().into_iter().filter(|line| line["event"] == "step");
        steps.filter_map(|line| line[name].as_f64()).collect()
    }

    pub fn genotype(&self) -> String {
        std::fs::read_to_string(self.folder.join("genotype.json")).unwrap()
    }

    /// Steps with a complete checkpoint, in order.
    pub fn checkpoints(&self) -> Vec<u64> {
        let mut steps =
            drnas_dist::train::checkpoint::list(&self.folder.join("checkpoints")).unwrap_or_default();
        steps.sort();
        steps
    }

    /// The tensors of the checkpoint of step `step`.
    pub fn state(&self, step: u64) -> BTreeMap<String, Tensor> {
        let saved = drnas_dist::train::checkpoint::read(&self.folder.join("checkpoints"), step).unwrap();
        saved.tensors.into_iter().collect()
    }
}

/// Asserts that two runs of `STEPS` steps have bit-identical results.
pub fn assert_same_result(ours: &Run, theirs: &Run) {
    assert_same_result_after(STEPS, ours, theirs);
}

/// Asserts that two runs of `steps` steps have bit-identical results.
pub fn assert_same_result_after(steps: u64, ours: &Run, theirs: &Run) {
    let (a, b) = (ours.state(steps), theirs.state(steps));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, tensor) in &a {
        assert!(tensor.equal(&b[name]), "{name} differs");
    }
    assert_eq!(ours.genotype(), theirs.genotype());
    assert_eq!(ours.log(), theirs.log());
}

/// Runs a command to completion; kills it after `limit`.
pub fn finish(mut command: Command, limit: Duration) -> Output {
    wait(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), limit)
}

/// Waits for a running child whose streams are pipes; kills it after `limit`.
pub fn wait(child: Child, limit: Duration) -> Output {
    let id = child.id();
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if waiting.recv_timeout(limit).is_err_and(|why| why == std::sync::mpsc::RecvTimeoutError::Timeout) {
            signal(id, "KILL");
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watch.join().unwrap();
    output
}

/// Standard output and standard error of a program.
pub fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn signal(id: u32, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status().unwrap();
}

/// The running ranks that write to the run folder `run`, identified by their command lines.
pub fn rank_pids(run: &Path) -> Vec<u32> {
    let name = run.file_name().unwrap().to_str().unwrap().as_bytes();
    let writes_to_run = |id: u32| {
        let text = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = text.split(|byte| *byte == 0).collect();
        let program = words[0].ends_with(b"drnas-dist");
        program && words.iter().any(|word| *word == name || word.ends_with(&[b"/", name].concat()))
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&id| writes_to_run(id))
        .collect()
}

/// Sends SIGKILL to mpirun and to every rank that it started, and waits until they are gone.
pub fn kill_all(mut child: Child, run: &Path) {
    signal(child.id(), "KILL");
    rank_pids(run).into_iter().for_each(|id| signal(id, "KILL"));
    child.wait().unwrap();
    let start = Instant::now();
    while !rank_pids(run).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20), "killed ranks are still running");
        std::thread::sleep(Duration::from_millis(5));
    }
}
