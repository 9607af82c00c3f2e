//! Several ranks under mpirun: collectives return correct values, and no failure of one rank leaves the others waiting.
//!
//! The tests start this test program again under mpirun; each rank runs `rank_program`.

#[path = "common/mpirun.rs"]
mod mpirun;

use drnas_dist::comm;
use drnas_dist::process::phase::{self, Phase};
use drnas_dist::process::signals;
use drnas_dist::world::{Limits, World};
use drnas_dist::{Result, files};
use mpirun::{
    Outcome, SCENARIO, assert_refuses_unsuitable_tensors, is_alive, rank_program as command, run_with,
};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Time limit of the scenarios in which ranks are missing.
const LIMIT: Duration = Duration::from_secs(3);
/// Heartbeat timeout of the scenarios that watch ranks.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Time limit of the other scenarios, which must not fail on a busy machine.
const PATIENCE: Duration = Duration::from_secs(100);

// -- the rank program -----------------------------------------------------------------------------

#[test]
#[ignore = "run under mpirun by the other tests"]
fn rank_program() {
    let Ok(scenario) = std::env::var(SCENARIO) else {
        return;
    };
    let limit = match scenario.as_str() {
        "absent" | "signal" | "hangs" => LIMIT,
        _ => PATIENCE,
    };
    if scenario == "doctor" {
        if let Err(why) = drnas_dist::commands::doctor::run(limit, None) {
            eprintln!("{why}");
            std::process::exit(2);
        }
        return;
    }
    let rank: usize = std::env::var("OMPI_COMM_WORLD_RANK").map_or(0, |rank| rank.parse().unwrap());
    if scenario == "unstarted" && rank == 1 {
        stop();
    }
    let limits = match scenario.as_str() {
        "unstarted" | "unwatched" | "patient" => Limits { start: LIMIT, operation: PATIENCE },
        _ => limit.into(),
    };
    let world = match World::start(limits, None) {
        Ok(world) => world,
        Err(why) => {
            eprintln!("{why}");
            std::process::exit(2);
        }
    };
    let outcome = match scenario.as_str() {
        "numbers" => numbers(&world),
        "repeat" => repeat(&world),
        "refusals" => refusals(&world),
        "absent" => absent(&world),
        "panic" => panic_in_one(&world),
        "worker-panic" => panic_in_a_worker(&world),
        "error" => error_in_one(&world),
        "dropped" => return dropped(world),
        "differ" => differ(&world),
        "lengths" => lengths(&world),
        "early" => early(&world),
        "signal" => wait_for_signal(&world, true),
        "deaf" => wait_for_signal(&world, false),
        "place" => place(&world),
        "killed" | "crashed" | "stopped" | "slow" | "hangs" => watched(&world, &scenario),
        "agreed" => agreed(&world),
        "cost" => cost(&world),
        "unstarted" | "unwatched" | "patient" => starts(&world, &scenario),
        other => panic!("unknown scenario {other}"),
    };
    match world.end(outcome) {
        Ok(()) => println!("rank done"),
        Err(why) => {
            eprintln!("error: {why}");
            std::process::exit(1);
        }
    }
}

/// Stops this process without any message. It stays idle even when mpirun sends SIGCONT before it terminates the job:
/// if a rank went on into MPI_Init and died there, mpirun itself could hang (PMIx 5).
fn stop() -> ! {
    // SAFETY: signals this process; no pointers are involved.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGSTOP);
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Rank 1 stops, or is late, around the time when heartbeats start.
fn starts(world: &World, scenario: &str) -> Result<()> {
    if scenario == "unwatched" && world.rank() == 1 {
        stop();
    }
    world.start_heartbeats(PATIENCE)?;
    if scenario == "patient" && world.rank() == 1 {
        std::thread::sleep(LIMIT + Duration::from_secs(1));
    }
    Ok(world.communicator().barrier()?)
}

/// The contribution of `rank` to reduction `bucket`: inexact in f32, different in every element.
fn content(rank: usize, bucket: usize, length: usize, kind: Kind) -> Tensor {
    let places = Tensor::arange(length as i64, (Kind::Double, tch::Device::Cpu));
    ((places * (0.37 + bucket as f64) + (1 + rank) as f64 * 1.7).sin() * 10f64.powi(bucket as i32 - 2))
        .to_kind(kind)
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// Compares means with an f64 oracle, several in flight and one longer than a single MPI call allows; then tests the
/// other operations.
fn numbers(world: &World) -> Result<()> {
    let comm = world.communicator();
    let (rank, size) = (comm.rank(), comm.size());
    let shapes = [
        (1_000, Kind::Float),
        (1, Kind::Float),
        (0, Kind::Float),
        (9_000_001, Kind::Float),
        (70_000, Kind::Double),
    ];
    // Twice, in a different order, so that receive buffers are reused and swapped.
    for round in 0..2 {
        let mut buckets: Vec<usize> = (0..shapes.len()).collect();
        buckets.rotate_left(round);
        let started: Vec<_> = (buckets.iter())
            .map(|&bucket| {
                let (length, kind) = shapes[bucket];
                let buffer = content(rank, bucket, length, kind);
                comm.start_mean(&buffer)?;
                comm.progress()?;
                Ok((bucket, buffer))
            })
            .collect::<Result<_>>()?;
        comm.finish()?;
        for (bucket, mean) in started {
            let (length, kind) = shapes[bucket];
            let oracle = (0..size)
                .map(|rank| content(rank, bucket, length, kind).to_kind(Kind::Double))
                .fold(Tensor::zeros([length as i64], tch::kind::DOUBLE_CPU), |sum, one| sum + one)
                / size as f64;
            if length > 0 {
                let scale = 10f64.powi(bucket as i32 - 2);
                let off = (mean.to_kind(Kind::Double) - &oracle).abs().max().double_value(&[]) / scale;
                let allowed = if kind == Kind::Float { 3e-7 } else { 1e-15 };
                assert!(off <= allowed, "bucket {bucket}: {off:e} from the oracle");
            }
            // Bit-identical on every rank, or the weights would diverge.
            let hash = xxhash_rust::xxh3::xxh3_64(&bytes_of(&mean)).to_le_bytes();
            assert!(comm.all_gather(&hash)?.iter().all(|other| *other == hash));
        }
    }
    comm.finish()?;

    for root in 0..size {
        for kind in [Kind::Float, Kind::Double, Kind::Int64, Kind::Uint8] {
            let value = |rank: usize| {
                (Tensor::arange(5_000, (Kind::Int64, tch::Device::Cpu)) * (rank as i64 + 1)).to_kind(kind)
            };
            let buffer = value(rank).view([50, 100]);
            comm.broadcast(&buffer, root)?;
            assert_eq!(bytes_of(&buffer), bytes_of(&value(root)), "{kind:?} of {root}");
        }
    }
    let long = Tensor::full([5_000_000], rank as i64, tch::kind::INT64_CPU);
    comm.broadcast(&long, size - 1)?;
    assert_eq!(i64::try_from(long.min()).unwrap(), size as i64 - 1);
    assert_eq!(i64::try_from(long.max()).unwrap(), size as i64 - 1);

    let gathered = comm.all_gather(&[rank as u8, 7])?;
    assert_eq!(gathered, (0..size).map(|rank| vec![rank as u8, 7]).collect::<Vec<_>>());
    assert_eq!(comm.all_gather(&[])?, vec![Vec::<u8>::new(); size]);
    let of_rank = |rank: usize| vec![rank as u8; 3 * (size - rank)];
    assert_eq!(comm::all_gather_varied(comm, &of_rank(rank))?, (0..size).map(of_rank).collect::<Vec<_>>());
    let of_rank = |rank: usize| ("x".repeat(rank), rank as f64 / 3.0);
    assert_eq!(comm::all_gather_values(comm, &of_rank(rank))?, (0..size).map(of_rank).collect::<Vec<_>>());

    // No rank leaves the barrier before the last one arrives.
    let started = Instant::now();
    if rank == size - 1 {
        std::thread::sleep(Duration::from_millis(300));
    }
    comm.barrier()?;
    assert!(started.elapsed() >= Duration::from_millis(250) || size == 1);
    Ok(())
}

/// Prints a hash of means; the test compares the hashes of two runs.
fn repeat(world: &World) -> Result<()> {
    let comm = world.communicator();
    let buffers: Vec<_> =
        (0..6).map(|bucket| content(comm.rank(), bucket % 3, 10_000 * bucket + 17, Kind::Float)).collect();
    for _ in 0..20 {
        for buffer in &buffers {
            comm.start_mean(buffer)?;
        }
        comm.finish()?;
        for buffer in &buffers {
            let _ = buffer.shallow_clone().g_add_scalar_(comm.rank() as f64 * 1e-3);
        }
    }
    let all: Vec<u8> = buffers.iter().flat_map(bytes_of).collect();
    println!("hash {} {:016x}", comm.rank(), xxhash_rust::xxh3::xxh3_64(&all));
    Ok(())
}

/// Tensors that cannot be sent are refused immediately, and the communicator stays usable.
fn refusals(world: &World) -> Result<()> {
    let comm = world.communicator();
    assert_refuses_unsuitable_tensors(comm);
    Ok(comm.barrier()?)
}

/// The last rank never arrives.
fn absent(world: &World) -> Result<()> {
    let comm = world.communicator();
    if comm.rank() == comm.size() - 1 {
        std::thread::sleep(Duration::from_secs(60));
    }
    let started = Instant::now();
    comm.start_mean(&Tensor::zeros([1_000_000], tch::kind::FLOAT_CPU))?;
    let outcome = comm.finish();
    let waited = started.elapsed();
    if let Err(comm::Error::TimedOut { waited_s, .. }) = &outcome {
        let within = waited < LIMIT + Duration::from_secs(2) && *waited_s >= LIMIT.as_secs_f64();
        println!("stalled {} within {within}", comm.rank());
        // Later collectives are refused immediately, since they could not be matched.
        assert!(matches!(comm.barrier(), Err(comm::Error::EarlierFailure { .. })));
        // Rank 0 ends all ranks: let each of them print its line first.
        std::thread::sleep(Duration::from_millis(700));
    }
    outcome?;
    Ok(())
}

fn panic_in_one(world: &World) -> Result<()> {
    let comm = world.communicator();
    comm.barrier()?;
    assert!(comm.rank() != 1, "injected\npanic");
    Ok(comm.barrier()?)
}

/// A panic of a worker thread is printed, but the thread that joins it decides what follows.
fn panic_in_a_worker(world: &World) -> Result<()> {
    let comm = world.communicator();
    if comm.rank() == 1 {
        assert!(std::thread::spawn(|| panic!("in a worker")).join().is_err());
    }
    Ok(comm.barrier()?)
}

fn error_in_one(world: &World) -> Result<()> {
    let comm = world.communicator();
    if comm.rank() == 1 {
        std::fs::read("/nonexistent/shard").map_err(files::io("read", "/nonexistent/shard"))?;
    }
    Ok(comm.barrier()?)
}

/// Rank 1 drops the world during a reduction for which the others wait.
fn dropped(world: World) {
    let comm = world.communicator();
    comm.start_mean(&Tensor::zeros([100_000], tch::kind::FLOAT_CPU)).unwrap();
    if comm.rank() != 1 {
        let outcome = comm.finish();
        let _ = world.end(outcome);
    }
}

/// Ranks take different branches and call different collectives.
fn differ(world: &World) -> Result<()> {
    let comm = world.communicator();
    match comm.rank() {
        0 => Ok(comm.broadcast(&Tensor::zeros([40], tch::kind::FLOAT_CPU), 0)?),
        _ => Ok(comm.barrier()?),
    }
}

/// Ranks have models of different sizes.
fn lengths(world: &World) -> Result<()> {
    let comm = world.communicator();
    let length = if comm.rank() == 0 { 100_000 } else { 99_999 };
    comm.start_mean(&Tensor::zeros([length], tch::kind::FLOAT_CPU))?;
    comm.progress()?;
    comm.finish()?;
    Ok(())
}

/// Rank 0 ends the run while the others are in a barrier.
fn early(world: &World) -> Result<()> {
    match world.rank() {
        0 => Ok(()),
        _ => Ok(world.communicator().barrier()?),
    }
}

/// Imitates the training loop: checks `stop_requested` between steps, or never if `listens` is false (a long step).
fn wait_for_signal(world: &World, listens: bool) -> Result<()> {
    world.set_exit_message("checkpoint of step 7 is complete; to resume: PROGRAM --resume");
    println!("ready {}", std::process::id());
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        if listens && signals::stop_requested() {
            println!("a checkpoint is written");
            world.exit_stopped();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// `fault` happens on rank `DRNAS_TEST_RANK` (default 1) while the others wait for it.
fn watched(world: &World, fault: &str) -> Result<()> {
    world.start_heartbeats(HEARTBEAT)?;
    println!("ready {}", std::process::id());
    let victim = std::env::var("DRNAS_TEST_RANK").map_or(1, |rank| rank.parse().unwrap());
    phase::set_step(7);
    phase::enter(Phase::Backward);
    world.communicator().barrier()?;
    // Leave time for a heartbeat that reports this step and phase.
    std::thread::sleep(HEARTBEAT / 2);
    if world.rank() == victim {
        match fault {
            // SAFETY: signals this process; no pointers are involved.
            "killed" => unsafe { libc::kill(libc::getpid(), libc::SIGKILL) },
            "crashed" => std::process::abort(),
            "stopped" => stop(),
            "slow" => {
                std::thread::sleep(5 * HEARTBEAT / 2);
                0
            }
            _ => {
                std::thread::sleep(Duration::from_secs(100));
                0
            }
        };
    }
    phase::enter(Phase::AllReduce);
    Ok(world.communicator().barrier()?)
}

/// All ranks stop at the same step after one of them received a signal.
fn agreed(world: &World) -> Result<()> {
    world.start_heartbeats(HEARTBEAT)?;
    world.set_exit_message("checkpoint of step 7 is complete; to resume: PROGRAM --resume");
    println!("ready {}", std::process::id());
    let comm = world.communicator();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        comm.finish()?;
        if comm.stop_requested() {
            world.exit_stopped();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Times a `finish` without reductions: what agreeing to continue costs, once per step.
fn cost(world: &World) -> Result<()> {
    let mut us = Vec::new();
    for _ in 0..2000 {
        let started = Instant::now();
        world.communicator().finish()?;
        us.push(started.elapsed().as_micros());
    }
    us.sort();
    if world.rank() == 0 {
        println!("finish of {} ranks: median {} us, 90 % {} us", world.size(), us[1000], us[1800]);
    }
    Ok(())
}

fn place(world: &World) -> Result<()> {
    println!(
        "rank {} of {} local {} of {} hosts {} threads {}",
        world.rank(),
        world.size(),
        world.local_rank(),
        world.local_size(),
        world.num_hosts(),
        world.threads()
    );
    assert_eq!(tch::get_num_threads() as usize, world.threads());
    Ok(())
}

// -- the tests ------------------------------------------------------------------------------------

fn run(scenario: &str, size: usize) -> Outcome {
    run_with(scenario, size, &[])
}

fn succeeds(scenario: &str, size: usize) -> Outcome {
    run(scenario, size).expect_success(size)
}

fn fails(scenario: &str, size: usize, expected: &[&str]) -> Outcome {
    run(scenario, size).expect_failure(expected)
}

/// Asserts that the scenario ended well below its time limits: the other ranks were killed and did not time out.
fn assert_prompt(outcome: &Outcome) {
    assert!(outcome.wall < PATIENCE / 2, "{:?}: {}", outcome.wall, outcome.output);
}

#[test]
fn means_broadcasts_gathers_and_barriers_on_1_to_4_ranks() {
    for size in [0, 1, 2, 3, 4] {
        succeeds("numbers", size);
    }
}

#[test]
fn two_runs_are_bit_identical() {
    let hashes = |_| {
        let output = succeeds("repeat", 3).output;
        let mut lines: Vec<String> =
            (output.lines()).filter_map(|line| line.find("hash ").map(|at| line[at..].to_string())).collect();
        lines.sort();
        assert_eq!(lines.len(), 3, "{output}");
        lines
    };
    let [first, second] = [0, 1].map(hashes);
    assert_eq!(first, second);
}

#[test]
fn unsupported_tensors_are_refused() {
    succeeds("refusals", 0);
    succeeds("refusals", 2);
}

#[test]
fn ranks_know_their_rank_host_and_threads() {
    let output = succeeds("place", 3).output;
    for rank in 0..3 {
        let line = format!("rank {rank} of 3 local {rank} of 3 hosts 1 threads");
        assert!(output.contains(&line), "{output}");
    }
    assert!(succeeds("place", 0).output.contains("rank 0 of 1 local 0 of 1 hosts 1"));
    let output = run_with("place", 2, &[("OMP_NUM_THREADS", "3")]).output;
    assert!(output.contains("rank 1 of 2 local 1 of 2 hosts 1 threads 3"), "{output}");
}

#[test]
fn missing_rank_is_reported_by_all_others_within_the_time_limit() {
    let outcome = fails(
        "absent",
        3,
        &[
            "stalled 0 within true",
            "stalled 1 within true",
            "in operation 6 (mean of 1 tensor, 1000000 elements (1000000 Float))",
            "rank 0 on ",
        ],
    );
    assert!(outcome.wall < Duration::from_secs(30), "{:?}", outcome.wall);
}

#[test]
fn rank_that_stops_before_the_first_heartbeat_is_detected_within_the_start_limit() {
    let outcome = fails(
        "unstarted",
        3,
        &["MPI_Init did not return within 3 s: not all ranks have started", "increase run.start_limit_s"],
    );
    assert_prompt(&outcome);
    let outcome = fails("unwatched", 3, &["timed out after 3.", "not all ranks arrived"]);
    assert_prompt(&outcome);
    // Once heartbeats run, the ranks wait for the whole time limit of an operation.
    succeeds("patient", 3);
}

#[test]
fn panic_ends_all_ranks_and_is_reported_with_its_rank() {
    let outcome = fails("panic", 3, &["rank 1 on ", "panicked at tests/ranks.rs", "injected panic"]);
    assert_prompt(&outcome);
}

#[test]
fn panic_of_a_worker_thread_is_reported_and_does_not_end_the_run() {
    let outcome = succeeds("worker-panic", 2);
    assert!(outcome.output.contains("rank 1 on ") && outcome.output.contains("in a worker"));
}

#[test]
fn error_on_one_rank_ends_all_ranks() {
    let outcome = fails("error", 2, &["rank 1 on ", "read /nonexistent/shard: No such file"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.output);
    assert_prompt(&outcome);
}

#[test]
fn dropping_the_world_during_an_operation_ends_all_ranks() {
    assert_prompt(&fails("dropped", 2, &["rank 1 on ", "operations in progress"]));
}

#[test]
fn mismatched_collectives_are_reported() {
    let outcome = fails(
        "differ",
        3,
        &[
            "operation 5: the ranks call different operations (rank 0: broadcast of 40 Float from rank 0; rank 1: barrier)",
        ],
    );
    assert_prompt(&outcome);
    assert_prompt(&fails(
        "lengths",
        2,
        &[
            "rank 0: mean of 1 tensor, 100000 elements (100000 Float); rank 1: mean of 1 tensor, 99999 elements (99999 Float)",
        ],
    ));
    assert_prompt(&fails("early", 2, &["rank 0: shutdown; rank 1: barrier"]));
}

#[test]
fn ranks_started_as_separate_worlds_are_refused() {
    // srun without its MPI plugin: only Slurm's variables are set.
    let outcome = run_with("numbers", 0, &[("SLURM_NTASKS", "4")]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.output);
    assert!(outcome.output.contains("SLURM_NTASKS says 4 ranks, MPI says 1"), "{}", outcome.output);
    assert!(outcome.output.contains("srun --mpi=pmix"), "{}", outcome.output);
    // The launcher of another MPI.
    let outcome = run_with("numbers", 0, &[("PMI_SIZE", "2"), ("PMI_RANK", "0")]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.output);
    assert!(outcome.output.contains("PMI_SIZE says 2 ranks, MPI says 1"), "{}", outcome.output);
    // mpirun with fewer ranks than the allocation has tasks.
    let outcome = run_with("refusals", 2, &[("SLURM_NTASKS", "4")]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
}

/// The process that a signal is sent to.
#[derive(Clone, Copy)]
enum Recipient {
    Launcher,
    Mpirun,
    LastRank,
}

fn parent_of(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

/// Starts `scenario`, waits until its ranks are ready, sends the signal `times` times and returns the outcome.
fn signalled(scenario: &str, size: usize, signal: i32, times: usize) -> Outcome {
    signalled_to(Recipient::Launcher, scenario, size, signal, times)
}

fn signalled_to(to: Recipient, scenario: &str, size: usize, signal: i32, times: usize) -> Outcome {
    use std::io::{BufRead, BufReader, Read};
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let mut command = command(scenario, size, folder.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut pids: Vec<i32> = Vec::new();
    while pids.len() < size.max(1) && stdout.read_line(&mut output).unwrap() > 0 {
        let words: Vec<&str> = output.lines().last().unwrap().split_whitespace().collect();
        if let Some(at) = words.iter().position(|&word| word == "ready") {
            pids.push(words[at + 1].parse().unwrap());
        }
    }
    for time in 0..times {
        if time > 0 {
            // Two pending signals may be merged into one.
            std::thread::sleep(Duration::from_millis(300));
        }
        // With several ranks, as from a terminal or a scheduler: to `timeout`, which forwards it to mpirun.
        let to = match to {
            Recipient::Launcher if size > 1 => child.id() as i32,
            // `timeout` does not forward SIGUSR1.
            Recipient::Mpirun => parent_of(pids[0]),
            Recipient::Launcher | Recipient::LastRank => pids[pids.len() - 1],
        };
        // SAFETY: signals a process of this test; no pointers are involved.
        unsafe { libc::kill(to, signal) };
    }
    stdout.read_to_string(&mut output).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut output).unwrap();
    Outcome { what: scenario.into(), output, code: child.wait().unwrap().code(), wall: started.elapsed() }
}

const EXIT_MESSAGE: &str = "checkpoint of step 7 is complete; to resume: PROGRAM --resume";

#[test]
fn single_process_writes_a_checkpoint_on_a_signal() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1] {
        let outcome = signalled("signal", 0, signal, 1);
        assert_eq!(outcome.code, Some(75), "{}", outcome.output);
        assert!(outcome.output.contains("a checkpoint is written"), "{}", outcome.output);
        assert_eq!(outcome.output.matches(EXIT_MESSAGE).count(), 1, "{}", outcome.output);
    }
}

#[test]
fn single_process_exits_immediately_on_a_second_signal() {
    let outcome = signalled("deaf", 0, libc::SIGINT, 2);
    assert!(outcome.wall < Duration::from_secs(20), "{:?}", outcome.wall);
    assert_eq!(outcome.code, Some(130), "{}", outcome.output);
    assert_eq!(outcome.output.matches(EXIT_MESSAGE).count(), 1, "{}", outcome.output);
}

#[test]
fn several_ranks_stop_together_after_one_signal() {
    for to in [Recipient::Mpirun, Recipient::LastRank] {
        let outcome = signalled_to(to, "agreed", 3, libc::SIGUSR1, 1);
        assert_eq!(outcome.code, Some(75), "{}", outcome.output);
        assert!(outcome.output.contains(EXIT_MESSAGE), "{}", outcome.output);
    }
}

#[test]
#[ignore = "a measurement: cargo test --release --test ranks -- --ignored --nocapture time_of_an_agreement"]
fn time_of_an_agreement() {
    for size in [2, 4] {
        println!("{}", succeeds("cost", size).output);
    }
}

/// Asserts that none of the three ranks that printed "ready" is still running.
fn assert_gone(output: &str) {
    let words: Vec<&str> = output.split_whitespace().collect();
    let pids: Vec<&str> = words.windows(2).filter(|pair| pair[0] == "ready").map(|pair| pair[1]).collect();
    assert_eq!(pids.len(), 3, "{output}");
    let started = Instant::now();
    while pids.iter().any(|pid| is_alive(pid)) {
        assert!(started.elapsed() < Duration::from_secs(10), "ranks are still running: {output}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn lost_rank_is_reported_and_all_ranks_are_killed() {
    let gone = "process died";
    for (fault, how) in [("killed", gone), ("crashed", gone), ("stopped", "no heartbeat for 2 s")] {
        for (victim, by) in [("1", "rank 0 on "), ("0", "rank 1 on ")] {
            let outcome = run_with(fault, 3, &[("DRNAS_TEST_RANK", victim)]);
            assert!(!matches!(outcome.code, Some(0 | 124)), "{:?}: {}", outcome.code, outcome.output);
            let line = format!("lost rank {victim} on ");
            let line = outcome.output.lines().find(|text| text.contains(&line)).unwrap_or_default();
            for part in [by, ", step 7, backward: ", how] {
                assert!(line.contains(part), "{fault} {victim}: {}", outcome.output);
            }
            assert!(!outcome.output.contains("Process received signal"), "{}", outcome.output);
            assert_gone(&outcome.output);
        }
    }
}

#[test]
fn slow_rank_is_tolerated() {
    succeeds("slow", 3);
}

#[test]
fn rank_missing_from_a_collective_is_named_by_the_waiting_ranks() {
    for victim in ["1", "0"] {
        let missing = format!("not all ranks arrived (missing: rank {victim} on ");
        let outcome = run_with("hangs", 3, &[("DRNAS_TEST_RANK", victim)]).expect_failure(&[&missing]);
        // The third rank is waiting too, and is not reported as missing.
        let line = outcome.output.lines().find(|line| line.contains(&missing) && !line.contains("; rank "));
        assert!(
            line.is_some_and(|line| line.contains(", step 7, backward for ")),
            "{victim}: {}",
            outcome.output
        );
        assert_gone(&outcome.output);
    }
}

#[test]
fn several_ranks_exit_promptly_on_a_signal() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let outcome = signalled("signal", 2, signal, 1);
        assert!(!matches!(outcome.code, Some(0 | 124 | 137)), "{}", outcome.output);
        assert!(outcome.wall < Duration::from_secs(25), "{:?}", outcome.wall);
    }
}

/// Ctrl-C typed in a real terminal: rank 0 prints the newest complete checkpoint and the command to resume.
#[test]
fn ctrl_c_on_two_ranks_prints_how_to_resume() {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::os::unix::process::CommandExt;
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: two valid out pointers; name and settings are null, which openpty allows.
    let opened = unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) };
    assert_eq!(opened, 0);
    // SAFETY: two new descriptors without another owner.
    let (mut master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    let folder = tempfile::tempdir().unwrap();
    let mut command = command("signal", 2, folder.path());
    command.stdout(slave.try_clone().unwrap()).stderr(slave.try_clone().unwrap()).stdin(slave);
    // SAFETY: calls only async-signal-safe functions between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    drop(command);
    let (mut output, mut buffer) = (String::new(), [0u8; 4096]);
    let mut typed = false;
    // Reading fails once the last process of the terminal has exited.
    while let Ok(count @ 1..) = master.read(&mut buffer) {
        output += &String::from_utf8_lossy(&buffer[..count]);
        if !typed && output.matches("ready").count() == 2 {
            master.write_all(b"\x03").unwrap();
            typed = true;
        }
    }
    assert!(!child.wait().unwrap().success(), "{output}");
    assert!(output.contains(EXIT_MESSAGE), "{output}");
}

#[test]
fn doctor_lists_libraries_and_ranks_with_and_without_mpirun() {
    for (size, ranks) in [(0, 1), (2, 2)] {
        let outcome = run("doctor", size);
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        for text in ["libtorch_cpu.so", "Open MPI v", "libmpi.so", "NCCL   ", "CUDA driver"] {
            assert_eq!(outcome.output.matches(text).count(), 1, "{text}: {}", outcome.output);
        }
        for rank in 0..ranks {
            let line = format!("rank {rank} of {ranks} on ");
            assert!(outcome.output.contains(&line), "{line}: {}", outcome.output);
        }
    }
    // The error that prevents the start is printed after the information already collected.
    let outcome = run_with("doctor", 0, &[("SLURM_NTASKS", "4")]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.output);
    assert!(outcome.output.contains("libtorch_cpu.so") && outcome.output.contains("MPI says 1"));
}

/// Services and agents start programs without HOME.
#[test]
fn mpirun_starts_without_home() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("bash");
    command
        .args(["-euc", ". launch/env.sh; mpirun -n 1 true"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("HOME");
    let output = mpirun::configure_mpi(&mut command, folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
