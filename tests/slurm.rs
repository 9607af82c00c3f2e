//! The batch scripts under a real Slurm: time limits, signals, requeues and scancel, on one and two nodes, with mpirun
//! and srun.

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

/// A submitted job with its log and run folder.
struct Job<'a> {
    cluster: &'a Cluster,
    id: String,
    log: PathBuf,
    run: Run,
}

impl<'a> Job<'a> {
    /// Submits `launch/slurm/SCRIPT` with the test's configuration and data; `name` is the name of the run folder.
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

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until metrics.jsonl has `steps` step lines.
    fn wait_for_steps(&self, steps: usize) {
        let logged = || fs::read_to_string(self.run.folder.join("metrics.jsonl")).unwrap_or_default();
        self.cluster.wait(&format!("step {steps}"), &self.log, || {
            logged().lines().filter(|line| line.contains("\"event\":\"step\"")).count() >= steps
        });
    }

    /// Waits for the end of the job and asserts that it completed, with every step exactly once in metrics.jsonl.
    fn assert_completes(&self, steps: usize) {
        assert_eq!(self.cluster.wait_for_end(&self.id, &self.log), "COMPLETED", "{}", self.log_text());
        assert!(self.run.folder.join("finished.json").exists(), "{}", self.log_text());
        assert!(self.log_text().contains("has finished"), "{}", self.log_text());
        let found: Vec<u64> = (self.run.log().iter())
            .filter(|line| line["event"] == "step")
            .map(|line| line["step"].as_u64().unwrap())
            .collect();
        assert_eq!(found, (1..=steps as u64).collect::<Vec<_>>(), "{}", self.log_text());
    }

    /// Returns how often the job was requeued, after checking that each start prints its number.
    fn restarts(&self) -> usize {
        let text = self.log_text();
        let count = |line: &str| text.matches(line).count();
        let restarts = count("not finished: requeueing the job");
        // There are more warnings than restarts if the last one comes after the final step.
        assert!(restarts <= count("time limit or preemption is near"), "{text}");
        for restart in 0..=restarts {
            assert!(text.contains(&format!("start {restart} on node")), "{text}");
        }
        restarts
    }

    /// Asserts that the job was warned once during the run and resumed from the step at which it had stopped.
    fn assert_resumed_once(&self) {
        // A launcher that ends a job may lose the last output; messages.log contains it too.
        let messages = fs::read_to_string(self.run.folder.join("messages.log")).unwrap_or_default();
        let text = self.log_text() + &messages;
        assert_eq!(self.restarts(), 1, "{text}");
        let number = |before: &str| -> Option<u64> {
            let rest = &text[text.find(before)? + before.len()..];
            rest.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()
        };
        let stopped = number("stopped; newest checkpoint: step ").expect("an exit message");
        assert_eq!(number("resumed after step "), Some(stopped), "{text}");
        // The printed command contains the settings of this job.
        let command = format!(" RUN={} RUNS=", self.run.folder.display());
        assert!(text.contains("To resume if interrupted: ") && text.contains(&command), "{text}");
    }
}

/// Slurm itself signals the script before the time limit of 60 s. It checks every 30 s, so a run of more than 30 s is
/// signalled at least once.
fn resumes_after_time_limit(cluster: &Cluster) {
    let start = Instant::now();
    Bench::get().run_search(2, "measure", &[]);
    let mut epochs = (2.0 + 2.0 * 45.0 / start.elapsed().as_secs_f64()) as usize;
    for attempt in 0..3 {
        let set = format!("search.stage.2.epochs={epochs}");
        let options = ["--nodes=1", "--ntasks-per-node=2", "--time=1", "--signal=B:USR1@30"];
        let name = format!("limit-{attempt}");
        let job = Job::submit(cluster, &name, "search.sh", &options, "mpirun", &["--set", &set]);
        job.assert_completes(5 * (2 + epochs));
        let restarts = job.restarts();
        println!("time limit: {} steps, {restarts} restarts", 5 * (2 + epochs));
        if restarts > 0 {
            return;
        }
        epochs *= 3; // the machine is faster than measured
    }
    panic!("Slurm never signalled the job");
}

/// The same signal, sent by the test, on two nodes.
fn resumes_after_warning_on_two_nodes(cluster: &Cluster, launcher: &str) {
    let options = ["--nodes=2", "--ntasks-per-node=1", "--time=5"];
    let name = format!("two-{launcher}");
    let more = ["--set", "search.stage.2.epochs=4", "--set", "run.log_every=1"];
    let job = Job::submit(cluster, &name, "search.sh", &options, launcher, &more);
    job.wait_for_steps(4);
    cluster.stdout_of("scancel", &["--batch", "--signal=USR1", &job.id]);
    job.assert_completes(30);
    job.assert_resumed_once();
    println!("two nodes, {launcher}: warned, requeued, finished");
}

/// scancel leaves a complete checkpoint and no process; the same job, submitted again, resumes.
fn resumes_after_scancel(cluster: &Cluster) {
    let options = ["--nodes=2", "--ntasks-per-node=1", "--time=5", "--open-mode=append"];
    let more =
        ["--set", "search.stage.2.epochs=6", "--set", "run.log_every=1", "--set", "run.checkpoint_every=2"];
    let submit = || Job::submit(cluster, "cancelled", "search.sh", &options, "mpirun", &more);
    let job = submit();
    job.wait_for_steps(5);
    cluster.stdout_of("scancel", &[&job.id]);
    assert_eq!(cluster.wait_for_end(&job.id, &job.log), "CANCELLED", "{}", job.log_text());
    cluster.wait("the end of the ranks", &job.log, || bench::rank_pids(&job.run.folder).is_empty());
    assert!(!job.run.folder.join("finished.json").exists());
    assert!(!job.run.checkpoints().is_empty());
    let again = submit();
    again.assert_completes(40);
    assert!(again.log_text().contains("resumed after step"), "{}", again.log_text());
    println!("scancel: {} checkpoints, submitted again, finished", job.run.checkpoints().len());
}

/// Without Slurm's MPI plugin every process would be rank 0 of its own world, and all would write to the same folder.
fn refuses_separate_worlds(cluster: &Cluster) {
    let bench = Bench::get();
    let words = "search-imagenet --config search.toml --train train --valid valid --out worlds";
    let output = (cluster.command("srun").args(["--mpi=none", "-n2", env!("CARGO_BIN_EXE_drnas-dist")]))
        .args(words.split(' '))
        .current_dir(bench.path(""))
        .output()
        .unwrap();
    let text = bench::output_text(&output);
    assert!(!output.status.success() && text.contains(" says 2 ranks, MPI says 1"), "{text}");
    assert!(!bench.path("worlds").exists());
    println!("srun without its MPI plugin: refused");
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

/// An evaluation behaves like a search.
fn evaluation_resumes_after_warning(cluster: &Cluster) {
    fs::write(Bench::get().path("evaluate.toml"), EVALUATION).unwrap();
    let options = ["--nodes=1", "--ntasks-per-node=2", "--time=5"];
    let job = Job::submit(cluster, "evaluation", "evaluate.sh", &options, "mpirun", &[]);
    job.wait_for_steps(4);
    cluster.stdout_of("scancel", &["--batch", "--signal=USR1", &job.id]);
    job.assert_completes(20);
    job.assert_resumed_once();
    println!("evaluation: warned, requeued, finished");
}

/// A job array with one run folder per seed.
fn seeds(cluster: &Cluster) {
    let options = ["--array=3-4", "--ntasks-per-node=1", "--time=5"];
    let job = Job::submit(cluster, "seeds", "seeds.sh", &options, "mpirun", &[]);
    for seed in [3, 4] {
        let id = format!("{}_{seed}", job.id);
        assert_eq!(cluster.wait_for_end(&id, &job.log), "COMPLETED", "{}", job.log_text());
        let config = fs::read_to_string(job.run.folder.join(format!("{seed}/config.toml"))).unwrap();
        assert!(config.contains(&format!("seed = {seed}\n")), "{config}");
        assert!(job.run.folder.join(format!("{seed}/finished.json")).exists());
        assert!(
            job.log_text().contains(&format!("sbatch --array={seed} launch/slurm/seeds.sh")),
            "{}",
            job.log_text()
        );
    }
    println!("array: 2 seeds");
}

fn scaling(cluster: &Cluster) {
    let options = ["--nodes=2", "--ntasks-per-node=1", "--time=5", "--no-requeue"];
    let job = Job::submit(cluster, "scaling", "scaling.sh", &options, "mpirun", &[]);
    assert_eq!(cluster.wait_for_end(&job.id, &job.log), "COMPLETED", "{}", job.log_text());
    let table = fs::read_to_string(job.run.folder.join("scaling.md")).unwrap();
    let ranks: Vec<&str> = table.lines().skip(2).map(|line| line.split('|').nth(1).unwrap().trim()).collect();
    assert_eq!(ranks, ["1", "2"], "{table}");
    println!("{table}");
}

/// A node goes down for a while. Slurm requeues the job of a batch script; `supervise.sh` in a job that survives
/// (`--no-kill`) resumes on the remaining node.
fn resumes_after_lost_node(cluster: &Cluster) {
    let bench = Bench::get();
    let node2_is = |state: &str| {
        let state = format!("state={state}");
        cluster.stdout_of("scontrol", &["update", "nodename=node2", &state, "reason=lost"]);
    };
    let more =
        ["--set", "search.stage.2.epochs=6", "--set", "run.log_every=1", "--set", "run.checkpoint_every=2"];
    let nodes = ["--nodes=2", "--ntasks-per-node=1", "--time=5"];

    let job = Job::submit(cluster, "requeued", "search.sh", &nodes, "mpirun", &more);
    job.wait_for_steps(4);
    node2_is("down");
    cluster.wait("the queue", &job.log, || cluster.field(&job.id, "JobState") == "PENDING");
    node2_is("resume");
    job.assert_completes(40);
    for line in ["start 1 on node[1-2]", "resumed after step "] {
        assert!(job.log_text().contains(line), "{line}: {}", job.log_text());
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
    job.wait_for_steps(4);
    node2_is("down");
    let state = cluster.wait_for_end(&job.id, &job.log);
    node2_is("resume");
    assert_eq!(state, "COMPLETED", "{}", job.log_text());
    assert!(job.run.folder.join("finished.json").exists(), "{}", job.log_text());
    for line in ["starting 2 ranks on node1:1,node2:1, from step 0", "starting 1 rank on node1:1, from step "]
    {
        assert!(job.log_text().contains(line), "{line}: {}", job.log_text());
    }
    println!("lost node: requeued and finished; supervised, finished on the remaining node");
}

/// Another job pre-empts the nodes before the first checkpoint: the job steps get SIGTERM, and the script cannot know
/// why. After the grace time Slurm requeues the job.
///
/// Slurm checks the grace time every 30 s. Until then the script continues, and a fast machine may finish the run; the
/// test then tries a longer one.
fn resumes_after_pre_emption(cluster: &Cluster) {
    let nodes = ["--nodes=2", "--ntasks-per-node=1", "--time=5"];
    for epochs in [20, 100, 500] {
        let longer = format!("search.stage.2.epochs={epochs}");
        let more = ["--set", &longer, "--set", "run.log_every=1"];
        let name = format!("pre-empted-{epochs}");
        let job = Job::submit(cluster, &name, "search.sh", &nodes, "mpirun", &more);
        job.wait_for_steps(4);
        let urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"];
        let other = cluster.submit(&urgent, &BTreeMap::new(), &["--wrap=sleep 1"]);
        assert_eq!(cluster.wait_for_end(&other, &job.log), "COMPLETED", "{}", job.log_text());
        cluster.wait_for_end(&job.id, &job.log);
        if !job.log_text().contains("start 1 on node[1-2]") && job.run.folder.join("finished.json").exists() {
            println!("pre-emption: the run of {epochs} epochs finished before Slurm ended it");
            continue;
        }
        job.assert_completes(10 + 5 * epochs);
        assert!(job.log_text().contains("start 1 on node[1-2]"), "{}", job.log_text());
        println!("pre-emption: ended, requeued, finished ({epochs} epochs)");
        return;
    }
    panic!("every run finished before Slurm ended it");
}

#[test]
fn batch_scripts_under_slurm() {
    let cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(why) => return println!("skipped: {why}"),
    };
    let with_srun =
        cluster.command("srun").args(["--mpi=pmix", "-n1", "true"]).output().unwrap().status.success();
    let cluster = &cluster;
    // In parallel: most of the time is spent waiting for Slurm.
    std::thread::scope(|scope| {
        scope.spawn(|| resumes_after_time_limit(cluster));
        scope.spawn(|| resumes_after_warning_on_two_nodes(cluster, "mpirun"));
        scope.spawn(|| match with_srun {
            true => resumes_after_warning_on_two_nodes(cluster, "srun"),
            false => println!("skipped: srun --mpi=pmix does not work here (apt-get install libpmix-dev)"),
        });
        scope.spawn(|| resumes_after_scancel(cluster));
        scope.spawn(|| evaluation_resumes_after_warning(cluster));
        scope.spawn(|| refuses_separate_worlds(cluster));
        scope.spawn(|| {
            seeds(cluster);
            scaling(cluster);
        });
    });
    resumes_after_pre_emption(cluster);
    resumes_after_lost_node(cluster);
}
