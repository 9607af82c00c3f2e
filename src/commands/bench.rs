//! `bench`: how fast training steps are on synthetic images, what cards do meanwhile, how often the host waits for them.
//! For measurements: what is trained is thrown away.

use crate::cli::BenchArgs;
use crate::comm::{Communicator, Trace};
use crate::config::{self, Precision};
use crate::config::{Config, EvaluateConfig, Settings};
use crate::console;
use crate::data::{Batch, Loader, LoaderSpec};
use crate::error::Result;
use crate::eval::Evaluation;
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

/// More than anybody measures: all steps are in the first epoch.
const STEPS_OF_DATA: u64 = 1 << 32;

/// Steps whose reductions are timed, at the end.
const TRACED: usize = 2;

/// A step of whatever is measured.
type Step<'a> = Box<dyn FnMut(&dyn Communicator) -> Result<StepOutcome> + 'a>;

/// What was measured: one JSON object.
#[derive(Debug, Serialize)]
struct Measured {
    /// "supernet, stage 1" ...
    what: String,
    /// The card, or the CPU and its threads.
    device: String,
    ranks: usize,
    replicas: i64,
    global_batch: i64,
    px: i64,
    precision: Precision,
    channels_last: bool,
    checkpoint_cells: bool,
    /// Images that go through the network in one step, forward and backward: both sets of a search.
    images_per_step: i64,
    /// Mean length of a step, for each block of steps.
    step_ms: Vec<f64>,
    /// Of the block with the median length.
    images_per_s: f64,
    /// Loss of the last step: a number, not a result.
    loss: f64,
    /// Memory in use on the card after all, by every process; libtorch gives nothing back.
    card_memory_mib: Option<f64>,
    /// Calls of the CUDA runtime per step, by name; absent unless launch/gpu/count.c is preloaded.
    calls_per_step: Option<BTreeMap<String, f64>>,
    trace: Option<Trace>,
}

/// Every rank: load the configuration, join the world, measure.
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

/// Measures as `args` say; rank 0 prints and writes. Called by all ranks.
fn search(config: &Config, args: &BenchArgs, world: &World) -> Result<()> {
    config.check_ranks(world.size())?;
    if args.stage == 0 || args.stage > config.search.stages.len() {
        let count = config.search.stages.len();
        return Err(config::Error::Check(format!("--stage {} of {count} stages", args.stage)).into());
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
    let step: Step = Box::new(move |comm| {
        let [weights, architecture] = &mut loaders;
        search.bilevel_step(weights, architecture, comm)
    });
    let batches = if args.weights_only { 1 } else { 2 };
    let measured = Measured {
        what: format!("supernet, stage {}", args.stage),
        images_per_step: batches * config.global_batch(),
        precision: config.precision,
        channels_last: config.channels_last,
        checkpoint_cells: config.checkpoint_cells,
        ..measured(&config, world)
    };
    measure(measured, step, args, world)
}

/// The same of the training of a final network.
fn network(config: &EvaluateConfig, genotype: &str, args: &BenchArgs, world: &World) -> Result<()> {
    config.check_ranks(world.size())?;
    let genotype = Genotype::read(genotype)?;
    let replicas = config.replicas_of(world.rank(), world.size());
    let mut evaluation = Evaluation::new(config, &genotype, STEPS_OF_DATA, replicas.clone(), world.device());
    let mut loader = loader(config, replicas, 0);
    let step: Step = Box::new(move |comm| evaluation.train_step(&mut loader, comm));
    let measured = Measured {
        what: "network".into(),
        images_per_step: config.global_batch(),
        precision: config.precision,
        channels_last: config.channels_last,
        checkpoint_cells: config.checkpoint_cells,
        ..measured(config, world)
    };
    measure(measured, step, args, world)
}

/// The same images in every step.
fn loader(settings: &impl Settings, replicas: Range<usize>, stream: u64) -> Loader {
    let batch =
        Batch::synthetic(settings.replica_batch() as usize, settings.data().px, settings.model().num_classes);
    Loader::repeat(batch, &LoaderSpec { stream, ..LoaderSpec::of(settings, replicas) })
}

/// What is known beforehand.
fn measured(settings: &impl Settings, world: &World) -> Measured {
    let device = match world.gpu() {
        Some(card) => card.name.clone(),
        None => format!("CPU, {} threads", world.threads()),
    };
    Measured {
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

/// Warms up, measures blocks of steps, then times the reductions of a few more. Collective.
fn measure(mut measured: Measured, mut step: Step, args: &BenchArgs, world: &World) -> Result<()> {
    let comm = world.communicator();
    // Reading a number waits for the card.
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
        // The look at the loss at the end of each block is not the step's.
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
    if world.rank() == 0 { tell(&measured, args) } else { Ok(()) }
}

/// One line for people, one for programs. Rank 0.
fn tell(measured: &Measured, args: &BenchArgs) -> Result<()> {
    let Measured { what, precision, channels_last, images_per_s, step_ms, ranks, device, .. } = measured;
    let layout = if *channels_last { "channels last" } else { "channels first" };
    let least = step_ms.iter().copied().fold(f64::INFINITY, f64::min);
    console::print_result(&format!(
        "{what}: {precision}, {layout}, {ranks} ranks, {device}: {images_per_s:.1} images/s (least step {least:.1} ms)\n"
    ))?;
    args.json.as_ref().map_or(Ok(()), |path| Ok(append_json(path, measured)?))
}

/// Calls of the CUDA runtime so far, by name: of launch/gpu/count.c, where that is preloaded.
fn runtime_calls() -> Option<BTreeMap<String, u64>> {
    // `unsigned long drnas_runtime_calls(unsigned, const char **)`: the count of a number and its name; no name: the end.
    type Count = unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_ulong;
    // SAFETY: a name that only that file has; the type is its own.
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
        // SAFETY: a live out pointer, left or set to a constant text.
        let value = unsafe { count(number, &mut name) };
        if name.is_null() {
            break;
        }
        // SAFETY: not null, a constant text.
        calls.insert(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(), value);
    }
    Some(calls)
}
