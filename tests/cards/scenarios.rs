//! The scenarios: what each rank does.

use crate::bench::mpirun::assert_refuses_unsuitable_tensors;
use crate::double::Double;
use clap::Parser;
use drnas_dist::cli::{self, Cli};
use drnas_dist::comm::Communicator;
use drnas_dist::cuda::{Event, Stream};
use drnas_dist::data::augment::Rect;
use drnas_dist::data::upload::Staging;
use drnas_dist::data::{Batch, Upload};
use drnas_dist::files;
use drnas_dist::process::phase::{self, Phase};
use drnas_dist::world::World;
use drnas_dist::{Config, Result};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// The contribution of `rank` to reduction `bucket`: inexact in f32, different in every element.
pub fn content(rank: usize, bucket: usize, length: i64, kind: Kind) -> Tensor {
    let places = Tensor::arange(length, (Kind::Double, Device::Cpu));
    (places * (0.37 + bucket as f64) + (1 + rank) as f64 * 1.7).sin().to_kind(kind)
}

pub fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// The largest absolute error of `mean` with respect to the mean over `size` ranks.
pub fn max_error(mean: &Tensor, size: usize, content: impl Fn(usize) -> Tensor) -> f64 {
    if mean.numel() == 0 {
        return 0.0;
    }
    let zero = mean.to_kind(Kind::Double).zeros_like();
    let sum = (0..size).map(|rank| content(rank).to_kind(Kind::Double)).fold(zero, |sum, one| sum + one);
    (mean.to_kind(Kind::Double) - sum / size as f64).abs().max().double_value(&[])
}

/// Asserts that `tensor` is bit-identical on all ranks. Collective.
pub fn assert_same_on_all_ranks(comm: &dyn Communicator, tensor: &Tensor) -> Result<()> {
    let hash = xxhash_rust::xxh3::xxh3_64(&bytes_of(tensor)).to_le_bytes();
    assert!(comm.all_gather(&hash)?.iter().all(|other| *other == hash), "ranks differ");
    Ok(())
}

/// Stream 0 writes gradients and reads their means, repeatedly in the same buffers, so that a missing wait gives wrong
/// values. Without a double (MPI) the host does the same directly. Prints a hash of all means.
pub fn means(world: &World, double: Option<&Double>) -> Result<()> {
    let comm = world.communicator();
    let shapes = [
        (1_000, Kind::Float),
        (1, Kind::Float),
        (0, Kind::Float),
        (300_000, Kind::Float), // more than a group holds, and than the double sends in one piece
        (7_000, Kind::Double),
        (17, Kind::Float),
    ];
    let empty = |(length, kind): &(i64, Kind)| Tensor::full([*length], f64::NAN, (*kind, Device::Cpu));
    let buffers: Vec<Tensor> = shapes.iter().map(empty).collect();
    let mut all = Vec::new();
    for round in 0..3 {
        let (sources, results): (Vec<_>, Vec<_>) = (shapes.iter().enumerate())
            .map(|(bucket, shape)| (content(comm.rank(), bucket + 7 * round, shape.0, shape.1), empty(shape)))
            .unzip();
        let copy = |to: &Tensor, from: &Tensor| match double {
            Some(double) => double.copy(to, from),
            None => to.shallow_clone().copy_(from),
        };
        for (buffer, source) in buffers.iter().zip(&sources) {
            copy(buffer, source);
            comm.start_mean(buffer)?;
            comm.progress()?;
        }
        comm.finish()?;
        results.iter().zip(&buffers).for_each(|(result, buffer)| copy(result, buffer));
        // The gradients of the next step overwrite the same buffers.
        let nothing: Vec<Tensor> = shapes.iter().map(empty).collect();
        buffers.iter().zip(&nothing).for_each(|(buffer, nothing)| copy(buffer, nothing));
        all.push((sources, results, nothing));
    }
    if let Some(double) = double {
        double.synchronize();
    }
    let mut bytes = Vec::new();
    for (round, (_, results, _)) in all.iter().enumerate() {
        for (bucket, result) in results.iter().enumerate() {
            let (length, kind) = shapes[bucket];
            let far = max_error(result, comm.size(), |rank| content(rank, bucket + 7 * round, length, kind));
            let allowed = if kind == Kind::Float { 3e-7 } else { 1e-15 };
            assert!(far <= allowed, "round {round}, bucket {bucket}: {far:e} from the mean");
            assert_same_on_all_ranks(comm, result)?;
            bytes.extend(bytes_of(result));
        }
    }
    println!("hash {:016x}", xxhash_rust::xxh3::xxh3_64(&bytes));
    Ok(())
}

/// Broadcasts of all kinds of tensors, between late work items on stream 0.
pub fn broadcasts(world: &World, double: &Double) -> Result<()> {
    let comm = world.communicator();
    for root in 0..comm.size() {
        for kind in [Kind::Float, Kind::Double, Kind::Int64, Kind::Uint8] {
            let value = |rank: usize| {
                let numbers = Tensor::arange(5_000, (Kind::Int64, Device::Cpu)) * (3 * rank as i64 + 1);
                numbers.remainder(200).to_kind(kind)
            };
            let (source, result) = (value(comm.rank()), value(0).zeros_like());
            let buffer = value(0).zeros_like().view([50, 100]);
            double.copy(&buffer, &source);
            comm.broadcast(&buffer, root)?;
            double.copy(&result, &buffer);
            double.synchronize();
            assert_eq!(bytes_of(&result), bytes_of(&value(root)), "{kind:?} of {root}");
        }
    }
    Ok(())
}

/// Collectives on host data, and tensors that cannot be sent.
pub fn host_side(world: &World) -> Result<()> {
    let comm = world.communicator();
    let (rank, size) = (comm.rank(), comm.size());
    let gathered = comm.all_gather(&[rank as u8, 7])?;
    assert_eq!(gathered, (0..size).map(|rank| vec![rank as u8, 7]).collect::<Vec<_>>());
    comm.barrier()?;
    assert_refuses_unsuitable_tensors(comm);
    comm.finish()?;
    Ok(comm.barrier()?)
}

/// Tensors on the wrong device.
pub fn wrong_device(world: &World) -> Result<()> {
    let comm = world.communicator();
    let here = Tensor::zeros([3], tch::kind::FLOAT_CPU);
    let message = |outcome: drnas_dist::comm::Result<()>| outcome.unwrap_err().to_string();
    assert_eq!(message(comm.start_mean(&here)), "mean: expected a tensor on Cuda(0), found Cpu");
    assert_eq!(message(comm.broadcast(&here, 0)), "broadcast: expected a tensor on Cuda(0), found Cpu");
    Ok(())
}

/// With bf16, means are computed from rounded values and returned in float32. Stream 0 is the host: libtorch makes the
/// copies.
pub fn in_bf16(world: &World) -> Result<()> {
    let comm = world.communicator();
    for round in 0..3 {
        let buffers: Vec<Tensor> =
            (0..3).map(|bucket| content(comm.rank(), 3 * round + bucket, 40_000, Kind::Float)).collect();
        let exact = content(comm.rank(), 50, 1_000, Kind::Double);
        for buffer in buffers.iter().chain([&exact]) {
            comm.start_mean(buffer)?;
        }
        comm.finish()?;
        for (bucket, mean) in buffers.iter().enumerate() {
            let content = |rank| content(rank, 3 * round + bucket, 40_000, Kind::Float);
            let far = max_error(mean, comm.size(), content);
            assert!(far < 0.01, "{far} from the mean");
            assert!(far > 1e-4, "{far}: nothing was rounded");
            let rounded = mean.to_kind(Kind::BFloat16).to_kind(Kind::Float);
            assert_eq!(bytes_of(&rounded), bytes_of(mean));
            assert_same_on_all_ranks(comm, mean)?;
        }
        assert!(max_error(&exact, comm.size(), |rank| content(rank, 50, 1_000, Kind::Double)) <= 1e-15);
    }
    Ok(())
}

/// The host and stream 0 continue while a reduction waits for another rank; only work enqueued after `finish` waits.
/// Rank 0 creates the file `TEST_AHEAD` when it is past `finish`; until then the others do not start.
pub fn ahead(world: &World, double: &Double) -> Result<()> {
    static PASSED: AtomicBool = AtomicBool::new(false);
    let comm = world.communicator();
    let buffer = Tensor::full([1 << 19], comm.rank() as f64, tch::kind::FLOAT_CPU);
    let reduce = || -> Result<()> {
        comm.start_mean(&buffer)?;
        comm.finish()?;
        Ok(())
    };
    // The first reduction also compares descriptions between ranks.
    reduce()?;
    let passed = std::env::var("TEST_AHEAD").expect("TEST_AHEAD");
    if comm.rank() > 0 {
        while !Path::new(&passed).exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        reduce()?;
        comm.barrier()?;
        double.synchronize();
        return Ok(comm.barrier()?);
    }
    comm.start_mean(&buffer)?;
    double.enqueue(|| PASSED.store(true, Ordering::Release));
    let since = Instant::now();
    while !PASSED.load(Ordering::Acquire) {
        assert!(since.elapsed() < Duration::from_secs(10), "stream 0 waits for the communication stream");
        std::thread::sleep(Duration::from_millis(1));
    }
    comm.finish()?;
    static AFTER: AtomicBool = AtomicBool::new(false);
    double.enqueue(|| AFTER.store(true, Ordering::Release));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!AFTER.load(Ordering::Acquire), "work enqueued after finish did not wait");
    println!("the host is ahead");
    std::fs::write(&passed, "").map_err(files::io("write", &passed))?;
    comm.barrier()?;
    double.synchronize();
    assert!(AFTER.load(Ordering::Acquire));
    Ok(comm.barrier()?)
}

/// Small buffers are reduced in one group; those before a large buffer are grouped with it.
pub fn groups(world: &World, double: &Double) -> Result<()> {
    let comm = world.communicator();
    let small: Vec<_> = (0..5).map(|bucket| content(comm.rank(), bucket, 100, Kind::Float)).collect();
    let large = content(comm.rank(), 9, 300_000, Kind::Float);
    small.iter().try_for_each(|buffer| comm.start_mean(buffer))?;
    comm.start_mean(&large)?;
    let last = Tensor::zeros([2, 3], tch::kind::FLOAT_CPU);
    (0..2).try_for_each(|row| comm.start_mean(&last.get(row)))?;
    comm.finish()?;
    double.synchronize();
    for (bucket, mean) in small.iter().enumerate() {
        assert!(max_error(mean, comm.size(), |rank| content(rank, bucket, 100, Kind::Float)) <= 3e-7);
    }
    assert!(max_error(&large, comm.size(), |rank| content(rank, 9, 300_000, Kind::Float)) <= 3e-7);
    Ok(())
}

/// Buffers that the caller has dropped live at least until `finish`. At this size the allocator returns freed memory to
/// the system immediately.
pub fn kept(world: &World) -> Result<()> {
    let comm = world.communicator();
    for _ in 0..3 {
        for kind in [Kind::Float, Kind::Double] {
            comm.start_mean(&Tensor::ones([1 << 19], (kind, Device::Cpu)))?;
        }
        comm.finish()?;
    }
    Ok(())
}

/// An allocation of this many bytes is unmapped as soon as it is freed, so that a later access crashes.
const UNMAPPED_BYTES: i64 = 64 << 20;

/// The operation that `start` starts fails, and the caller drops its buffer while it is in progress.
pub fn failed(world: &World, start: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
    let buffer = Tensor::ones([UNMAPPED_BYTES / 4], tch::kind::FLOAT_CPU);
    let outcome = start(&buffer);
    drop(buffer);
    // Longer than the delay of the operation.
    std::thread::sleep(Duration::from_millis(500));
    world.communicator().barrier()?;
    outcome
}

/// By the GPU's clock a reduction starts as soon as its own gradients are ready, not when all are.
pub fn traced(world: &World, double: &Double) -> Result<()> {
    let comm = world.communicator();
    assert!(comm.take_trace()?.is_none());
    let buffers =
        [content(comm.rank(), 1, 300_000, Kind::Float), content(comm.rank(), 2, 300_000, Kind::Float)];
    comm.start_trace()?;
    for buffer in &buffers {
        double.enqueue(|| std::thread::sleep(Duration::from_millis(100)));
        comm.start_mean(buffer)?;
    }
    // The last part of backward runs until the last mean is complete.
    let (at, before) = (buffers[1].data_ptr() as usize, buffers[1].double_value(&[299_999]));
    double.enqueue(move || {
        let since = Instant::now();
        // SAFETY: a float of a tensor that lives until the end of the scenario; the double writes it concurrently.
        let now = || f64::from(unsafe { (at as *const f32).add(299_999).read_volatile() });
        while now() == before && since.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(100));
    });
    let overlapped = comm.finish()?;
    // In the second step the last rank is late, so that the means outlast the backward passes of the others.
    let late = comm.rank() + 1 == comm.size();
    if late {
        double.enqueue(|| std::thread::sleep(Duration::from_millis(300)));
    }
    for buffer in &buffers {
        comm.start_mean(buffer)?;
    }
    let exposed = comm.finish()?;
    let trace = comm.take_trace()?.expect("a trace");
    assert_eq!((trace.reductions.len(), trace.backward_ends_ms.len()), (4, 2));
    let end = trace.backward_ends_ms[0];
    for (number, reduction) in trace.reductions[..2].iter().enumerate() {
        assert_eq!(reduction.step, 0);
        assert!(reduction.from_ms >= 90.0 * (number + 1) as f64, "{number} started too early: {trace:?}");
        assert!(reduction.to_ms + 90.0 <= end, "no overlap: {trace:?}");
    }
    for reduction in &trace.reductions {
        // The double starts each work item 1 ms late.
        assert!(reduction.from_ms + 0.9 <= reduction.to_ms, "too short: {trace:?}");
    }
    let [first, second] = &trace.reductions[2..] else { unreachable!("4 in all") };
    assert_eq!([first.step, second.step], [1, 1]);
    assert!(second.from_ms >= first.to_ms, "concurrent reductions: {trace:?}");
    assert!(late || first.to_ms >= trace.backward_ends_ms[1] + 100.0, "backward waited: {trace:?}");
    // Nothing waited for what had travelled meanwhile; the ranks that were not late waited for the one that was.
    let (overlapped, exposed) = (overlapped.ms()?, exposed.ms()?);
    assert!(overlapped < 50.0, "{overlapped} ms: {trace:?}");
    assert!(if late { exposed < 200.0 } else { exposed > 200.0 }, "{exposed} ms: {trace:?}");
    Ok(comm.barrier()?)
}

/// A timed copy on a side stream, for which stream 0 waits.
pub fn time(world: &World, double: &Double) -> Result<()> {
    let context = world.context().expect("a GPU");
    let (zero, side) = (Stream::legacy(context), Stream::new(context)?);
    let [start, end] = [Event::timed(context)?, Event::timed(context)?];
    let copied = Event::new(context)?;
    let (from, between, to) = (
        content(0, 1, 5_000, Kind::Float),
        content(0, 2, 5_000, Kind::Float),
        content(0, 3, 5_000, Kind::Float),
    );
    start.record(&zero)?;
    // SAFETY: both tensors have 20,000 bytes and live until the end of the scenario.
    unsafe { side.copy_to_gpu(between.data_ptr(), from.data_ptr(), 20_000)? };
    copied.record(&side)?;
    zero.wait(&copied)?;
    double.copy(&to, &between);
    end.record(&zero)?;
    assert!(!end.is_done()? && end.ms_since(&start).is_err());
    end.synchronize()?;
    assert!(end.is_done()? && copied.is_done()?);
    assert!(end.ms_since(&start)? > 0.0);
    assert_eq!(bytes_of(&to), bytes_of(&from));
    Ok(())
}

/// A training loop that reads the loss at the end of every step. `TEST_ABSENT=N`: the last rank does not reach step N.
pub fn steps(world: &World, double: &Double) -> Result<()> {
    let comm = world.communicator();
    let absent = std::env::var("TEST_ABSENT").ok().and_then(|step| step.parse().ok());
    if absent.is_some() {
        world.start_heartbeats(Duration::from_secs(10))?;
    }
    let [weights, buffer] = [10, 1_000].map(|length| Tensor::zeros([length], tch::kind::FLOAT_CPU));
    // GPU memory is reused in stream order, the double's immediately: keep the buffers in case this ends early.
    [&weights, &buffer].into_iter().for_each(|tensor| std::mem::forget(tensor.shallow_clone()));
    comm.broadcast(&weights, 0)?;
    for step in 1..=12 {
        phase::set_step(step);
        phase::enter(Phase::Backward);
        if absent == Some(step) && comm.rank() + 1 == comm.size() {
            std::thread::sleep(Duration::from_secs(60));
        }
        comm.start_mean(&buffer)?;
        comm.finish()?;
        phase::enter(Phase::Optimiser);
        double.synchronize();
        // Gives the watchdog time for a check.
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

/// Ranks have models of different sizes.
pub fn lengths(world: &World) -> Result<()> {
    let comm = world.communicator();
    let length = if comm.rank() == 0 { 1_000 } else { 999 };
    comm.start_mean(&Tensor::zeros([length], tch::kind::FLOAT_CPU))?;
    comm.finish()?;
    Ok(())
}

/// Ranks whose means differ in a later step, although each mean is known to all of them: the comparison is deferred.
pub fn later_lengths(world: &World) -> Result<()> {
    let comm = world.communicator();
    let buffer = Tensor::zeros([1_000], tch::kind::FLOAT_CPU);
    // The double does not order the reuse of memory after its streams.
    std::mem::forget(buffer.shallow_clone());
    let reduce = |length: i64| -> Result<()> {
        comm.start_mean(&buffer.narrow(0, 0, length))?;
        comm.finish()?;
        Ok(())
    };
    (0..4).try_for_each(|step| reduce(999 + step % 2))?;
    reduce(if comm.rank() == 0 { 999 } else { 1_000 })?;
    println!("not detected yet");
    reduce(1_000)
}

/// The last rank is asked to stop in step 3; all ranks stop after the same step.
pub fn stop(world: &World) -> Result<()> {
    let comm = world.communicator();
    let buffer = Tensor::zeros([100], tch::kind::FLOAT_CPU);
    // The double does not order the reuse of memory after its streams.
    std::mem::forget(buffer.shallow_clone());
    for step in 1..=20 {
        if step == 3 && comm.rank() + 1 == comm.size() {
            // SAFETY: signals this process; no pointers are involved.
            unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) };
            std::thread::sleep(Duration::from_millis(300));
        }
        for _ in 0..2 {
            comm.start_mean(&buffer)?;
            comm.finish()?;
        }
        if comm.stop_requested() {
            println!("stopped after step {step}");
            world.exit_stopped();
        }
    }
    Ok(())
}

/// Rank 1 drops the world during a reduction.
pub fn dropped(world: World) {
    let comm = world.communicator();
    comm.start_mean(&Tensor::zeros([100_000], tch::kind::FLOAT_CPU)).unwrap();
    if comm.rank() != 1 {
        let outcome = comm.finish();
        let _ = world.end(outcome);
    }
}

pub fn gpu(world: &World) -> Result<()> {
    let (free, total) = world.context().map_or(Ok((0, 0)), |context| context.memory_bytes())?;
    assert!(free <= total);
    println!(
        "rank {} has {} on {:?}, {} GiB",
        world.rank(),
        world.gpu().map_or("nothing", |gpu| &gpu.bus_id),
        world.device(),
        total >> 30
    );
    Ok(())
}

/// A whole search, except that its tensors are on the CPU. Stream 0 is the host: libtorch computes on the CPU.
pub fn search(world: &World) -> Result<()> {
    let words = std::env::var("TEST_WORDS").unwrap();
    let cli::Command::SearchImagenet(args) = Cli::parse_from(words.split(' ')).command else {
        panic!("not a search: {words}");
    };
    let config: Config = args.run.settings(drnas_dist::config::published::IMAGENET, &[])?;
    drnas_dist::run::search::search(&config, &args, None, world)
}

/// Uploads batches of several sizes, with and without holes, and compares them with the CPU path. Stream 0 is the host.
pub fn uploads(world: &World) -> Result<()> {
    let (mean, std) = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]);
    let mut gpu = Upload::to_gpu(&mean, &std, Device::Cpu, world.context().expect("a GPU"));
    let mut plain = Upload::new(&mean, &std, Device::Cpu);
    for step in 0..12u32 {
        let mut batch = Batch::synthetic([6, 6, 9, 4][step as usize % 4], 16, 10);
        batch.images = batch.images.bitwise_xor(i64::from(step) * 7);
        batch.labels += i64::from(step);
        if step % 3 == 1 {
            let hole = |n| Rect { left: n % 5, top: (n + step) % 7, width: 4, height: 3 };
            batch.holes = (0..batch.labels.size()[0] as u32).map(hole).collect();
        }
        let (ours, theirs) = (gpu.input(&batch)?, plain.input(&batch)?);
        // Compares values, not bits: 0 times a negative number is -0.
        assert!(ours.0.eq_tensor(&theirs.0).all().int64_value(&[]) == 1, "images of step {step}");
        assert!(ours.1.equal(&theirs.1), "labels of step {step}");
    }
    Ok(())
}

/// The order of the two staging slots: stream 0 reads late and must still see the batch of its step.
pub fn slots(world: &World, double: &Double) -> Result<()> {
    let batch = |step: i64| {
        let images = Tensor::full([64, 3, 8, 8], step + 1, (Kind::Uint8, Device::Cpu));
        (images, Tensor::full([64, 1], 100 + step, (Kind::Int64, Device::Cpu)))
    };
    let (images, facts) = batch(0);
    let context = world.context().expect("a GPU");
    let mut staging = Staging::new(context, Device::Cpu, &[&images, &facts])?;
    let mut read = Vec::new();
    for step in 0..10 {
        let (images, facts) = batch(step);
        let copies = (images.zeros_like(), facts.zeros_like());
        staging.transfer(&[&images, &facts], |images, facts| {
            double.copy(&copies.0, images);
            double.copy(&copies.1, facts);
        })?;
        read.push(copies);
    }
    double.synchronize();
    for (step, (images, facts)) in read.iter().enumerate() {
        let (expected_images, expected_facts) = batch(step as i64);
        assert!(images.equal(&expected_images) && facts.equal(&expected_facts), "step {step}: {facts}");
    }
    Ok(())
}

/// The staging buffer is dropped while one copy is in progress, after the other has failed.
pub fn failed_copy(world: &World) -> Result<()> {
    let images = Tensor::ones([1, UNMAPPED_BYTES], (Kind::Uint8, Device::Cpu));
    let facts = Tensor::ones([1, 1], tch::kind::INT64_CPU);
    let context = world.context().expect("a GPU");
    let outcome =
        Staging::new(context, Device::Cpu, &[&images, &facts])?.transfer(&[&images, &facts], |_, _| ());
    // Longer than the delay of the copy.
    std::thread::sleep(Duration::from_millis(500));
    Ok(outcome?)
}
