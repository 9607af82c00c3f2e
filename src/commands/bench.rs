//! `bench`: measures training steps on synthetic images: throughput, GPU reductions, CUDA runtime calls. The trained
//! weights are discarded.

use crate::cli::BenchArgs;
use crate::comm::{Communicator, Trace};
use crate::config::{self, Config, EvaluateConfig, Precision, Scheme, Settings};
use crate::console;
use crate::data::{Batch, Loader, LoaderSpec};
use crate::error::Result;
use crate::eval::Evaluation;
use crate::process::messages::counted;
use crate::report::append_json;
use crate::search::Search;
use crate::search::timeline::Timeline;
use crate::space::genotype::Genotype;
use crate::train;
use crate::train::tally::StepOutcome;
use crate::world::{World, with_world};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_uint, c_ulong};
use std::ops::Range;
use std::time::Instant;
use tch::Device;

/// Large enough that all steps are in the first epoch.
const STEPS_OF_DATA: u64 = 1 << 32;

/// Steps at the end whose reductions are traced.
const TRACED: usize = 2;

/// A training step.
type Step<'a> = Box<dyn FnMut(&dyn Communicator) -> Result<StepOutcome> + 'a>;

/// Result of a measurement, written as one JSON object.
#[derive(Debug, Serialize)]
struct BenchResult {
    /// "supernet, stage 1" or "network".
    what: String,
    /// Name of the GPU, or the CPU and its number of threads.
    device: String,
    ranks: usize,
    replicas: i64,
    global_batch: i64,
    px: i64,
    precision: Precision,
    channels_last: bool,
    checkpoint_cells: bool,
    /// Images processed per step, forward and backward; both data sets of a search.
    images_per_step: i64,
    /// Mean duration of a step in each block.
    step_ms: Vec<f64>,
    /// Throughput of the block with the median duration.
    images_per_s: f64,
    /// Loss of the last step; checked to be finite.
    loss: f64,
    /// Memory in use on the GPU at the end, by all processes; libtorch does not return memory.
    card_memory_mib: Option<f64>,
    /// CUDA runtime calls per step, by name; absent unless launch/gpu/count.c is preloaded.
    calls_per_step: Option<BTreeMap<String, f64>>,
    trace: Option<Trace>,
}

/// `drnas-dist bench`. Called by all ranks.
pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.genotype {
        None => {
            let config = Config::load(&args.config, &args.sets)?;
            with_world(&config, args.share_gpu, |world| search(&config, args, world))
        }
        Some(genotype) => {
            let config = EvaluateConfig::load(&args.config, &args.sets)?;
            with_world(&config, args.share_gpu, |world| network(&config, genotype, args, world))
        }
    }
}

/// Measures the supernet of one stage; rank 0 prints and writes the result. Called by all ranks.
fn search(config: &Config, args: &BenchArgs, world: &World) -> Result<()> {
    config.check_ranks(world.size())?;
    if args.stage == 0 || args.stage > config.search.stages.len() {
        let count = config.search.stages.len();
        return Err(
            config::Error::Check(format!("--stage must be in 1..={count}, found {}", args.stage)).into()
        );
    }
    let mut config = config.clone();
    config.search.steps_per_epoch = 0;
    config.search.architecture_from_epoch = u64::from(args.weights_only);
    let replicas = config.replicas_of(world.rank(), world.size());
    let timeline = Timeline::new(&config, STEPS_OF_DATA);
    let mut search = Search::new(&config, timeline, replicas.clone(), world.device());
    for _ in 1..args.stage {
        search.advance()?;
    }
    let mut loaders = [0, 1].map(|stream| loader(&config, replicas.clone(), stream));
    let single_level = config.search.scheme == Scheme::SingleLevel;
    let step: Step = Box::new(move |comm| match &mut loaders {
        [loader, _] if single_level => search.single_level_step(loader, comm),
        [weights, architecture] => search.bilevel_step(weights, architecture, comm),
    });
    let batches = if args.weights_only || single_level { 1 } else { 2 };
    let measured = BenchResult {
        what: format!("supernet, stage {}", args.stage),
        images_per_step: batches * config.global_batch(),
        precision: config.precision,
        channels_last: config.channels_last,
        checkpoint_cells: config.checkpoint_cells,
        ..settings_of(&config, world)
    };
    measure(measured, step, args, world)
}

/// Measures the training of an evaluation network. Called by all ranks.
fn network(config: &EvaluateConfig, genotype: &str, args: &BenchArgs, world: &World) -> Result<()> {
    config.check_ranks(world.size())?;
    let genotype = Genotype::read(genotype)?;
    let replicas = config.replicas_of(world.rank(), world.size());
    let mut evaluation = Evaluation::new(config, &genotype, STEPS_OF_DATA, replicas.clone(), world.device());
    let mut loader = loader(config, replicas, 0);
    let step: Step = Box::new(move |comm| evaluation.train_step(&mut loader, comm));
    let measured = BenchResult {
        what: "network".into(),
        images_per_step: config.global_batch(),
        precision: config.precision,
        channels_last: config.channels_last,
        checkpoint_cells: config.checkpoint_cells,
        ..settings_of(config, world)
    };
    measure(measured, step, args, world)
}

/// Returns a loader that repeats one batch of synthetic images.
fn loader(settings: &impl Settings, replicas: Range<usize>, stream: u64) -> Loader {
    let batch =
        Batch::synthetic(settings.replica_batch() as usize, settings.data().px, settings.model().num_classes);
    Loader::repeat(batch, &LoaderSpec { stream, ..LoaderSpec::of(settings, replicas) })
}

/// Returns a result with the settings filled in.
fn settings_of(settings: &impl Settings, world: &World) -> BenchResult {
    let device = match world.gpu() {
        Some(gpu) => gpu.name.clone(),
        None => format!("CPU, {}", counted(world.threads() as u64, "thread")),
    };
    BenchResult {
        what: String::new(),
        device,
        ranks: world.size(),
        replicas: settings.replicas(),
        global_batch: settings.global_batch(),
        px: settings.data().px,
        precision: Precision::Fp32,
        channels_last: true,
        checkpoint_cells: false,
        images_per_step: 0,
        step_ms: Vec::new(),
        images_per_s: 0.0,
        loss: 0.0,
        card_memory_mib: None,
        calls_per_step: None,
        trace: None,
    }
}

/// Warms up, measures blocks of steps, then traces the reductions of a few more steps. Collective.
fn measure(mut measured: BenchResult, mut step: Step, args: &BenchArgs, world: &World) -> Result<()> {
    let comm = world.communicator();
    // Reading the loss synchronises with the GPU.
    let mut steps = |count: usize| -> Result<f64> {
        let mut loss = f64::NAN;
        for number in 0..count {
            let outcome = step(comm)?;
            if number + 1 == count {
                loss = outcome.weights[0].to_device(Device::Cpu).f_double_value(&[0])?;
            }
        }
        Ok(loss)
    };
    steps(args.warmup)?;
    let before = runtime_calls();
    let mut ms = Vec::with_capacity(args.blocks);
    for _ in 0..args.blocks {
        comm.barrier()?;
        let start = Instant::now();
        measured.loss = steps(args.steps)?;
        comm.barrier()?;
        ms.push(start.elapsed().as_secs_f64() * 1e3 / args.steps as f64);
    }
    let after = runtime_calls();
    measured.calls_per_step = before.zip(after).map(|(before, after)| {
        let steps = (args.blocks * args.steps) as f64;
        // Reading the loss at the end of each block is included.
        let per_step = |(name, count): (String, u64)| {
            let earlier = before.get(&name).copied().unwrap_or(0);
            (name, (count - earlier) as f64 / steps)
        };
        after.into_iter().map(per_step).collect()
    });
    comm.start_trace()?;
    steps(TRACED)?;
    measured.trace = comm.take_trace()?;
    if let Some(context) = world.context() {
        let (free, total) = context.memory_bytes()?;
        measured.card_memory_mib = Some((total - free) as f64 / f64::from(1 << 20));
    }
    let mut sorted = ms.clone();
    sorted.sort_by(f64::total_cmp);
    measured.images_per_s = measured.images_per_step as f64 / sorted[sorted.len() / 2] * 1e3;
    measured.step_ms = ms;
    if !measured.loss.is_finite() {
        return Err(
            train::Error::LossNotFinite { step: 0, loss: measured.loss, architecture_loss: 0.0 }.into()
        );
    }
    if world.rank() == 0 { print(&measured, args) } else { Ok(()) }
}

/// Prints the result and appends it to `--json`. Rank 0.
fn print(measured: &BenchResult, args: &BenchArgs) -> Result<()> {
    let BenchResult { what, precision, channels_last, images_per_s, step_ms, ranks, device, .. } = measured;
    let layout = if *channels_last { "channels last" } else { "channels first" };
    let fastest = step_ms.iter().copied().fold(f64::INFINITY, f64::min);
    console::print_result(&format!(
        "{what}: {precision}, {layout}, {}, {device}: {images_per_s:.1} images/s (fastest block {fastest:.1} ms/step)\n",
        counted(*ranks as u64, "rank"),
    ))?;
    args.json.as_ref().map_or(Ok(()), |path| Ok(append_json(path, measured)?))
}

/// Returns the number of CUDA runtime calls so far, by name, if launch/gpu/count.c is preloaded.
fn runtime_calls() -> Option<BTreeMap<String, u64>> {
    // `unsigned long drnas_runtime_calls(unsigned, const char **)` returns a counter and its name; a null name ends the
    // list.
    type Count = unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_ulong;
    // SAFETY: only launch/gpu/count.c defines this symbol, with this type.
    let count: Count = unsafe {
        let found = libc::dlsym(libc::RTLD_DEFAULT, c"drnas_runtime_calls".as_ptr());
        if found.is_null() {
            return None;
        }
        std::mem::transmute::<*mut libc::c_void, Count>(found)
    };
    let mut calls = BTreeMap::new();
    for number in 0.. {
        let mut name = std::ptr::null();
        // SAFETY: the out pointer is live; the function sets it to a static string or leaves it null.
        let value = unsafe { count(number, &mut name) };
        if name.is_null() {
            break;
        }
        // SAFETY: not null, a static string.
        calls.insert(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(), value);
    }
    Some(calls)
}
