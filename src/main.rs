//! The program: parse, run, print one error, choose the exit code.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use clap::Parser;
use drnas_dist::{cli::Cli, error::chain, process::console, run};
use std::process::ExitCode;

/// 0 done, 1 error, 2 wrong usage (clap); 75 stopped with a checkpoint, 130 interrupted (see `process::signals`).
fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::print_diagnostic(&format!("error: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}
