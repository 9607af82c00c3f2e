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
pub mod plot;
pub mod random;
pub mod report;
pub mod run;
pub mod schedule;
pub mod search;
pub mod space;
pub mod verify;

pub use config::Config;
pub use error::{Error, Result};

use cli::{Command, SearchArgs, VerifyArgs};
use launch::World;
use std::time::Duration;

/// Does what the command line says, and returns when it is done.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::DemoData(args) => data::demo::run(&args),
        Command::Split(args) => data::split::run(&args),
        Command::Pack(args) => data::pack::run(&args),
        Command::SearchImagenet(args) => search_imagenet(&args),
        Command::Nb201(args) => nb201::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Verify(args) => verify_files(&args),
        Command::Doctor => doctor::run(Duration::from_secs(60), None),
    }
}

/// Every rank: load the configuration, join the world, search.
fn search_imagenet(args: &SearchArgs) -> Result<()> {
    let config = Config::load(&args.config, &args.sets)?;
    let threads = (config.run.threads > 0).then_some(config.run.threads);
    let world = World::start(Duration::from_secs_f64(config.run.time_limit_s), threads)?;
    let outcome = run::run(&config, args, &world);
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
