//! Program entry point: parses the command line, runs the command, prints the error and sets the exit code.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use clap::Parser;
use drnas_dist::{cli::Cli, error::chain, process::console, run};
use std::process::ExitCode;

/// Exit codes: 0 success, 1 error, 2 usage error (clap), 75 stopped with a checkpoint, 130 interrupted
/// (see `process::signals`).
fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::print_diagnostic(&format!("error: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}
