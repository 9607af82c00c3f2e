//! drnas-dist: Dirichlet neural architecture search (DrNAS, ICLR 2021) over many ranks.
//!
//! Each room answers one question. They stand in one direction: a file uses rooms further up in this table, and files of
//! its own room, but no two files use each other. (`error` alone names every room's `error.rs`, and nothing else of them.)
//!
//! | room | the question it answers |
//! |---|---|
//! | [`files`], [`random`] | how is a file written whole; which numbers are drawn where |
//! | [`process`] | this rank as a process: where it runs, what it is doing, what it says, how it ends |
//! | [`error`] | what can go wrong, by room, and how it reads |
//! | [`space`] | which architectures are there: operations, edges, masks, genotypes |
//! | [`config`] | what does a configuration file say, and is it right |
//! | [`cli`] | what may a user type: every argument type |
//! | [`cuda`] | what can a GPU do: driver, streams, events |
//! | [`comm`] | what do ranks say to one another: `Communicator`, alone, by MPI, by NCCL |
//! | [`data`] | how do images become batches: source, split, pack, shards, loader, augmentation, upload |
//! | [`net`] | what is computed for given mixing weights, and its gradients, bucket by bucket |
//! | [`world`] | how are the ranks joined, watched and ended: start of MPI, devices, heartbeats |
//! | [`train`] | what do a search and an evaluation share: weight step, optimisers, schedule, state, checkpoints |
//! | [`search`] | how is an architecture found: one bilevel step is [`search::Search::bilevel_step`] |
//! | [`eval`] | how is a found network trained from scratch, and tested |
//! | [`nb201`] | what does an architecture of NAS-Bench-201 reach: the benchmark's table |
//! | [`report`] | what is said of a run: progress, metrics, tables, figures |
//! | [`mod@run`] | how does a run go from checked inputs to its result: lock, journal, resume, end |
//! | [`commands`] | what else is there: commands that make no run |
//!
//! `data` and `net` know no communicator.

// They panic when nobody reads: see `process::console`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

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
use process::console;
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
        Command::Report(ReportCommand::Scaling { runs }) => Ok(console::print_result(&report::scaling(&runs)?)?),
        Command::Nb201(args) => commands::nb201::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Doctor => doctor::run(world::COMMAND_LIMIT, None),
        Command::Bench(args) => bench::run(&args),
    }
}
