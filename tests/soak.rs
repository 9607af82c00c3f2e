//! A soak: for minutes, searches are killed, stopped and told to stop at random moments, go on with another number of
//! ranks, and end as if nothing had been.
//!
//!     DRNAS_SOAK_MINUTES=15 cargo test --release --test soak -- --ignored --nocapture
//!
//! `DRNAS_SOAK_SEED` repeats the same draws (moments depend on the machine all the same).

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::{Bench, Run, assert_same_end_after, kill_all, ranks_of, signal};
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
/// Nothing that ends may take so long.
const LIMIT: Duration = Duration::from_secs(120);

/// What a run meets with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    KillOne,
    KillAll,
    Stop,
    TellLauncher,
    TellOne,
}

const FAULTS: [Fault; 5] = [Fault::KillOne, Fault::KillAll, Fault::Stop, Fault::TellLauncher, Fault::TellOne];

#[derive(Default)]
struct Counts {
    /// Seconds that a search takes undisturbed.
    whole_s: f64,
    met: [u64; FAULTS.len()],
    resumes: u64,
    steps_lost: u64,
    most_lost: u64,
    slowest_end: Duration,
    rounds: u64,
    bit_equal: u64,
}

/// Starts the search, or goes on with it.
fn start(run: &Run, ranks: usize) -> Child {
    let name = run.folder.file_name().unwrap().to_str().unwrap();
    let mut more = vec!["--resume"];
    SETTINGS.iter().for_each(|set| more.extend(["--set", set]));
    let said = File::options().create(true).append(true).open(run.folder.with_extension("said")).unwrap();
    let mut command = Bench::get().search(ranks, name, &more);
    command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()
}

fn text(run: &Run) -> String {
    fs::read_to_string(run.folder.with_extension("said")).unwrap_or_default()
}

/// Its last lines.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// The last step that the log knows.
fn logged(run: &Run) -> u64 {
    let text = fs::read_to_string(run.folder.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter_map(|line| line["step"].as_u64()).max().unwrap_or(0)
}

/// Waits for launcher and ranks to be gone; the launcher's exit code.
fn gone(child: &mut Child, run: &Run, fault: Fault) -> Option<i32> {
    let start = Instant::now();
    loop {
        let code = child.try_wait().unwrap();
        if code.is_some() && ranks_of(&run.folder).is_empty() {
            return code.unwrap().code();
        }
        if start.elapsed() > LIMIT {
            panic!(
                "after {fault:?}: launcher {code:?}, ranks {:?} are left\n{}",
                ranks_of(&run.folder),
                text(run)
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lets the run go on for a while, then does `fault` to it; false if it had finished by then.
fn disturb(run: &Run, (ranks, fault): (usize, Fault), random: &mut ChaCha8Rng, counts: &mut Counts) -> bool {
    let whole_s = counts.whole_s;
    let mut child = start(run, ranks);
    let begin = Instant::now();
    // A third of them early: while ranks start, read the checkpoint, take their first steps.
    let part = if random.random_ratio(1, 3) { 0.1 } else { 0.6 };
    let delay = whole_s * random.random_range(0.0..part);
    while begin.elapsed().as_secs_f64() < delay {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let living = ranks_of(&run.folder);
    let victim = living.get(random.random_range(0..living.len().max(1)));
    let before = Instant::now();
    let met = match (fault, victim) {
        (Fault::KillAll, _) => {
            kill_all(child, &run.folder);
            true
        }
        // Not started yet, or over already.
        (_, None) => {
            kill_all(child, &run.folder);
            false
        }
        (fault, Some(&victim)) => {
            match fault {
                Fault::KillOne => signal(victim, "KILL"),
                Fault::Stop => signal(victim, "STOP"),
                Fault::TellLauncher => signal(child.id(), "USR1"),
                _ => signal(victim, "USR1"),
            }
            let code = gone(&mut child, run, fault);
            let finished = run.folder.join("finished.json").exists();
            assert!(finished || code != Some(0), "{fault:?}: not finished, but exit code 0\n{}", text(run));
            true
        }
    };
    if met {
        counts.met[FAULTS.iter().position(|other| *other == fault).unwrap()] += 1;
        counts.slowest_end = counts.slowest_end.max(before.elapsed());
        if before.elapsed() > Duration::from_secs(20) {
            println!("{fault:?} took {:.1} s to end:\n{}", before.elapsed().as_secs_f64(), tail(&text(run)));
        }
    }
    !run.folder.join("finished.json").exists()
}

/// One search with faults until it has finished. `ranks`: the numbers of ranks it may go on with.
fn round(run: &Run, ranks: &[usize], random: &mut ChaCha8Rng, counts: &mut Counts) {
    loop {
        let ranks = ranks[random.random_range(0..ranks.len())];
        let fault = match FAULTS[random.random_range(0..FAULTS.len())] {
            Fault::Stop if ranks < 2 => Fault::KillOne, // nobody is there who could notice
            fault => fault,
        };
        if !disturb(run, (ranks, fault), random, counts) {
            break;
        }
        let (done, saved) = (logged(run), run.checkpoints().last().copied().unwrap_or(0));
        let lost = done.saturating_sub(saved);
        println!("  {fault:?} with {ranks} ranks: step {done}, goes on from {saved}");
        counts.steps_lost += lost;
        counts.most_lost = counts.most_lost.max(lost);
        counts.resumes += 1;
    }
}

/// Relative distance of all weights, as one vector.
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
#[ignore = "takes as long as it is told to"]
fn disturbed_searches_end_as_if_nothing_had_been() {
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
    assert!(start(&whole, 2).wait().unwrap().success(), "{}", text(&whole));
    let mut counts = Counts { whole_s: begin.elapsed().as_secs_f64(), ..Counts::default() };
    println!("undisturbed it takes {:.1} s", counts.whole_s);
    let begin = Instant::now();
    while begin.elapsed() < limit {
        let same_ranks = counts.rounds % 2 == 0;
        let run = bench.run(&format!("round-{}", counts.rounds));
        round(&run, if same_ranks { &[2] } else { &[0, 1, 2, 4] }, &mut random, &mut counts);
        let (ours, theirs) = (run.of_steps("loss"), whole.of_steps("loss"));
        assert_eq!(ours.len(), STEPS as usize, "{}", text(&run));
        let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
        let state = distance(&run, &whole);
        println!("round {}: losses differ by {off:e} at most, weights by {state:e}", counts.rounds);
        if same_ranks {
            assert_same_end_after(STEPS, &run, &whole);
        } else {
            assert!(off <= 1e-4 && state <= 1e-3, "losses {off:e}, weights {state:e}");
            assert_eq!(run.genotype(), whole.genotype());
        }
        counts.bit_equal += u64::from(off == 0.0 && state == 0.0);
        counts.rounds += 1;
        fs::remove_dir_all(&run.folder).unwrap();
    }
    println!(
        "{:.1} min: {} searches of {STEPS} steps, {} with the same bits as undisturbed; {:?} = {:?}; {} resumes, {} \
         steps lost, {} at most at once; the slowest end took {:.1} s",
        begin.elapsed().as_secs_f64() / 60.0,
        counts.rounds,
        counts.bit_equal,
        FAULTS,
        counts.met,
        counts.resumes,
        counts.steps_lost,
        counts.most_lost,
        counts.slowest_end.as_secs_f64()
    );
}
