//! The batch scripts under a real Slurm: time limits, signals, requeues, scancel; one node and two, mpirun and srun.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;
#[path = "common/cluster.rs"]
mod cluster;

use bench::{Bench, Run};
use cluster::Cluster;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

/// A job of one of the scripts: where it runs, what it leaves.
struct Job<'a> {
    cluster: &'a Cluster,
    id: String,
    log: PathBuf,
    run: Run,
}

impl<'a> Job<'a> {
    /// Submits `launch/slurm/SCRIPT` with the test's configuration and data; the run folder is called `name`.
    fn submit(
        cluster: &'a Cluster,
        name: &str,
        script: &str,
        options: &[&str],
        launcher: &str,
        more: &[&str],
    ) -> Job<'a> {
        let bench = Bench::get();
        let path = |name: &str| bench.path(name).to_str().unwrap().to_owned();
        let evaluates = script == "evaluate.sh";
        let settings = BTreeMap::from([
            ("CONFIG", path(if evaluates { "evaluate.toml" } else { "search.toml" })),
            ("EVALUATE", "evaluate-cifar".into()),
            ("TEST", path("valid")),
            ("GENOTYPE", "DrNAS_cifar10".into()),
            ("TRAIN", path("train")),
            ("VALID", path("valid")),
            ("RUN", path(name)),
            ("RUNS", path(name)),
            ("RANKS", "1 2".into()),
            ("STEPS", "2".into()),
            ("LAUNCHER", launcher.into()),
        ]);
        let log = bench.path(&format!("{name}.log"));
        let output = format!("--output={}", log.display());
        let gpus = format!("--gpus-per-node={}", cluster.gpus);
        let options = [&["--cpus-per-task=1", &output, &gpus], options].concat();
        let script = format!("launch/slurm/{script}");
        let id = cluster.submit(&options, &settings, &[&[script.as_str()], more].concat());
        Job { cluster, id, log, run: bench.run(name) }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the run's log has that many lines of steps.
    fn after_steps(&self, steps: usize) {
        let logged = || fs::read_to_string(self.run.folder.join("metrics.jsonl")).unwrap_or_default();
        self.cluster.wait(&format!("step {steps}"), &self.log, || {
            logged().lines().filter(|line| line.contains("\"event\":\"step\"")).count() >= steps
        });
    }

    /// Waits for the end, which has to be a good one: every step is in the log once.
    fn completes(&self, steps: usize) {
        assert_eq!(self.cluster.ended(&self.id, &self.log), "COMPLETED", "{}", self.said());
        assert!(self.run.folder.join("finished.json").exists(), "{}", self.said());
        assert!(self.said().contains("has finished"), "{}", self.said());
        let found: Vec<u64> = (self.run.log().iter())
            .filter(|line| line["event"] == "step")
            .map(|line| line["step"].as_u64().unwrap())
            .collect();
        assert_eq!(found, (1..=steps as u64).collect::<Vec<_>>(), "{}", self.said());
    }

    /// How often it was put back into the queue; each start says how many went before it.
    fn restarts(&self) -> usize {
        let said = self.said();
        let count = |text: &str| said.matches(text).count();
        let restarts = count("not finished: back into the queue");
        // A warning may come when nothing is left to do.
        assert!(restarts <= count("warned by Slurm"), "{said}");
        for restart in 0..=restarts {
            assert!(said.contains(&format!("start {restart} on node")), "{said}");
        }
        restarts
    }

    /// It was warned in the middle of the run, once, and lost nothing by that.
    fn went_on_once(&self) {
        // A launcher that ends a job may lose last words; they stand in the run folder too.
        let messages = fs::read_to_string(self.run.folder.join("messages.log")).unwrap_or_default();
        let said = self.said() + &messages;
        assert_eq!(self.restarts(), 1, "{said}");
        let number = |before: &str| -> Option<u64> {
            let rest = &said[said.find(before)? + before.len()..];
            rest.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()
        };
        let stopped = number("stopped; the newest checkpoint, after step ").expect("a farewell");
        assert_eq!(number("resumed after step "), Some(stopped), "{said}");
        // What a user is told to type has the settings of this job.
        let command = format!(" RUN={} RUNS=", self.run.folder.display());
        assert!(said.contains("goes on with: ") && said.contains(&command), "{said}");
    }
}

/// Slurm itself warns the script, looking every 30 s whether 60 s of time are nearly over: a run of more than 30 s
/// meets that once at least.
fn a_time_limit_is_survived(cluster: &Cluster) {
    let start = Instant::now();
    Bench::get().searched(2, "measure", &[]);
    let mut epochs = (2.0 + 2.0 * 45.0 / start.elapsed().as_secs_f64()) as usize;
    for attempt in 0..3 {
        let set = format!("search.stage.2.epochs={epochs}");
        let options = ["--nodes=1", "--ntasks-per-node=2", "--time=1", "--signal=B:USR1@30"];
        let name = format!("limit-{attempt}");
        let job = Job::submit(cluster, &name, "search.sh", &options, "mpirun", &["--set", &set]);
        job.completes(5 * (2 + epochs));
        let restarts = job.restarts();
        println!("time limit: {} steps, {restarts} restarts", 5 * (2 + epochs));
        if restarts > 0 {
            return;
        }
        epochs *= 3; // the machine has become faster meanwhile
    }
    panic!("never warned");
}

/// The same signal at a moment of our choice, on two nodes.
fn a_warning_on_two_nodes(cluster: &Cluster, launcher: &str) {
    let options = ["--nodes=2", "--ntasks-per-node=1", "--time=5"];
    let name = format!("two-{launcher}");
    let more = ["--set", "search.stage.2.epochs=4", "--set", "run.log_every=1"];
    let job = Job::submit(cluster, &name, "search.sh", &options, launcher, &more);
    job.after_steps(4);
    cluster.said("scancel", &["--batch", "--signal=USR1", &job.id]);
    job.completes(30);
    job.went_on_once();
    println!("two nodes, {launcher}: warned, requeued, finished");
}

/// scancel leaves a good checkpoint and no process; the same job submitted again goes on.
fn cancelled_and_submitted_again(cluster: &Cluster) {
    let options = ["--nodes=2", "--ntasks-per-node=1", "--time=5", "--open-mode=append"];
    let more =
        ["--set", "search.stage.2.epochs=6", "--set", "run.log_every=1", "--set", "run.checkpoint_every=2"];
    let submit = || Job::submit(cluster, "cancelled", "search.sh", &options, "mpirun", &more);
    let job = submit();
    job.after_steps(5);
    cluster.said("scancel", &[&job.id]);
    assert_eq!(cluster.ended(&job.id, &job.log), "CANCELLED", "{}", job.said());
    cluster.wait("the end of the ranks", &job.log, || bench::ranks_of(&job.run.folder).is_empty());
    assert!(!job.run.folder.join("finished.json").exists());
    assert!(!job.run.checkpoints().is_empty());
    let again = submit();
    again.completes(40);
    assert!(again.said().contains("resumed after step"), "{}", again.said());
    println!("scancel: {} checkpoints, submitted again, finished", job.run.checkpoints().len());
}

/// Without Slurm's MPI plugin each process would be a world of its own and write the same folder.
fn worlds_of_one_are_refused(cluster: &Cluster) {
    let bench = Bench::get();
    let words = "search-imagenet --config search.toml --train train --valid valid --out worlds";
    let output = (cluster.command("srun").args(["--mpi=none", "-n2", env!("CARGO_BIN_EXE_drnas-dist")]))
        .args(words.split(' '))
        .current_dir(bench.path(""))
        .output()
        .unwrap();
    let said = bench::said(&output);
    assert!(!output.status.success() && said.contains(" says 2 ranks, MPI says 1"), "{said}");
    assert!(!bench.path("worlds").exists());
    println!("srun without its plugin: refused");
}

const EVALUATION: &str = "
[model]
space = \"darts-cifar\"
init_channels = 4
layers = 3
num_classes = 4
[data]
px = 32
[evaluate]
replicas = 4
global_batch = 32
epochs = 4
[weights]
warmup_epochs = 1
[run]
log_every = 1
checkpoint_every = 100
threads = 1
";

/// What was found is trained in the same way.
fn an_evaluation_is_warned(cluster: &Cluster) {
    fs::write(Bench::get().path("evaluate.toml"), EVALUATION).unwrap();
    let options = ["--nodes=1", "--ntasks-per-node=2", "--time=5"];
    let job = Job::submit(cluster, "evaluation", "evaluate.sh", &options, "mpirun", &[]);
    job.after_steps(4);
    cluster.said("scancel", &["--batch", "--signal=USR1", &job.id]);
    job.completes(20);
    job.went_on_once();
    println!("evaluation: warned, requeued, finished");
}

/// One job a seed, each with a folder of its own.
fn seeds(cluster: &Cluster) {
    let options = ["--array=3-4", "--ntasks-per-node=1", "--time=5"];
    let job = Job::submit(cluster, "seeds", "seeds.sh", &options, "mpirun", &[]);
    for seed in [3, 4] {
        let id = format!("{}_{seed}", job.id);
        assert_eq!(cluster.ended(&id, &job.log), "COMPLETED", "{}", job.said());
        let config = fs::read_to_string(job.run.folder.join(format!("{seed}/config.toml"))).unwrap();
        assert!(config.contains(&format!("seed = {seed}\n")), "{config}");
        assert!(job.run.folder.join(format!("{seed}/finished.json")).exists());
        assert!(
            job.said().contains(&format!("sbatch --array={seed} launch/slurm/seeds.sh")),
            "{}",
            job.said()
        );
    }
    println!("array: 2 seeds");
}

fn scaling(cluster: &Cluster) {
    let options = ["--nodes=2", "--ntasks-per-node=1", "--time=5", "--no-requeue"];
    let job = Job::submit(cluster, "scaling", "scaling.sh", &options, "mpirun", &[]);
    assert_eq!(cluster.ended(&job.id, &job.log), "COMPLETED", "{}", job.said());
    let table = fs::read_to_string(job.run.folder.join("scaling.md")).unwrap();
    let ranks: Vec<&str> = table.lines().skip(2).map(|line| line.split('|').nth(1).unwrap().trim()).collect();
    assert_eq!(ranks, ["1", "2"], "{table}");
    println!("{table}");
}

/// A node goes down for a while. Slurm puts a job of a batch script back into the queue; `supervise.sh` in a job that is
/// kept (`--no-kill`) goes on with the node that is left.
fn a_lost_node(cluster: &Cluster) {
    let bench = Bench::get();
    let node2_is = |state: &str| {
        let state = format!("state={state}");
        cluster.said("scontrol", &["update", "nodename=node2", &state, "reason=lost"]);
    };
    let more =
        ["--set", "search.stage.2.epochs=6", "--set", "run.log_every=1", "--set", "run.checkpoint_every=2"];
    let nodes = ["--nodes=2", "--ntasks-per-node=1", "--time=5"];

    let job = Job::submit(cluster, "requeued", "search.sh", &nodes, "mpirun", &more);
    job.after_steps(4);
    node2_is("down");
    cluster.wait("the queue", &job.log, || cluster.field(&job.id, "JobState") == "PENDING");
    node2_is("resume");
    job.completes(40);
    for line in ["start 1 on node[1-2]", "resumed after step "] {
        assert!(job.said().contains(line), "{line}: {}", job.said());
    }

    let path = |name: &str| bench.path(name).to_str().unwrap().to_owned();
    let (run, log) = (path("kept"), bench.path("kept.log"));
    let (config, train, valid) = (path("search.toml"), path("train"), path("valid"));
    let wrapped = format!(
        "--wrap=launch/supervise.sh {run} drnas-dist search-imagenet --config {config} --train {train} --valid {valid} \
         --out {run} {}",
        more.join(" ")
    );
    let output = format!("--output={}", log.display());
    let options = [&["--no-kill", "--cpus-per-task=1", &output], &nodes[..]].concat();
    let settings = BTreeMap::from([("PAUSE_S", "0".into())]);
    let id = cluster.submit(&options, &settings, &[&wrapped]);
    let job = Job { cluster, id, log, run: bench.run("kept") };
    job.after_steps(4);
    node2_is("down");
    let state = cluster.ended(&job.id, &job.log);
    node2_is("resume");
    assert_eq!(state, "COMPLETED", "{}", job.said());
    assert!(job.run.folder.join("finished.json").exists(), "{}", job.said());
    for line in
        ["start with 2 ranks on node1:1,node2:1, from step 0", "start with 1 ranks on node1:1, from step "]
    {
        assert!(job.said().contains(line), "{line}: {}", job.said());
    }
    println!("a lost node: requeued and finished; supervised, finished on what was left");
}

/// Another job takes the nodes, before there is a checkpoint: the steps get SIGTERM, and the script cannot know why; when
/// the grace is over Slurm puts the job back into the queue.
///
/// Slurm looks every half a minute whether a grace is over. Until then the script goes on, and a fast machine may be done:
/// then a longer run is tried.
fn a_pre_emption_is_survived(cluster: &Cluster) {
    let nodes = ["--nodes=2", "--ntasks-per-node=1", "--time=5"];
    for epochs in [20, 100, 500] {
        let longer = format!("search.stage.2.epochs={epochs}");
        let more = ["--set", &longer, "--set", "run.log_every=1"];
        let name = format!("pre-empted-{epochs}");
        let job = Job::submit(cluster, &name, "search.sh", &nodes, "mpirun", &more);
        job.after_steps(4);
        let urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"];
        let other = cluster.submit(&urgent, &BTreeMap::new(), &["--wrap=sleep 1"]);
        assert_eq!(cluster.ended(&other, &job.log), "COMPLETED", "{}", job.said());
        cluster.ended(&job.id, &job.log);
        if !job.said().contains("start 1 on node[1-2]") && job.run.folder.join("finished.json").exists() {
            println!("pre-emption: {epochs} epochs were done before Slurm ended them");
            continue;
        }
        job.completes(10 + 5 * epochs);
        assert!(job.said().contains("start 1 on node[1-2]"), "{}", job.said());
        println!("pre-emption: ended, requeued, finished ({epochs} epochs)");
        return;
    }
    panic!("every run was done before Slurm ended it");
}

#[test]
fn the_batch_scripts_under_slurm() {
    let cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(why) => return println!("skipped: {why}"),
    };
    let with_srun =
        cluster.command("srun").args(["--mpi=pmix", "-n1", "true"]).output().unwrap().status.success();
    let cluster = &cluster;
    // Side by side: most of the time is spent waiting for Slurm.
    std::thread::scope(|scope| {
        scope.spawn(|| a_time_limit_is_survived(cluster));
        scope.spawn(|| a_warning_on_two_nodes(cluster, "mpirun"));
        scope.spawn(|| match with_srun {
            true => a_warning_on_two_nodes(cluster, "srun"),
            false => println!("skipped: srun --mpi=pmix does not work here (apt-get install libpmix-dev)"),
        });
        scope.spawn(|| cancelled_and_submitted_again(cluster));
        scope.spawn(|| an_evaluation_is_warned(cluster));
        scope.spawn(|| worlds_of_one_are_refused(cluster));
        scope.spawn(|| {
            seeds(cluster);
            scaling(cluster);
        });
    });
    a_pre_emption_is_survived(cluster);
    a_lost_node(cluster);
}
