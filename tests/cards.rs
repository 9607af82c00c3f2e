//! Ranks with a card each, on the double of CUDA and NCCL (tests/double): order, numbers, faults. No GPU is used.
//!
//! The tests start this very program again under mpirun; `rank_program` is what each rank then runs. Tensors are in host
//! memory; what libtorch does on a card, work on stream 0, is given to the double, which runs it late.

use drnas_dist::cli::{self, Cli};
#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod bench;

use bench::{Bench, assert_same_end};
use clap::Parser;
use drnas_dist::comm::Communicator;
use drnas_dist::config::{DeviceChoice, Reduce};
use drnas_dist::data::augment::Rect;
use drnas_dist::data::upload::Staging;
use drnas_dist::data::{Batch, Upload};
use drnas_dist::launch::{Devices, World};
use drnas_dist::whereabouts::{self, Phase};
use drnas_dist::{Config, Result};
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

const SCENE: &str = "DRNAS_TEST_SCENE";
/// Time limit of the scenes in which something never ends.
const LIMIT: Duration = Duration::from_secs(3);
/// Time limit of the others: a busy machine must not fail them.
const PATIENCE: Duration = Duration::from_secs(100);

// -- what a rank does -----------------------------------------------------------------------------

#[test]
#[ignore = "the other tests start it under mpirun"]
fn rank_program() {
    let Ok(scene) = std::env::var(SCENE) else {
        return;
    };
    let flag = |name: &str| std::env::var_os(name).is_some();
    let devices = Devices {
        choice: if flag("TEST_AUTO") { DeviceChoice::Auto } else { DeviceChoice::Cuda },
        share_gpu: flag("TEST_SHARE"),
        reduce: if scene == "bf16" { Reduce::Bf16 } else { Reduce::Fp32 },
        tensors: Some(if scene == "elsewhere" { Device::Cuda(0) } else { Device::Cpu }),
    };
    let limit = if flag("TEST_IMPATIENT") { LIMIT } else { PATIENCE };
    if scene == "doctor" {
        return drnas_dist::doctor::run(limit, None).unwrap();
    }
    if flag("TEST_CROSSED") && std::env::var("OMPI_COMM_WORLD_RANK").is_ok_and(|rank| rank == "1") {
        // SAFETY: no other thread of this process runs yet that reads the environment.
        unsafe { std::env::set_var("CUDA_VISIBLE_DEVICES", "1,0") };
    }
    let started = match scene.as_str() {
        "by-mpi" => World::start(limit, Some(1)),
        _ => World::start_on(devices, limit, Some(1)),
    };
    let world = match started {
        Ok(world) => world,
        Err(why) => {
            eprintln!("{why}");
            std::process::exit(2);
        }
    };
    let outcome = match scene.as_str() {
        "by-mpi" => means(&world, None),
        "means" => means(&world, Some(&Double::open())),
        "broadcasts" => broadcasts(&world, &Double::open()),
        "others" => others(&world),
        "elsewhere" => elsewhere(&world),
        "bf16" => in_bf16(&world),
        "ahead" => ahead(&world, &Double::open()),
        "groups" => groups(&world, &Double::open()),
        "steps" => steps(&world, &Double::open()),
        "lengths" => lengths(&world),
        "dropped" => return dropped(world),
        "card" => card(&world),
        "uploads" => uploads(&world),
        "slots" => slots(&world, &Double::open()),
        "search" => search(&world),
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

/// Stream 0 of the double.
struct Double {
    enqueue: unsafe extern "C" fn(*mut c_void, extern "C" fn(*mut c_void), *mut c_void),
    synchronize: unsafe extern "C" fn(*mut c_void),
}

impl Double {
    fn open() -> Double {
        // SAFETY: the double is open already; the types are those of double.h.
        unsafe {
            let library = libloading::Library::new("libcuda.so.1").unwrap();
            let double = Double {
                enqueue: *library.get(b"double_enqueue\0").expect("this is no double"),
                synchronize: *library.get(b"double_synchronize\0").unwrap(),
            };
            std::mem::forget(library);
            double
        }
    }

    /// Work of libtorch: `work` runs late, in order.
    fn give(&self, work: impl FnOnce() + 'static) {
        extern "C" fn run(argument: *mut c_void) {
            // SAFETY: what `give` made below, once.
            let work = unsafe { Box::from_raw(argument.cast::<Box<dyn FnOnce()>>()) };
            work();
        }
        let boxed: Box<Box<dyn FnOnce()>> = Box::new(Box::new(work));
        // SAFETY: a function and its argument, which runs once.
        unsafe { (self.enqueue)(std::ptr::null_mut(), run, Box::into_raw(boxed).cast()) }
    }

    /// A copy on stream 0. Both tensors live until `synchronize`.
    fn copy(&self, to: &Tensor, from: &Tensor) {
        let bytes = from.numel() * from.kind().elt_size_in_bytes();
        let (to, from) = (to.data_ptr() as usize, from.data_ptr() as usize);
        // SAFETY: two tensors of that size that the scene keeps.
        self.give(move || unsafe {
            std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
        });
    }

    /// What `.item()` does: the host waits for stream 0.
    fn synchronize(&self) {
        // SAFETY: the legacy stream.
        unsafe { (self.synchronize)(std::ptr::null_mut()) }
    }
}

/// What `rank` gives to reduction `bucket`: not exact in f32, different everywhere.
fn content(rank: usize, bucket: usize, length: i64, kind: Kind) -> Tensor {
    let places = Tensor::arange(length, (Kind::Double, Device::Cpu));
    (places * (0.37 + bucket as f64) + (1 + rank) as f64 * 1.7).sin().to_kind(kind)
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// Largest distance of `mean` from the mean over `size` ranks.
fn off(mean: &Tensor, size: usize, content: impl Fn(usize) -> Tensor) -> f64 {
    if mean.numel() == 0 {
        return 0.0;
    }
    let zero = mean.to_kind(Kind::Double).zeros_like();
    let sum = (0..size).map(|rank| content(rank).to_kind(Kind::Double)).fold(zero, |sum, one| sum + one);
    (mean.to_kind(Kind::Double) - sum / size as f64).abs().max().double_value(&[])
}

/// Fails unless every rank has the same bytes.
fn same_everywhere(comm: &dyn Communicator, tensor: &Tensor) -> Result<()> {
    let hash = xxhash_rust::xxh3::xxh3_64(&bytes_of(tensor)).to_le_bytes();
    assert!(comm.all_gather(&hash)?.iter().all(|other| *other == hash), "ranks differ");
    Ok(())
}

/// Gradients are written by stream 0, averaged, and read by stream 0, again and again in the same buffers: every wait that
/// is missing shows. Without a double (MPI) the host does the same at once. Prints a hash of all means.
fn means(world: &World, double: Option<&Double>) -> Result<()> {
    let comm = world.communicator();
    let shapes = [
        (1_000, Kind::Float),
        (1, Kind::Float),
        (0, Kind::Float),
        (300_000, Kind::Float), // more than a group takes, and than the double sends at once
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
        // The next step's gradients come into the same buffers.
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
            let far = off(result, comm.size(), |rank| content(rank, bucket + 7 * round, length, kind));
            let allowed = if kind == Kind::Float { 3e-7 } else { 1e-15 };
            assert!(far <= allowed, "round {round}, bucket {bucket}: {far:e} from the mean");
            same_everywhere(comm, result)?;
            bytes.extend(bytes_of(result));
        }
    }
    println!("hash {:016x}", xxhash_rust::xxh3::xxh3_64(&bytes));
    Ok(())
}

/// Broadcasts of all kinds, between two late pieces of work of stream 0.
fn broadcasts(world: &World, double: &Double) -> Result<()> {
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

/// What is on the host; what cannot be sent.
fn others(world: &World) -> Result<()> {
    let comm = world.communicator();
    let (rank, size) = (comm.rank(), comm.size());
    let told = comm.all_gather(&[rank as u8, 7])?;
    assert_eq!(told, (0..size).map(|rank| vec![rank as u8, 7]).collect::<Vec<_>>());
    comm.barrier()?;
    let said = |outcome: Result<()>| outcome.unwrap_err().to_string();
    let turned = Tensor::zeros([3, 4], tch::kind::FLOAT_CPU).tr();
    assert!(said(comm.start_mean(&turned)).contains("contiguous tensor expected"));
    assert!(said(comm.broadcast(&turned, 0)).contains("contiguous tensor expected"));
    let whole = Tensor::zeros([3], tch::kind::INT64_CPU);
    assert!(said(comm.start_mean(&whole)).contains("kind Float or Double expected, Int64 found"));
    assert!(said(comm.broadcast(&whole, 9)).contains("root below"));
    comm.finish()?;
    comm.barrier()
}

/// Tensors of another device.
fn elsewhere(world: &World) -> Result<()> {
    let comm = world.communicator();
    let here = Tensor::zeros([3], tch::kind::FLOAT_CPU);
    let said = |outcome: Result<()>| outcome.unwrap_err().to_string();
    assert_eq!(said(comm.start_mean(&here)), "mean: a tensor on Cuda(0) expected, Cpu found");
    assert_eq!(said(comm.broadcast(&here, 0)), "broadcast: a tensor on Cuda(0) expected, Cpu found");
    Ok(())
}

/// In bf16 means are means of rounded numbers, back in float32. Stream 0 is the host here: libtorch makes the copies.
fn in_bf16(world: &World) -> Result<()> {
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
            let far = off(mean, comm.size(), content);
            assert!(far < 0.01, "{far} from the mean");
            assert!(far > 1e-4, "{far}: nothing was rounded");
            let rounded = mean.to_kind(Kind::BFloat16).to_kind(Kind::Float);
            assert_eq!(bytes_of(&rounded), bytes_of(mean));
            same_everywhere(comm, mean)?;
        }
        assert!(off(&exact, comm.size(), |rank| content(rank, 50, 1_000, Kind::Double)) <= 1e-15);
    }
    Ok(())
}

/// The host and stream 0 go on while a reduction waits for another rank; only what comes after `finish` waits.
fn ahead(world: &World, double: &Double) -> Result<()> {
    static PASSED: AtomicBool = AtomicBool::new(false);
    let comm = world.communicator();
    let buffer = Tensor::full([1 << 19], comm.rank() as f64, tch::kind::FLOAT_CPU);
    let reduce = || {
        comm.start_mean(&buffer)?;
        comm.finish()
    };
    // The first time, descriptions are compared.
    reduce()?;
    if comm.rank() > 0 {
        comm.barrier()?;
        reduce()?;
        double.synchronize();
        return comm.barrier();
    }
    comm.start_mean(&buffer)?;
    double.give(|| PASSED.store(true, Ordering::Release));
    let since = Instant::now();
    while !PASSED.load(Ordering::Acquire) {
        assert!(since.elapsed() < Duration::from_secs(10), "stream 0 waits for the communication stream");
        std::thread::sleep(Duration::from_millis(1));
    }
    comm.finish()?;
    static AFTER: AtomicBool = AtomicBool::new(false);
    double.give(|| AFTER.store(true, Ordering::Release));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!AFTER.load(Ordering::Acquire), "what comes after finish did not wait");
    println!("the host is ahead");
    comm.barrier()?;
    double.synchronize();
    assert!(AFTER.load(Ordering::Acquire));
    comm.barrier()
}

/// Small buffers are handed over together, and those that have come before a large one with it.
fn groups(world: &World, double: &Double) -> Result<()> {
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
        assert!(off(mean, comm.size(), |rank| content(rank, bucket, 100, Kind::Float)) <= 3e-7);
    }
    assert!(off(&large, comm.size(), |rank| content(rank, 9, 300_000, Kind::Float)) <= 3e-7);
    Ok(())
}

/// A loop as a training has it, with a loss that is read at the end of every step. `TEST_ABSENT=N`: the last rank does not
/// come to step N.
fn steps(world: &World, double: &Double) -> Result<()> {
    let comm = world.communicator();
    let absent = std::env::var("TEST_ABSENT").ok().and_then(|step| step.parse().ok());
    let weights = Tensor::zeros([10], tch::kind::FLOAT_CPU);
    comm.broadcast(&weights, 0)?;
    let buffer = Tensor::zeros([1_000], tch::kind::FLOAT_CPU);
    for step in 1..=12 {
        whereabouts::set_step(step);
        whereabouts::enter(Phase::Backward);
        if absent == Some(step) && comm.rank() + 1 == comm.size() {
            std::thread::sleep(Duration::from_secs(60));
        }
        comm.start_mean(&buffer)?;
        comm.finish()?;
        whereabouts::enter(Phase::Optimiser);
        double.synchronize();
        // The watchdog looks from time to time.
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

/// Ranks with models of different sizes.
fn lengths(world: &World) -> Result<()> {
    let comm = world.communicator();
    let length = if comm.rank() == 0 { 1_000 } else { 999 };
    comm.start_mean(&Tensor::zeros([length], tch::kind::FLOAT_CPU))?;
    comm.finish()
}

/// One rank drops the world in the middle of a reduction.
fn dropped(world: World) {
    let comm = world.communicator();
    comm.start_mean(&Tensor::zeros([100_000], tch::kind::FLOAT_CPU)).unwrap();
    if comm.rank() != 1 {
        let outcome = comm.finish();
        let _ = world.end(outcome);
    }
}

fn card(world: &World) -> Result<()> {
    let (free, total) = world.context().map_or(Ok((0, 0)), |context| context.memory_bytes())?;
    assert!(free <= total);
    println!(
        "rank {} has {} on {:?}, {} GiB",
        world.rank(),
        world.card().map_or("nothing", |card| &card.bus_id),
        world.device(),
        total >> 30
    );
    Ok(())
}

/// The whole program, but for the device of its tensors. Stream 0 is the host: libtorch computes on the CPU.
fn search(world: &World) -> Result<()> {
    let words = std::env::var("TEST_WORDS").unwrap();
    let cli::Command::SearchImagenet(args) = Cli::parse_from(words.split(' ')).command else {
        panic!("{words} is no search");
    };
    let config: Config = args.run.settings(drnas_dist::config::published::IMAGENET, &[])?;
    drnas_dist::run::search::search(&config, &args, None, world)
}

/// Batches with and without holes, large and small, come to a card as they are on the CPU. Stream 0 is the host.
fn uploads(world: &World) -> Result<()> {
    let (mean, std) = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]);
    let mut card = Upload::to_card(&mean, &std, Device::Cpu, world.context().expect("a card"));
    let mut plain = Upload::new(&mean, &std, Device::Cpu);
    for step in 0..12u32 {
        let mut batch = Batch::synthetic([6, 6, 9, 4][step as usize % 4], 16, 10);
        batch.images = batch.images.bitwise_xor(i64::from(step) * 7);
        batch.labels += i64::from(step);
        if step % 3 == 1 {
            let hole = |n| Rect { left: n % 5, top: (n + step) % 7, width: 4, height: 3 };
            batch.holes = (0..batch.labels.size()[0] as u32).map(hole).collect();
        }
        let (ours, theirs) = (card.input(&batch)?, plain.input(&batch)?);
        // 0 times a negative number is -0, which equals 0.
        assert!(ours.0.eq_tensor(&theirs.0).all().int64_value(&[]) == 1, "images of step {step}");
        assert!(ours.1.equal(&theirs.1), "labels of step {step}");
    }
    Ok(())
}

/// The order of the two slots: what stream 0 reads late is what was given to it.
fn slots(world: &World, double: &Double) -> Result<()> {
    let batch = |step: i64| {
        let images = Tensor::full([64, 3, 8, 8], step + 1, (Kind::Uint8, Device::Cpu));
        (images, Tensor::full([64, 1], 100 + step, (Kind::Int64, Device::Cpu)))
    };
    let (images, facts) = batch(0);
    let context = world.context().expect("a card");
    let mut staging = Staging::new(context, Device::Cpu, &[&images, &facts])?;
    let mut read = Vec::new();
    for step in 0..10 {
        let (images, facts) = batch(step);
        let copies = (images.zeros_like(), facts.zeros_like());
        staging.pass(&[&images, &facts], |images, facts| {
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

// -- the tests ------------------------------------------------------------------------------------

/// The folder of the double, compiled with `options`: once for all runs of the tests.
fn compiled(options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/double");
    let mut text: Vec<u8> = options.concat().into_bytes();
    for file in ["double.h", "cuda.c", "nccl.c"] {
        text.extend(std::fs::read(source.join(file)).unwrap());
    }
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = all.join(format!("double-{:016x}", xxhash_rust::xxh3::xxh3_64(&text)));
    if folder.exists() {
        return folder;
    }
    let fresh = tempfile::tempdir_in(all).unwrap();
    let compile = |file: &str, library: &str, more: &[&str]| {
        let status = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
            .current_dir(fresh.path())
            .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"])
            .arg(format!("-Wl,-soname,{library}"))
            .args(["-o", library])
            .arg(source.join(file))
            .args(options)
            .args(more)
            .status();
        assert!(status.expect("the double needs a C compiler").success(), "{file} does not compile");
    };
    compile("cuda.c", "libcuda.so.1", &["-lpthread"]);
    compile("nccl.c", "libnccl.so.2", &["./libcuda.so.1", "-Wl,-rpath,$ORIGIN"]);
    // Another run of the tests may have been faster.
    if std::fs::rename(fresh.path(), &folder).is_ok() {
        let _ = fresh.keep();
    }
    folder
}

/// The folder of the whole double.
fn double() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| compiled(&[]))
}

struct Ended {
    output: String,
    code: Option<i32>,
    wall: Duration,
}

/// This program in `scene` on the double in `folder`, under mpirun with `size` ranks, or alone for 0.
fn run_on(folder: &Path, scene: &str, size: usize, variables: &[(&str, &str)]) -> Ended {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("native/bin/mpirun");
    let mpirun = if local.exists() { local } else { "mpirun".into() };
    let tmp = tempfile::tempdir().unwrap();
    // Nothing here may hang: `timeout` ends what does.
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=5", "150"]);
    if size > 0 {
        command.arg(mpirun).args(["--bind-to", "none", "-n", &size.to_string()]);
    }
    for name in ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMI_RANK"] {
        command.env_remove(name);
    }
    command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "rank_program", "--ignored", "--nocapture", "--test-threads=1"])
        .env(SCENE, scene)
        .env("LD_LIBRARY_PATH", folder)
        .env("DRNAS_NCCL", folder.join("libnccl.so.2"))
        .env("TMPDIR", tmp.path())
        .env("OMPI_MCA_btl_sm_backing_directory", tmp.path())
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env_remove("NCCL_MULTI_RANK_GPU_ENABLE")
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    let started = Instant::now();
    let output = command.output().expect("mpirun is not there: launch/setup.sh installs it");
    let text = [output.stdout, output.stderr].concat();
    Ended {
        output: String::from_utf8_lossy(&text).into_owned(),
        code: output.status.code(),
        wall: started.elapsed(),
    }
}

fn good(scene: &str, size: usize, variables: &[(&str, &str)]) -> Ended {
    let ended = run_on(double(), scene, size, variables);
    assert_eq!(ended.code, Some(0), "{scene} on {size} {variables:?}: {}", ended.output);
    assert_eq!(ended.output.matches("good end").count(), size.max(1), "{}", ended.output);
    ended
}

/// Ends with an error, `expected` in its words, and not by giving up on time.
fn bad_on(folder: &Path, scene: &str, size: usize, variables: &[(&str, &str)], expected: &[&str]) -> Ended {
    let ended = run_on(folder, scene, size, variables);
    let output = &ended.output;
    assert!(!matches!(ended.code, Some(0 | 124 | 137)), "{scene} {variables:?} {:?}: {output}", ended.code);
    for text in expected {
        assert!(output.contains(text), "{scene} {variables:?}: no {text:?} in: {output}");
    }
    assert!(!output.contains("panicked"), "{scene} {variables:?}: {output}");
    assert!(ended.wall < Duration::from_secs(30), "{scene} {variables:?} {:?}: {output}", ended.wall);
    ended
}

fn bad(scene: &str, size: usize, variables: &[(&str, &str)], expected: &[&str]) -> Ended {
    bad_on(double(), scene, size, variables, expected)
}

/// One after the other of the two streams is the later one: what does not wait for it is found out.
const LATE: [[(&str, &str); 2]; 2] = [
    [("DOUBLE_LATE_LEGACY_US", "20000"), ("DOUBLE_LATE_US", "0")],
    [("DOUBLE_LATE_LEGACY_US", "0"), ("DOUBLE_LATE_US", "20000")],
];

#[test]
fn means_are_in_order_and_those_of_mpi_on_2_and_4_ranks() {
    for size in [2, 4] {
        let hash = |ended: Ended| {
            let at = ended.output.find("hash ").expect("a hash");
            ended.output[at..at + 21].to_string()
        };
        let by_mpi = hash(good("by-mpi", size, &[]));
        for late in LATE {
            assert_eq!(hash(good("means", size, &late)), by_mpi, "{late:?}");
        }
    }
}

#[test]
fn broadcasts_are_in_order() {
    for late in LATE {
        good("broadcasts", 2, &late);
    }
    good("broadcasts", 4, &[]);
}

#[test]
fn what_is_on_the_host_goes_by_mpi_and_what_cannot_be_sent_is_refused() {
    good("others", 2, &[]);
    good("elsewhere", 2, &[]);
}

#[test]
fn gradients_travel_in_bf16_on_demand() {
    for size in [2, 4] {
        good("bf16", size, &[("DOUBLE_LEGACY", "host"), ("DOUBLE_LATE_US", "5000")]);
    }
}

#[test]
fn neither_host_nor_stream_0_waits_for_other_ranks() {
    let ended = good("ahead", 2, &[]);
    assert!(ended.output.contains("the host is ahead"), "{}", ended.output);
}

#[test]
fn small_buffers_share_a_group() {
    good("groups", 2, &[]);
    // Two groups: what came up to the large buffer, and the rest; a third is never begun.
    good("groups", 2, &[("DOUBLE_FAIL", "ncclGroupStart:3")]);
    bad("groups", 2, &[("DOUBLE_FAIL", "ncclGroupStart:2")], &["ncclGroupStart"]);
    bad("groups", 2, &[("DOUBLE_FAIL", "ncclAllReduce:8")], &["ncclAllReduce"]);
}

#[test]
fn a_search_is_the_one_of_mpi_bit_for_bit() {
    let bench = Bench::get();
    let by_mpi = bench.searched(2, "by-mpi", &[]);
    let path = |name: &str| bench.path(name).display().to_string();
    let words = format!(
        "drnas-dist search-imagenet --config {} --train {} --valid {} --out {}",
        path("search.toml"),
        path("train"),
        path("valid"),
        path("by-nccl")
    );
    good("search", 2, &[("TEST_WORDS", &words), ("DOUBLE_LEGACY", "host"), ("DOUBLE_LATE_US", "300")]);
    assert_same_end(&bench.run("by-nccl"), &by_mpi);
    // Of the double's 80 GiB half is in use.
    let log = std::fs::read_to_string(bench.path("by-nccl").join("metrics.jsonl")).unwrap();
    assert!(log.contains(r#""card_memory_mib":40960.0"#), "{log}");
}

/// The real program, without a driver and with the double's. (Without libtorch's CUDA libraries it comes no further; what it
/// says of NCCL is tested above.)
#[test]
fn the_program_says_what_to_do_where_there_is_no_card() {
    // SAFETY: the driver's library runs no code of ours when opened.
    if unsafe { libloading::Library::new("libcuda.so.1") }.is_ok() {
        println!("skipped: this machine has a driver");
        return;
    }
    let bench = Bench::get();
    let cuda = ["--set", "device=cuda"];
    let said = |command: Command| {
        let output = bench::finish(command, PATIENCE);
        assert!(!output.status.success());
        bench::said(&output)
    };
    let text = said(bench.search(2, "none", &cuda));
    let told = "device = \"cuda\": no GPU can be used on ";
    assert!(text.contains(told) && text.contains("no NVIDIA driver (libcuda.so.1: cannot open"), "{text}");
    assert!(text.contains("; install the NVIDIA driver, or compute there with --set device=cpu"), "{text}");
    let torch = drnas_dist::cuda::mapped("libtorch_cpu.so").expect("this program is linked with it");
    let complete = torch.ancestors().nth(3).is_some_and(|packages| packages.join("nvidia/cudnn").exists());
    if !torch.with_file_name("libtorch_cuda.so").exists() || complete {
        println!("skipped: libtorch has no CUDA half, or all that it needs");
        return;
    }
    let mut command = bench.search(2, "none", &cuda);
    command.env("LD_LIBRARY_PATH", double());
    let text = said(command);
    assert!(text.contains(told) && text.contains("libtorch cannot use CUDA (lib"), "{text}");
    assert!(text.contains("run launch/setup.sh on this machine"), "{text}");
}

#[test]
fn each_rank_has_a_card_of_its_own() {
    let output = good("card", 2, &[]).output;
    assert!(output.contains("rank 0 has 0000:10:00.0 on Cpu, 80 GiB"), "{output}");
    assert!(output.contains("rank 1 has 0000:11:00.0"), "{output}");
    let output = good("card", 0, &[("CUDA_VISIBLE_DEVICES", "5")]).output;
    assert!(output.contains("rank 0 has 0000:15:00.0"), "{output}");
}

#[test]
fn doctor_shows_cards_and_libraries_with_their_paths() {
    let ended = run_on(double(), "doctor", 2, &[("DOUBLE_CARDS", "2")]);
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    let folder = double().display();
    for line in [
        format!("CUDA driver    CUDA 13.0  {folder}/libcuda.so.1"),
        format!("NCCL           2.30.0  {folder}/libnccl.so.2"),
        "GPU 0 Double 0 (80 GiB) at 0000:10:00.0, GPU 1 Double 1 (80 GiB) at 0000:11:00.0".into(),
    ] {
        assert!(ended.output.contains(&line), "no {line:?} in: {}", ended.output);
    }
}

#[test]
fn too_few_cards_and_shared_ones_are_told() {
    let few =
        "3 ranks, but 2 GPUs; start at most one rank for each GPU, or let ranks share one with --share-gpu";
    bad("card", 3, &[("DOUBLE_CARDS", "2")], &[few]);
    bad("card", 3, &[("DOUBLE_CARDS", "2"), ("TEST_AUTO", "1")], &[few]);
    // Ranks that number the same cards differently.
    let two = ("DOUBLE_CARDS", "2");
    bad("card", 2, &[two, ("TEST_CROSSED", "1")], &["ranks 0 and 1 both have the card at 0000:10:00.0"]);
    let one = ("DOUBLE_CARDS", "1");
    let (share, allow) = (("TEST_SHARE", "1"), ("NCCL_MULTI_RANK_GPU_ENABLE", "1"));
    let cannot = "share the card at 0000:10:00.0 (--share-gpu): that needs NCCL 2.30.0 or newer and NCCL_MULTI_RANK_GPU_ENABLE=1";
    bad("card", 2, &[one, share], &[cannot, "this is NCCL 2.30.0"]);
    let old = ("DOUBLE_NCCL_VERSION", "22809");
    bad("card", 2, &[one, share, allow, old], &[cannot, "this is NCCL 2.28.9"]);
    good("means", 2, &[one, share, allow]);
}

#[test]
fn no_card_is_told_and_auto_is_then_the_cpu() {
    let none = ("DOUBLE_CARDS", "0");
    bad(
        "card",
        2,
        &[none],
        &["device = \"cuda\": no GPU can be used on ", "shows no card; see nvidia-smi, or compute"],
    );
    let hidden = ("CUDA_VISIBLE_DEVICES", "");
    bad("card", 0, &[hidden], &["shows no card with CUDA_VISIBLE_DEVICES=; change or unset it"]);
    let auto = ("TEST_AUTO", "1");
    let ended = good("card", 2, &[none, auto]);
    assert_eq!(
        ended.output.matches("note: device = \"auto\" is the CPU: the NVIDIA driver shows").count(),
        1
    );
    assert!(ended.output.contains("rank 1 has nothing on Cpu"), "{}", ended.output);
    // No driver at all: the folder of the double is not there.
    let nowhere = Path::new("/nonexistent");
    bad_on(
        nowhere,
        "card",
        0,
        &[],
        &["no NVIDIA driver (libcuda.so.1: cannot open", "; install the NVIDIA driver, or"],
    );
}

#[test]
fn a_missing_wrong_or_old_library_is_told() {
    let advice = "run launch/setup.sh on a machine with an NVIDIA driver, or name a file in DRNAS_NCCL";
    bad(
        "card",
        2,
        &[("DRNAS_NCCL", "/nonexistent/libnccl.so.2")],
        &["NCCL is not found", "/nonexistent/", advice],
    );
    // One rank with one card sends nothing and needs no NCCL.
    good("card", 0, &[("DRNAS_NCCL", "/nonexistent/libnccl.so.2")]);
    let other = double().join("libcuda.so.1");
    let other = other.to_str().unwrap();
    bad(
        "card",
        2,
        &[("DRNAS_NCCL", other)],
        &[other, "has no ncclGetVersion, so this NCCL is too old or another library", advice],
    );
    bad(
        "card",
        2,
        &[("DOUBLE_NCCL_VERSION", "21005")],
        &["NCCL 2.10.5 is too old, 2.18.0 or newer is needed", advice],
    );
    bad(
        "card",
        3,
        &[("DOUBLE_NCCL_VERSION_2", "22809")],
        &["rank 2 has NCCL 2.28.9, rank 0 has 2.30.0; give all hosts the same one"],
    );
}

#[test]
fn libraries_without_a_function_are_told() {
    for (symbol, ranks) in
        [("ncclBroadcast", 2), ("ncclGetLastError", 2), ("cuStreamWaitEvent", 0), ("cuGetErrorString", 0)]
    {
        let folder = compiled(&[&format!("-D{symbol}=another_{symbol}")]);
        bad_on(&folder, "card", ranks, &[], &[&format!("has no {symbol}")]);
    }
}

/// The first call of each kind that fails on one card ends the run with the call's name and the driver's words.
#[test]
fn an_error_of_any_call_of_the_driver_is_told() {
    for call in [
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetPCIBusId",
        "cuDeviceTotalMem",
        "cuDeviceGetUuid",
        "cuDevicePrimaryCtxRetain",
        "cuCtxSetCurrent",
        "cuMemGetInfo",
    ] {
        let fail = format!("{call}:1");
        let said = format!("{call}: unspecified launch failure (CUDA error 719)");
        bad("card", 0, &[("DOUBLE_FAIL", &fail)], &[&said]);
    }
    // An error for which the driver has no words.
    let wordless = [("DOUBLE_FAIL", "cuInit:1"), ("DOUBLE_WORDLESS", "1")];
    bad("card", 0, &wordless, &["cuInit: an error that it has no words for (CUDA error 719)"]);
    // A broadcast makes 3 events, records 3 times and waits twice.
    for (call, numbers) in [
        ("cuStreamCreate", 1..=1),
        ("cuEventCreate", 1..=3),
        ("cuEventRecord", 1..=3),
        ("cuStreamWaitEvent", 1..=2),
        ("cuEventQuery", 1..=1),
    ] {
        for number in numbers {
            let fail = format!("{call}:{number}");
            let said = format!("{call}: unspecified launch failure (CUDA error 719)");
            bad("steps", 2, &[("DOUBLE_FAIL", &fail), ("DOUBLE_RANK", "1")], &["rank 1 on ", &said]);
        }
    }
}

#[test]
fn an_error_of_any_call_of_nccl_is_told() {
    for call in ["ncclGetVersion", "ncclGetUniqueId", "ncclCommInitRank"] {
        let fail = format!("{call}:1");
        let said =
            format!("{call}: unhandled system error (NCCL error 2); NCCL_DEBUG=INFO makes NCCL say more");
        bad("card", 2, &[("DOUBLE_FAIL", &fail), ("DOUBLE_RANK", "0")], &["rank 0 on ", &said]);
    }
    for (call, at) in [
        ("ncclBroadcast", "step 0, start-up: broadcast of 10 Float from rank 0"),
        ("ncclGroupStart", "step 1, backward: all-reduce of 1 means of 1000 (1000 Float)"),
        ("ncclAllReduce", "step 1, backward: all-reduce of 1 means of 1000 (1000 Float)"),
        ("ncclGroupEnd", "step 1, backward: all-reduce of 1 means of 1000 (1000 Float)"),
        ("ncclCommGetAsyncError", "step "),
    ] {
        let fail = format!("{call}:1");
        let said = format!(": {call}: unhandled system error (NCCL error 2); look at the cards and links");
        bad("steps", 2, &[("DOUBLE_FAIL", &fail), ("DOUBLE_RANK", "1")], &["rank 1 on ", at, &said]);
    }
    // At the good end of a run nobody is left to be told.
    for call in ["ncclCommDestroy", "cuStreamDestroy", "cuEventDestroy"] {
        good("steps", 2, &[("DOUBLE_FAIL", &format!("{call}:1"))]);
    }
}

#[test]
fn an_asynchronous_error_is_told_with_its_step() {
    bad(
        "steps",
        2,
        &[("DOUBLE_LOST", "4"), ("DOUBLE_RANK", "1")],
        &[
            "rank 1 on ",
            ", step 3, backward: all-reduce of 1 means of 1000 (1000 Float): ncclCommGetAsyncError: remote process",
            "(NCCL error 6): the double lost its link; look at the cards and links of the hosts, then go on with",
        ],
    );
}

#[test]
fn what_never_ends_is_told_within_the_limit() {
    let impatient = ("TEST_IMPATIENT", "1");
    // A rank that does not come, while the host of the others waits for the card.
    bad(
        "steps",
        3,
        &[impatient, ("TEST_ABSENT", "5")],
        &[
            "rank 0 on ",
            ", step 5, backward: waited 3.",
            " s in all-reduce of 1 means of 1000 (1000 Float) and it does not end",
        ],
    );
    // Calls that never return: of the library, of the driver, of the watchdog itself; and the end.
    for (call, said) in [
        ("ncclCommInitRank:1", "step 0, start-up: waited 3."),
        ("ncclGroupEnd:6", "step 6, backward: waited 3."),
        ("cuEventQuery:9", "s in all-reduce of 1 means of 1000"),
        ("ncclCommGetAsyncError:3", "s in a"),
        ("ncclCommDestroy:1", "s in ncclCommDestroy and it does not end"),
    ] {
        bad("steps", 2, &[impatient, ("DOUBLE_HANG", call), ("DOUBLE_RANK", "1")], &["rank 1 on ", said]);
    }
}

#[test]
fn ranks_that_send_other_lengths_are_told_so() {
    let ended = bad(
        "lengths",
        2,
        &[],
        &["rank 0: finish of 1 means of 1000 (1000 Float); rank 1: finish of 1 means of 999 (999 Float)"],
    );
    assert!(ended.wall < PATIENCE / 2, "{:?}", ended.wall);
}

#[test]
fn a_world_dropped_with_means_under_way_ends_all() {
    bad("dropped", 2, &[], &["rank 1 on ", "operations under way"]);
}

// -- images on their way to a card ----------------------------------------------------------------

#[test]
fn batches_arrive_as_they_are() {
    good("uploads", 0, &[("DOUBLE_LEGACY", "host")]);
}

/// Copies late, readers late, both: no slot is written before it was read, none is read before it was written.
#[test]
fn slots_take_turns() {
    for late in [("DOUBLE_LATE_US", "15000"), ("DOUBLE_LATE_LEGACY_US", "15000")] {
        good("slots", 0, &[late]);
    }
    good("slots", 0, &[]);
}

#[test]
fn a_copy_that_fails_is_an_error() {
    bad_on(
        double(),
        "uploads",
        0,
        &[("DOUBLE_LEGACY", "host"), ("DOUBLE_FAIL", "cuMemcpyHtoDAsync:5")],
        &["cuMemcpyHtoDAsync"],
    );
}
