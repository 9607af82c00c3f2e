//! drnas-dist: Dirichlet neural architecture search (DrNAS, ICLR 2021) over many ranks.
//!
//! One direction: cli -> config -> launch -> data -> space -> net -> search -> report -> run; a file uses only what
//! stands before it, but for the plain types of `space` (in the configuration) and `comm::bucket` (the network's buffers).

pub mod checkpoint;
pub mod cli;
pub mod comm;
pub mod config;
pub mod cuda;
pub mod data;
pub mod doctor;
pub mod error;
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

pub use config::{Config, Settings};
pub use error::{Error, Result};

use cli::{Command, ReportCommand, RunArgs, SearchArgs, VerifyArgs};
use launch::{Devices, World};
use std::time::Duration;

/// Does what the command line says, and returns when it is done.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::DemoData(args) => data::demo::run(&args),
        Command::Split(args) => data::split::run(&args),
        Command::Pack(args) => data::pack::run(&args),
        Command::SearchImagenet(args) => search_imagenet(&args),
        Command::Report(ReportCommand::Scaling { runs }) => {
            print!("{}", report::scaling(&runs)?);
            Ok(())
        }
        Command::Nb201(args) => nb201::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Verify(args) => verify_files(&args),
        Command::Doctor => doctor::run(Duration::from_secs(60), None),
    }
}

/// Every rank: load the configuration, join the world, search.
fn search_imagenet(args: &SearchArgs) -> Result<()> {
    let config = Config::load(&args.run.config, &args.run.sets)?;
    in_world(&config, &args.run, |world| run::search::search(&config, args, world))
}

/// Every rank: joins the world, does `work` in it.
fn in_world<S: Settings>(
    settings: &S,
    args: &RunArgs,
    work: impl FnOnce(&World) -> Result<()>,
) -> Result<()> {
    let run = settings.run();
    let threads = (run.threads > 0).then_some(run.threads);
    let devices =
        Devices { choice: settings.device(), share_gpu: args.share_gpu, reduce: run.reduce, tensors: None };
    let world = World::start_on(devices, Duration::from_secs_f64(run.time_limit_s), threads)?;
    let outcome = work(&world);
    world.end(outcome)
}

/// Compares golden files with this program's network; an error if one differs.
fn verify_files(args: &VerifyArgs) -> Result<()> {
    let mut failed = 0;
    for file in &args.files {
        let outcome = verify::verify(file)?;
        println!("{}\n{outcome}", file.display());
        if let verify::Outcome::Compared(findings) = &outcome {
            failed += usize::from(!findings.iter().all(verify::Finding::passes));
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Error::NotGolden { failed, files: args.files.len() }),
    }
}
