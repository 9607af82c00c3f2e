//! drnas-dist: Dirichlet neural architecture search (DrNAS, ICLR 2021) over many ranks.
//!
//! One direction: cli -> config -> launch -> data -> space -> net -> search or eval -> report -> run; a file uses only what
//! stands before it, but for the plain types of `space` (in the configuration) and `comm::bucket` (the network's buffers).

// They panic when nobody reads: see `console`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod comm;
pub mod config;
pub mod console;
pub mod cuda;
pub mod data;
pub mod doctor;
pub mod error;
pub mod eval;
pub mod export;
pub mod launch;
pub mod nb201;
pub mod net;
pub mod optimiser;
pub mod plot;
pub mod precision;
pub mod random;
pub mod report;
pub mod run;
pub mod schedule;
pub mod search;
pub mod space;
pub mod state;
pub mod tally;
pub mod verify;
pub mod weight_step;
pub mod whereabouts;
pub mod whole_file;

use config::DeviceChoice;
pub use config::{Config, EvaluateConfig, Settings};
pub use error::{Error, Result};

use cli::{BenchArgs, Command, EvaluateArgs, ReportCommand, SearchArgs, SearchNb201Args, VerifyArgs};
use config::published;
use launch::{Devices, Limits, World};
use nb201::Table;
use run::benchmark::Benchmark;
use space::SearchSpace;
use std::time::Duration;
use tch::Device;

/// How long commands without a configuration wait for other ranks.
const LIMIT: Duration = Duration::from_secs(60);

/// Does what the command line says, and returns when it is done.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::DemoData(args) => data::demo::run(&args),
        Command::Split(args) => data::split::run(&args),
        Command::Pack(args) => data::pack::run(&args),
        Command::SearchImagenet(args) => search(&args, SearchSpace::DartsImagenet, published::IMAGENET),
        Command::SearchCifar(args) => search(&args, SearchSpace::DartsCifar, published::CIFAR),
        Command::SearchNb201(args) => search_nb201(&args),
        Command::EvaluateImagenet(args) => {
            evaluate(&args, SearchSpace::DartsImagenet, published::EVALUATE_IMAGENET)
        }
        Command::EvaluateCifar(args) => evaluate(&args, SearchSpace::DartsCifar, published::EVALUATE_CIFAR),
        Command::Export(args) => export::run(&args),
        Command::Report(ReportCommand::Scaling { runs }) => console::answer(&report::scaling(&runs)?),
        Command::Nb201(args) => nb201::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Verify(args) => verify_files(&args),
        Command::Doctor => doctor::run(LIMIT, None),
        Command::Bench(args) => measure(&args),
    }
}

/// Every rank: load the configuration, join the world, search.
fn search(args: &SearchArgs, space: SearchSpace, published: (&str, &str)) -> Result<()> {
    let config: Config = args.run.settings(published, &[])?;
    config.check_space(space)?;
    in_world(&config, args.run.share_gpu, |world| run::search::search(&config, args, None, world))
}

/// The same on NAS-Bench-201. The table is rank 0's business.
fn search_nb201(args: &SearchNb201Args) -> Result<()> {
    let published = if args.progressive { published::NB201_PROGRESSIVE } else { published::NB201 };
    let config: Config = args.search.run.settings(published, &published::sets_of(args.dataset))?;
    config.check_space(SearchSpace::NasBench201)?;
    in_world(&config, args.search.run.share_gpu, |world| {
        let path = args.table.as_ref().filter(|_| world.rank() == 0);
        let table = path.map(|path| Table::open(path)).transpose()?;
        let benchmark = table.map(|table| Benchmark::new(table, args.dataset)).transpose()?;
        run::search::search(&config, &args.search, benchmark, world)
    })
}

/// Every rank: load the configuration, join the world, train and test.
fn evaluate(args: &EvaluateArgs, space: SearchSpace, published: (&str, &str)) -> Result<()> {
    let config: EvaluateConfig = args.run.settings(published, &[])?;
    config.check_space(space)?;
    in_world(&config, args.run.share_gpu, |world| run::evaluate::evaluate(&config, args, world))
}

/// Every rank: load the configuration, join the world, measure.
fn measure(args: &BenchArgs) -> Result<()> {
    match &args.genotype {
        None => {
            let config = Config::load(&args.config, &args.sets)?;
            in_world(&config, args.share_gpu, |world| bench::search(&config, args, world))
        }
        Some(genotype) => {
            let config = EvaluateConfig::load(&args.config, &args.sets)?;
            in_world(&config, args.share_gpu, |world| bench::network(&config, genotype, args, world))
        }
    }
}

/// Every rank: joins the world, does `work` in it.
fn in_world<S: Settings>(
    settings: &S,
    share_gpu: bool,
    work: impl FnOnce(&World) -> Result<()>,
) -> Result<()> {
    let run = settings.run();
    let threads = (run.threads > 0).then_some(run.threads);
    let devices = Devices { choice: settings.device(), share_gpu, reduce: run.reduce, tensors: None };
    let limits = Limits {
        start: Duration::from_secs_f64(run.start_limit_s),
        operation: Duration::from_secs_f64(run.time_limit_s),
    };
    let world = World::start_on(devices, limits, threads)?;
    let watched = world.keep_watch(Duration::from_secs_f64(run.heartbeat_s));
    let outcome = watched.and_then(|()| work(&world));
    world.end(outcome)
}

/// Compares golden files with this program's network; an error if one differs.
fn verify_files(args: &VerifyArgs) -> Result<()> {
    if args.device == DeviceChoice::Cpu {
        return verify_on(args, Device::Cpu);
    }
    let devices = Devices { choice: args.device, ..Devices::default() };
    let world = World::start_on(devices, LIMIT, None)?;
    let outcome = verify_on(args, world.device());
    world.end(outcome)
}

fn verify_on(args: &VerifyArgs, device: Device) -> Result<()> {
    // What a damaged file makes libtorch say is an error then (see `verify`), and said once. Not earlier: what goes wrong
    // with a card before that has to be heard.
    std::panic::set_hook(Box::new(|_| ()));
    // Threads change the order of sums, which shows in bf16: the same figures on every machine.
    tch::set_num_threads(1);
    tch::Cuda::set_user_enabled_cudnn(!args.no_cudnn);
    let placement = net::placement::Placement {
        precision: args.precision,
        device,
        channels_last: !args.channels_first,
        checkpoint_cells: args.checkpoint_cells,
        ..verify::PLACEMENT
    };
    let mut failed = 0;
    for file in &args.files {
        let outcome = verify::verify(file, placement);
        if let Some(path) = &args.json {
            report::append_json(path, &verify::Verified::new(file, placement, &outcome))?;
        }
        match outcome {
            Ok(findings) => {
                console::answer(&format!("{}\n{findings}\n", file.display()))?;
                failed += usize::from(!findings.pass());
            }
            Err(why) if args.files.len() == 1 => return Err(why),
            // The other files may tell more.
            Err(why) => {
                console::answer(&format!("{}\n  FAILED {}\n\n", file.display(), error::chain(&why)))?;
                failed += 1;
            }
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Error::NotGolden { failed, files: args.files.len() }),
    }
}
