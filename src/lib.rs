//! drnas-dist: Dirichlet neural architecture search (DrNAS, ICLR 2021) over many ranks.
//!
//! One direction: cli -> config -> launch -> data -> space -> net -> search or eval -> report -> run; a file uses only what
//! stands before it, but for the plain types of `space` (in the configuration) and `comm::bucket` (the network's buffers).

pub mod cli;
pub mod comm;
pub mod commands;
pub mod config;
pub mod cuda;
pub mod data;
pub mod error;
pub mod eval;
pub mod files;
pub mod nb201;
pub mod net;
pub mod process;
pub mod random;
pub mod report;
pub mod run;
pub mod search;
pub mod space;
pub mod train;
pub mod world;

pub use config::{Config, EvaluateConfig, Settings};
pub use error::{Error, Result};

use cli::{Command, ReportCommand};
use commands::{bench, demo_data, doctor, export, plot, verify};
use config::published;
use run::start;
use space::SearchSpace::{DartsCifar, DartsImagenet};

/// Does what the command line says, and returns when it is done.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::DemoData(args) => demo_data::run(&args),
        Command::Split(args) => Ok(data::split::run(&args)?),
        Command::Pack(args) => Ok(data::pack::run(&args)?),
        Command::SearchImagenet(args) => start::search(&args, DartsImagenet, published::IMAGENET),
        Command::SearchCifar(args) => start::search(&args, DartsCifar, published::CIFAR),
        Command::SearchNb201(args) => start::search_nb201(&args),
        Command::EvaluateImagenet(args) => {
            start::evaluate(&args, DartsImagenet, published::EVALUATE_IMAGENET)
        }
        Command::EvaluateCifar(args) => start::evaluate(&args, DartsCifar, published::EVALUATE_CIFAR),
        Command::Export(args) => export::run(&args),
        Command::Report(ReportCommand::Scaling { runs }) => {
            print!("{}", report::scaling(&runs)?);
            Ok(())
        }
        Command::Nb201(args) => commands::nb201::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Doctor => doctor::run(world::COMMAND_LIMIT, None),
        Command::Bench(args) => bench::run(&args),
    }
}
