//! drnas-dist: distributed Dirichlet neural architecture search (DrNAS, ICLR 2021).
//!
//! Modules depend in one direction only: a file uses modules further up in this table and files of its own module, and
//! no two files use each other. The exception is `error`, which names the `error.rs` of every module and nothing else.
//!
//! | module | contents |
//! |---|---|
//! | [`files`], [`random`] | atomic file writes; seeded random streams |
//! | [`process`] | this rank as a process: host and cores, current phase, messages, signals, exit |
//! | [`error`] | the error type, one variant per module |
//! | [`space`] | the search spaces: operations, edges, masks, genotypes |
//! | [`config`] | configuration files and their validation |
//! | [`cli`] | command-line arguments |
//! | [`cuda`] | CUDA driver, streams, events |
//! | [`comm`] | communication between ranks: `Communicator` for a single process, MPI or NCCL |
//! | [`data`] | from images to batches: source, split, pack, shards, loader, augmentation, upload |
//! | [`net`] | the network for given mixing weights, and its gradients, bucket by bucket |
//! | [`world`] | the ranks of a run: MPI start-up, devices, heartbeats, shutdown |
//! | [`train`] | shared by search and evaluation: weight step, optimisers, schedule, state, checkpoints |
//! | [`method`] | search methods: mixing weights from architecture parameters, gradients, updates, perturbation |
//! | [`search`] | the architecture search; one bilevel step is [`search::Search::bilevel_step`] |
//! | [`eval`] | training a discovered network from scratch, and testing it |
//! | [`nb201`] | the NAS-Bench-201 table of architecture accuracies |
//! | [`report`] | progress, metrics, tables, figures |
//! | [`mod@run`] | a run from validated inputs to its result: lock, journal, resume |
//! | [`commands`] | commands other than runs |
//!
//! `data` and `net` do not use a communicator.

// The macros panic when the output is closed; use `process::console` instead.
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
pub mod method;
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

/// Runs the command and returns when it has finished.
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
            Ok(console::print_result(&report::scaling(&runs)?)?)
        }
        Command::Nb201(args) => commands::nb201::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Doctor => doctor::run(world::COMMAND_LIMIT, None),
        Command::Bench(args) => bench::run(&args),
    }
}
