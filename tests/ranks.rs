//! Several ranks under mpirun: right numbers, and no way to end that leaves the others waiting.
//!
//! The tests start this very program again under mpirun; `rank_program` is what each rank then runs.

#[path = "common/mpirun.rs"]
mod mpirun;

use drnas_dist::comm;
use drnas_dist::process::phase::{self, Phase};
use drnas_dist::world::{Limits, World};
use drnas_dist::{Result, files};
use mpirun::{Ended, SCENE, lives, rank_program as command, run_with};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Time limit of the scenes in which ranks are missing.
const LIMIT: Duration = Duration::from_secs(3);
/// How long a rank may be silent where ranks are watched.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Time limit of the others: a busy machine must not fail them.
const PATIENCE: Duration = Duration::from_secs(100);

// -- what a rank does -----------------------------------------------------------------------------

#[test]
#[ignore = "the other tests start it under mpirun"]
fn rank_program() {
    let Ok(scene) = std::env::var(SCENE) else {
        return;
    };
    let limit = match scene.as_str() {
        "absent" | "signal" | "hangs" => LIMIT,
        _ => PATIENCE,
    };
    if scene == "doctor" {
        if let Err(why) = drnas_dist::commands::doctor::run(limit, None) {
            eprintln!("{why}");
            std::process::exit(2);
        }
        return;
    }
    let rank: usize = std::env::var("OMPI_COMM_WORLD_RANK").map_or(0, |rank| rank.parse().unwrap());
    if scene == "unstarted" && rank == 1 {
        stop();
    }
    let limits = match scene.as_str() {
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
    let outcome = match scene.as_str() {
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
        "killed" | "crashed" | "stopped" | "slow" | "hangs" => watched(&world, &scene),
        "agreed" => agreed(&world),
        "cost" => cost(&world),
        "unstarted" | "unwatched" | "patient" => starts(&world, &scene),
        other => panic!("no scene {other}"),
    };
    match world.end(outcome) {
        Ok(()) => println!("good end"),
        Err(why) => {
            eprintln!("error: {why}");
            std::process::exit(1);
        }
    }
}

/// This process does nothing more, and nobody is told. Continued by mpirun, which is about to end it, it still does nothing:
/// over a rank that goes on into MPI_Init and ends there, mpirun itself can hang (PMIx 5).
fn stop() -> ! {
    // SAFETY: stops this process.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGSTOP);
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Rank 1 stops, or comes late, around the moment when heartbeats begin.
fn starts(world: &World, scene: &str) -> Result<()> {
    if scene == "unwatched" && world.rank() == 1 {
        stop();
    }
    world.keep_watch(PATIENCE)?;
    if scene == "patient" && world.rank() == 1 {
        std::thread::sleep(LIMIT + Duration::from_secs(1));
    }
    Ok(world.communicator().barrier()?)
}

/// What `rank` gives to reduction `bucket`: not exact in f32, different everywhere.
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

/// Means against an f64 oracle, several in flight, one longer than what one MPI call takes; the other operations.
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
    // Twice, in another order, so that receive buffers are used again and exchanged.
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
            // Every rank has the same bits, else weights drift apart.
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

    let told = comm.all_gather(&[rank as u8, 7])?;
    assert_eq!(told, (0..size).map(|rank| vec![rank as u8, 7]).collect::<Vec<_>>());
    assert_eq!(comm.all_gather(&[])?, vec![Vec::<u8>::new(); size]);

    // Nobody leaves the barrier before the last has come.
    let started = Instant::now();
    if rank == size - 1 {
        std::thread::sleep(Duration::from_millis(300));
    }
    comm.barrier()?;
    assert!(started.elapsed() >= Duration::from_millis(250) || size == 1);
    Ok(())
}

/// Prints a hash of means; the test compares two runs.
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

/// What cannot be sent is refused on the spot, and the run can go on.
fn refusals(world: &World) -> Result<()> {
    let comm = world.communicator();
    let turned = Tensor::zeros([3, 4], tch::kind::FLOAT_CPU).tr();
    let said = |outcome: comm::Result<()>| outcome.unwrap_err().to_string();
    assert!(said(comm.start_mean(&turned)).contains("contiguous tensor expected"));
    assert!(said(comm.broadcast(&turned, 0)).contains("contiguous tensor expected"));
    let whole = Tensor::zeros([3], tch::kind::INT64_CPU);
    assert!(said(comm.start_mean(&whole)).contains("kind Float or Double expected, Int64 found"));
    assert!(said(comm.broadcast(&whole, 9)).contains("root below"));
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
    if let Err(comm::Error::Stalled { waited_s, .. }) = &outcome {
        let within = waited < LIMIT + Duration::from_secs(2) && *waited_s >= LIMIT.as_secs_f64();
        println!("stalled {} within {within}", comm.rank());
        // What comes after is refused at once: it could not be matched.
        assert!(matches!(comm.barrier(), Err(comm::Error::RanksLost { .. })));
        // Rank 0 ends all ranks: let every one of them say its line first.
        std::thread::sleep(Duration::from_millis(700));
    }
    outcome?;
    Ok(())
}

fn panic_in_one(world: &World) -> Result<()> {
    let comm = world.communicator();
    comm.barrier()?;
    assert!(comm.rank() != 1, "a planned\nmistake");
    Ok(comm.barrier()?)
}

/// A panic of another thread is told, but it is up to the one who joins it.
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

/// One rank drops the world in the middle of a reduction, the others wait for it.
fn dropped(world: World) {
    let comm = world.communicator();
    comm.start_mean(&Tensor::zeros([100_000], tch::kind::FLOAT_CPU)).unwrap();
    if comm.rank() != 1 {
        let outcome = comm.finish();
        let _ = world.end(outcome);
    }
}

/// Ranks in different branches.
fn differ(world: &World) -> Result<()> {
    let comm = world.communicator();
    match comm.rank() {
        0 => Ok(comm.broadcast(&Tensor::zeros([40], tch::kind::FLOAT_CPU), 0)?),
        _ => Ok(comm.barrier()?),
    }
}

/// Ranks with models of different sizes.
fn lengths(world: &World) -> Result<()> {
    let comm = world.communicator();
    let length = if comm.rank() == 0 { 100_000 } else { 99_999 };
    comm.start_mean(&Tensor::zeros([length], tch::kind::FLOAT_CPU))?;
    comm.progress()?;
    comm.finish()?;
    Ok(())
}

/// One rank believes that the run is over.
fn early(world: &World) -> Result<()> {
    match world.rank() {
        0 => Ok(()),
        _ => Ok(world.communicator().barrier()?),
    }
}

/// The search loop, which reads `stop_requested` between steps or, deaf, is in a long one.
fn wait_for_signal(world: &World, listens: bool) -> Result<()> {
    world.set_farewell("checkpoint of step 7 is good; go on with: PROGRAM --resume");
    println!("ready {}", std::process::id());
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        if listens && world.stop_requested() {
            println!("a checkpoint is written");
            world.leave();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// One rank, 1 or the one of `DRNAS_TEST_RANK`, meets with `fate` while the others wait for it.
fn watched(world: &World, fate: &str) -> Result<()> {
    world.keep_watch(HEARTBEAT)?;
    println!("ready {}", std::process::id());
    let odd = std::env::var("DRNAS_TEST_RANK").map_or(1, |rank| rank.parse().unwrap());
    phase::set_step(7);
    phase::enter(Phase::Backward);
    world.communicator().barrier()?;
    // Time for a beat that tells it.
    std::thread::sleep(HEARTBEAT / 2);
    if world.rank() == odd {
        match fate {
            // SAFETY: a plain call on this very process.
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

/// All ranks stop at one step, for a signal that one of them got.
fn agreed(world: &World) -> Result<()> {
    world.keep_watch(HEARTBEAT)?;
    world.set_farewell("checkpoint of step 7 is good; go on with: PROGRAM --resume");
    println!("ready {}", std::process::id());
    let comm = world.communicator();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        if world.stop_requested() {
            comm.request_stop();
        }
        comm.finish()?;
        if comm.stop_requested() {
            world.leave();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What a `finish` costs, once a step, beside the reductions.
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

fn run(scene: &str, size: usize) -> Ended {
    run_with(scene, size, &[])
}

fn good(scene: &str, size: usize) -> Ended {
    run(scene, size).good(size)
}

fn bad(scene: &str, size: usize, expected: &[&str]) -> Ended {
    run(scene, size).bad(expected)
}

/// Well below every time limit of its scene: the others were ended, they did not give up.
fn at_once(ended: &Ended) {
    assert!(ended.wall < PATIENCE / 2, "{:?}: {}", ended.wall, ended.output);
}

#[test]
fn means_broadcasts_gathers_and_barriers_on_1_to_4_ranks() {
    for size in [0, 1, 2, 3, 4] {
        good("numbers", size);
    }
}

#[test]
fn two_runs_are_bit_equal() {
    let hashes = |_| {
        let output = good("repeat", 3).output;
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
fn what_cannot_be_sent_is_refused() {
    good("refusals", 0);
    good("refusals", 2);
}

#[test]
fn ranks_know_their_place() {
    let output = good("place", 3).output;
    for rank in 0..3 {
        let line = format!("rank {rank} of 3 local {rank} of 3 hosts 1 threads");
        assert!(output.contains(&line), "{output}");
    }
    assert!(good("place", 0).output.contains("rank 0 of 1 local 0 of 1 hosts 1"));
    let told = run_with("place", 2, &[("OMP_NUM_THREADS", "3")]).output;
    assert!(told.contains("rank 1 of 2 local 1 of 2 hosts 1 threads 3"), "{told}");
}

#[test]
fn a_rank_that_never_arrives_is_told_by_all_others_within_the_limit() {
    let ended = bad(
        "absent",
        3,
        &[
            "stalled 0 within true",
            "stalled 1 within true",
            "in operation 4 (1 means of 1000000 (1000000 Float))",
            "rank 0 on ",
        ],
    );
    assert!(ended.wall < Duration::from_secs(30), "{:?}", ended.wall);
}

#[test]
fn a_rank_that_stops_before_there_are_heartbeats_is_missed_within_the_start_limit() {
    let ended = bad(
        "unstarted",
        3,
        &["MPI_Init did not return within 3 s, not every rank has started", "raise run.start_limit_s"],
    );
    at_once(&ended);
    let ended = bad("unwatched", 3, &["waited 3.", "not every rank came"]);
    at_once(&ended);
    // Once watched, the ranks wait as long as an operation may take.
    good("patient", 3);
}

#[test]
fn a_panic_ends_all_ranks_and_names_its_own() {
    let ended = bad("panic", 3, &["rank 1 on ", "panicked at tests/ranks.rs", "a planned mistake"]);
    at_once(&ended);
}

#[test]
fn a_panic_of_a_worker_thread_is_told_and_does_not_end_the_run() {
    let ended = good("worker-panic", 2);
    assert!(ended.output.contains("rank 1 on ") && ended.output.contains("in a worker"));
}

#[test]
fn an_error_of_one_rank_ends_all() {
    let ended = bad("error", 2, &["rank 1 on ", "read /nonexistent/shard: No such file"]);
    assert_eq!(ended.code, Some(1), "{}", ended.output);
    at_once(&ended);
}

#[test]
fn a_world_dropped_with_operations_under_way_ends_all() {
    at_once(&bad("dropped", 2, &["rank 1 on ", "operations under way"]));
}

#[test]
fn ranks_that_do_different_things_are_told_so() {
    let ended = bad(
        "differ",
        3,
        &[
            "operation 3: the ranks do not do the same (rank 0: broadcast of 40 Float from rank 0; rank 1: barrier)",
        ],
    );
    at_once(&ended);
    at_once(&bad(
        "lengths",
        2,
        &["rank 0: 1 means of 100000 (100000 Float); rank 1: 1 means of 99999 (99999 Float)"],
    ));
    at_once(&bad("early", 2, &["rank 0: end of the run; rank 1: barrier"]));
}

#[test]
fn separate_worlds_of_one_are_refused() {
    // srun without its MPI plugin: only Slurm's variables are there.
    let ended = run_with("numbers", 0, &[("SLURM_NTASKS", "4")]);
    assert_eq!(ended.code, Some(2), "{}", ended.output);
    assert!(ended.output.contains("SLURM_NTASKS says 4 ranks, MPI says 1"), "{}", ended.output);
    assert!(ended.output.contains("srun --mpi=pmix"), "{}", ended.output);
    // The launcher of another MPI.
    let ended = run_with("numbers", 0, &[("PMI_SIZE", "2"), ("PMI_RANK", "0")]);
    assert_eq!(ended.code, Some(2), "{}", ended.output);
    assert!(ended.output.contains("PMI_SIZE says 2 ranks, MPI says 1"), "{}", ended.output);
    // mpirun with fewer ranks than the allocation has tasks.
    let ended = run_with("refusals", 2, &[("SLURM_NTASKS", "4")]);
    assert_eq!(ended.code, Some(0), "{}", ended.output);
}

/// Who gets a signal.
#[derive(Clone, Copy)]
enum To {
    Launcher,
    Mpirun,
    LastRank,
}

fn parent_of(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

/// Starts `scene`, waits until its ranks are ready, sends the signal `times` times and returns how it ended.
fn signalled(scene: &str, size: usize, signal: i32, times: usize) -> Ended {
    signalled_to(To::Launcher, scene, size, signal, times)
}

fn signalled_to(to: To, scene: &str, size: usize, signal: i32, times: usize) -> Ended {
    use std::io::{BufRead, BufReader, Read};
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let mut command = command(scene, size, folder.path());
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
            // Two signals at once may be seen as one.
            std::thread::sleep(Duration::from_millis(300));
        }
        // With several ranks as a terminal or a scheduler does it: to `timeout`, which hands it to mpirun.
        let to = match to {
            To::Launcher if size > 1 => child.id() as i32,
            // `timeout` hands on no SIGUSR1.
            To::Mpirun => parent_of(pids[0]),
            To::Launcher | To::LastRank => pids[pids.len() - 1],
        };
        // SAFETY: a process of this test.
        unsafe { libc::kill(to, signal) };
    }
    stdout.read_to_string(&mut output).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut output).unwrap();
    Ended { what: scene.into(), output, code: child.wait().unwrap().code(), wall: started.elapsed() }
}

const FAREWELL: &str = "checkpoint of step 7 is good; go on with: PROGRAM --resume";

#[test]
fn alone_a_signal_asks_for_a_checkpoint_first() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1] {
        let ended = signalled("signal", 0, signal, 1);
        assert_eq!(ended.code, Some(75), "{}", ended.output);
        assert!(ended.output.contains("a checkpoint is written"), "{}", ended.output);
        assert_eq!(ended.output.matches(FAREWELL).count(), 1, "{}", ended.output);
    }
}

#[test]
fn alone_a_second_signal_leaves_at_once() {
    let ended = signalled("deaf", 0, libc::SIGINT, 2);
    assert!(ended.wall < Duration::from_secs(20), "{:?}", ended.wall);
    assert_eq!(ended.code, Some(130), "{}", ended.output);
    assert_eq!(ended.output.matches(FAREWELL).count(), 1, "{}", ended.output);
}

#[test]
fn several_ranks_stop_together_for_one_signal() {
    for to in [To::Mpirun, To::LastRank] {
        let ended = signalled_to(to, "agreed", 3, libc::SIGUSR1, 1);
        assert_eq!(ended.code, Some(75), "{}", ended.output);
        assert!(ended.output.contains(FAREWELL), "{}", ended.output);
    }
}

#[test]
#[ignore = "a measurement: cargo test --release --test ranks -- --ignored --nocapture what_an_agreement_costs"]
fn what_an_agreement_costs() {
    for size in [2, 4] {
        println!("{}", good("cost", size).output);
    }
}

/// Of the ranks that were ready nothing is left.
fn assert_gone(output: &str) {
    let words: Vec<&str> = output.split_whitespace().collect();
    let pids: Vec<&str> = words.windows(2).filter(|pair| pair[0] == "ready").map(|pair| pair[1]).collect();
    assert_eq!(pids.len(), 3, "{output}");
    let started = Instant::now();
    while pids.iter().any(|pid| lives(pid)) {
        assert!(started.elapsed() < Duration::from_secs(10), "ranks are left: {output}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_rank_that_dies_or_stops_is_named_and_all_are_ended() {
    let gone = "its process is gone";
    for (fate, how) in [("killed", gone), ("crashed", gone), ("stopped", "no sign of life for 2 s")] {
        for (odd, by) in [("1", "rank 0 on "), ("0", "rank 1 on ")] {
            let ended = run_with(fate, 3, &[("DRNAS_TEST_RANK", odd)]);
            assert!(!matches!(ended.code, Some(0 | 124)), "{:?}: {}", ended.code, ended.output);
            let line = format!("lost rank {odd} on ");
            let line = ended.output.lines().find(|text| text.contains(&line)).unwrap_or_default();
            for part in [by, ", step 7, backward: ", how] {
                assert!(line.contains(part), "{fate} {odd}: {}", ended.output);
            }
            assert!(!ended.output.contains("Process received signal"), "{}", ended.output);
            assert_gone(&ended.output);
        }
    }
}

#[test]
fn a_slow_rank_is_waited_for() {
    good("slow", 3);
}

#[test]
fn who_does_not_come_to_a_collective_is_named_by_those_who_wait() {
    for odd in ["1", "0"] {
        let missing = format!("not every rank came (missing: rank {odd} on ");
        let ended = run_with("hangs", 3, &[("DRNAS_TEST_RANK", odd)]).bad(&[&missing]);
        // The third one waits too, and all know it.
        let line = ended.output.lines().find(|line| line.contains(&missing) && !line.contains("; rank "));
        assert!(line.is_some_and(|line| line.contains(", step 7, backward for ")), "{odd}: {}", ended.output);
        assert_gone(&ended.output);
    }
}

#[test]
fn several_ranks_leave_at_once() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let ended = signalled("signal", 2, signal, 1);
        assert!(!matches!(ended.code, Some(0 | 124 | 137)), "{}", ended.output);
        assert!(ended.wall < Duration::from_secs(25), "{:?}", ended.wall);
    }
}

/// Ctrl-C typed in a real terminal, as a person does it: rank 0 says which checkpoint is good.
#[test]
fn ctrl_c_of_two_ranks_says_how_to_go_on() {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::os::unix::process::CommandExt;
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: two live out pointers; names and settings are not asked for.
    let opened = unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) };
    assert_eq!(opened, 0);
    // SAFETY: two new descriptors that nobody else owns.
    let (mut master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    let folder = tempfile::tempdir().unwrap();
    let mut command = command("signal", 2, folder.path());
    command.stdout(slave.try_clone().unwrap()).stderr(slave.try_clone().unwrap()).stdin(slave);
    // SAFETY: only calls that are allowed between fork and exec.
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
    // Reading fails once the last process of the terminal is gone.
    while let Ok(count @ 1..) = master.read(&mut buffer) {
        output += &String::from_utf8_lossy(&buffer[..count]);
        if !typed && output.matches("ready").count() == 2 {
            master.write_all(b"\x03").unwrap();
            typed = true;
        }
    }
    assert!(!child.wait().unwrap().success(), "{output}");
    assert!(output.contains(FAREWELL), "{output}");
}

#[test]
fn doctor_names_libraries_and_ranks_alone_and_under_mpirun() {
    for (size, ranks) in [(0, 1), (2, 2)] {
        let ended = run("doctor", size);
        assert_eq!(ended.code, Some(0), "{}", ended.output);
        for text in ["libtorch_cpu.so", "Open MPI v", "libmpi.so", "NCCL   ", "CUDA driver"] {
            assert_eq!(ended.output.matches(text).count(), 1, "{text}: {}", ended.output);
        }
        for rank in 0..ranks {
            let line = format!("rank {rank} of {ranks} on ");
            assert!(ended.output.contains(&line), "{line}: {}", ended.output);
        }
    }
    // What stands in the way of starting is said after what is known.
    let ended = run_with("doctor", 0, &[("SLURM_NTASKS", "4")]);
    assert_eq!(ended.code, Some(2), "{}", ended.output);
    assert!(ended.output.contains("libtorch_cpu.so") && ended.output.contains("MPI says 1"));
}

/// As services and agents start programs.
#[test]
fn mpirun_starts_where_there_is_no_home() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("bash");
    command
        .args(["-euc", ". launch/env.sh; mpirun -n 1 true"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("HOME");
    let output = mpirun::at_home(&mut command, folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
