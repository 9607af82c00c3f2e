//! A soak test: searches are killed, stopped and signalled at random times, resume on different numbers of ranks, and
//! must end with the result of an undisturbed search.
//!
//!     DRNAS_SOAK_MINUTES=15 cargo test --release --test soak -- --ignored --nocapture
//!
//! `DRNAS_SOAK_SEED` repeats the random draws; the exact step of a fault still depends on the speed of the machine.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::{Bench, Run, assert_same_result_after, kill_all, rank_pids, signal};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::fs::{self, File};
use std::process::Child;
use std::time::{Duration, Instant};

/// Two stages of 12 epochs of 5 steps.
const STEPS: u64 = 120;
const SETTINGS: [&str; 7] = [
    "data.px=32",
    "search.stage.1.epochs=12",
    "search.stage.2.epochs=12",
    "run.log_every=1",
    "run.checkpoint_every=3",
    "run.heartbeat_s=5",
    "run.time_limit_s=60",
];
/// Time limit for launcher and ranks to exit after a fault.
const LIMIT: Duration = Duration::from_secs(120);

/// A fault that is injected into a run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    KillOne,
    KillAll,
    Stop,
    SignalLauncher,
    SignalOne,
}

const FAULTS: [Fault; 5] =
    [Fault::KillOne, Fault::KillAll, Fault::Stop, Fault::SignalLauncher, Fault::SignalOne];

#[derive(Default)]
struct Counts {
    /// Duration of an undisturbed search, seconds.
    whole_s: f64,
    injected: [u64; FAULTS.len()],
    resumes: u64,
    steps_lost: u64,
    max_steps_lost: u64,
    slowest_end: Duration,
    rounds: u64,
    bit_identical: u64,
}

/// Starts or resumes the search.
fn start(run: &Run, ranks: usize) -> Child {
    let name = run.folder.file_name().unwrap().to_str().unwrap();
    let mut more = vec!["--resume"];
    SETTINGS.iter().for_each(|set| more.extend(["--set", set]));
    let log = File::options().create(true).append(true).open(run.folder.with_extension("log")).unwrap();
    let mut command = Bench::get().search(ranks, name, &more);
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

fn log_text(run: &Run) -> String {
    fs::read_to_string(run.folder.with_extension("log")).unwrap_or_default()
}

/// The last 25 lines of `text`.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// The last step in metrics.jsonl.
fn last_logged_step(run: &Run) -> u64 {
    let text = fs::read_to_string(run.folder.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter_map(|line| line["step"].as_u64()).max().unwrap_or(0)
}

/// Waits for launcher and ranks to exit; returns the launcher's exit code.
fn wait_for_exit(child: &mut Child, run: &Run, fault: Fault) -> Option<i32> {
    let start = Instant::now();
    loop {
        let code = child.try_wait().unwrap();
        if let Some(status) = code
            && rank_pids(&run.folder).is_empty()
        {
            return status.code();
        }
        if start.elapsed() > LIMIT {
            panic!(
                "after {fault:?}: launcher {code:?}, ranks {:?} are still running\n{}",
                rank_pids(&run.folder),
                log_text(run)
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lets the run continue for a while, then injects `fault`; returns false if the run has finished.
fn disturb(run: &Run, (ranks, fault): (usize, Fault), random: &mut ChaCha8Rng, counts: &mut Counts) -> bool {
    let whole_s = counts.whole_s;
    let mut child = start(run, ranks);
    let begin = Instant::now();
    // One third early: while ranks start, read the checkpoint and take their first steps.
    let part = if random.random_ratio(1, 3) { 0.1 } else { 0.6 };
    let delay = whole_s * random.random_range(0.0..part);
    while begin.elapsed().as_secs_f64() < delay {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let pids = rank_pids(&run.folder);
    let victim = pids.get(random.random_range(0..pids.len().max(1)));
    let before = Instant::now();
    let injected = match (fault, victim) {
        (Fault::KillAll, _) => {
            kill_all(child, &run.folder);
            true
        }
        // Not started yet, or already finished.
        (_, None) => {
            kill_all(child, &run.folder);
            false
        }
        (fault, Some(&victim)) => {
            match fault {
                Fault::KillOne => signal(victim, "KILL"),
                Fault::Stop => signal(victim, "STOP"),
                Fault::SignalLauncher => signal(child.id(), "USR1"),
                _ => signal(victim, "USR1"),
            }
            let code = wait_for_exit(&mut child, run, fault);
            let finished = run.folder.join("finished.json").exists();
            assert!(
                finished || code != Some(0),
                "{fault:?}: not finished, but exit code 0\n{}",
                log_text(run)
            );
            true
        }
    };
    if injected {
        counts.injected[FAULTS.iter().position(|other| *other == fault).unwrap()] += 1;
        counts.slowest_end = counts.slowest_end.max(before.elapsed());
        if before.elapsed() > Duration::from_secs(20) {
            println!(
                "{fault:?} took {:.1} s to end:\n{}",
                before.elapsed().as_secs_f64(),
                tail(&log_text(run))
            );
        }
    }
    !run.folder.join("finished.json").exists()
}

/// Runs one search with faults until it has finished. `ranks`: the numbers of ranks it may resume on.
fn round(run: &Run, ranks: &[usize], random: &mut ChaCha8Rng, counts: &mut Counts) {
    loop {
        let ranks = ranks[random.random_range(0..ranks.len())];
        let fault = match FAULTS[random.random_range(0..FAULTS.len())] {
            Fault::Stop if ranks < 2 => Fault::KillOne, // no other rank would notice
            fault => fault,
        };
        if !disturb(run, (ranks, fault), random, counts) {
            break;
        }
        let (done, saved) = (last_logged_step(run), run.checkpoints().last().copied().unwrap_or(0));
        let lost = done.saturating_sub(saved);
        println!("  {fault:?} with {ranks} ranks: step {done}, resumes from {saved}");
        counts.steps_lost += lost;
        counts.max_steps_lost = counts.max_steps_lost.max(lost);
        counts.resumes += 1;
    }
}

/// Relative distance between the weights of two runs, as one vector.
fn distance(a: &Run, b: &Run) -> f64 {
    let all = |run: &Run| {
        let state = run.state(STEPS);
        let weights = state.iter().filter(|(name, _)| name.starts_with("weights/"));
        let parts: Vec<_> =
            weights.map(|(_, tensor)| tensor.reshape([-1]).to_kind(tch::Kind::Double)).collect();
        tch::Tensor::cat(&parts, 0)
    };
    let (a, b) = (all(a), all(b));
    (a - &b).norm().double_value(&[]) / b.norm().double_value(&[])
}

#[test]
#[ignore = "runs for DRNAS_SOAK_MINUTES"]
fn disturbed_searches_end_with_the_undisturbed_result() {
    let number = |name: &str, default: f64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let limit = Duration::from_secs_f64(60.0 * number("DRNAS_SOAK_MINUTES", 1.0));
    let seed = number("DRNAS_SOAK_SEED", f64::from(std::process::id())) as u64;
    println!("DRNAS_SOAK_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let bench = Bench::get();
    let whole = bench.run("undisturbed");
    let begin = Instant::now();
    assert!(start(&whole, 2).wait().unwrap().success(), "{}", log_text(&whole));
    let mut counts = Counts { whole_s: begin.elapsed().as_secs_f64(), ..Counts::default() };
    println!("an undisturbed search takes {:.1} s", counts.whole_s);
    let begin = Instant::now();
    while begin.elapsed() < limit {
        let same_ranks = counts.rounds.is_multiple_of(2);
        let run = bench.run(&format!("round-{}", counts.rounds));
        round(&run, if same_ranks { &[2] } else { &[0, 1, 2, 4] }, &mut random, &mut counts);
        let (ours, theirs) = (run.step_values("loss"), whole.step_values("loss"));
        assert_eq!(ours.len(), STEPS as usize, "{}", log_text(&run));
        let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
        let state = distance(&run, &whole);
        println!("round {}: losses differ by {off:e} at most, weights by {state:e}", counts.rounds);
        if same_ranks {
            assert_same_result_after(STEPS, &run, &whole);
        } else {
            assert!(off <= 1e-4 && state <= 1e-3, "losses {off:e}, weights {state:e}");
            assert_eq!(run.genotype(), whole.genotype());
        }
        counts.bit_identical += u64::from(off == 0.0 && state == 0.0);
        counts.rounds += 1;
        fs::remove_dir_all(&run.folder).unwrap();
    }
    println!(
        "{:.1} min: {} searches of {STEPS} steps, {} bit-identical to the undisturbed one; {:?} = {:?}; {} resumes; \
         {} steps lost, at most {} at a time; the slowest exit took {:.1} s",
        begin.elapsed().as_secs_f64() / 60.0,
        counts.rounds,
        counts.bit_identical,
        FAULTS,
        counts.injected,
        counts.resumes,
        counts.steps_lost,
        counts.max_steps_lost,
        counts.slowest_end.as_secs_f64()
    );
}
