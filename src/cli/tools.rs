//! Arguments of the commands that do not train: `bench`, `export`, `report`, `plot`, `nb201`, `verify`.

use crate::config::{DeviceChoice, Precision};
use crate::space::nb201::Dataset;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Configuration file of a search or, with --genotype, of an evaluation.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Override one key of the configuration; can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Stage of the search whose supernet is measured, counted from 1.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub stage: usize,
    /// Measure the evaluation network of this architecture instead of a supernet.
    #[arg(long, value_name = "FILE|NAME|TEXT")]
    pub genotype: Option<String>,
    /// Skip the architecture steps.
    #[arg(long)]
    pub weights_only: bool,
    /// Warm-up steps before the measurement.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = at_least_one)]
    pub warmup: usize,
    /// Steps per block.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = at_least_one)]
    pub steps: usize,
    /// Number of blocks; the median over the blocks is reported.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = at_least_one)]
    pub blocks: usize,
    /// Let several ranks share one GPU, for testing, as in a search.
    #[arg(long)]
    pub share_gpu: bool,
    /// Append the result to this file as one line of JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected an integer of at least 1".into()),
    }
}

/// Arguments of `export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Run folder of an evaluation.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Output folder; created if missing, unchanged if the same export is repeated.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Export the weights with the best test accuracy instead of those of the newest checkpoint.
    #[arg(long)]
    pub best: bool,
    /// Replace the files of a different export in DIR.
    #[arg(long)]
    pub overwrite: bool,
}

/// One variant per subcommand of `report`.
#[derive(Debug, Subcommand)]
pub enum ReportCommand {
    /// Print the throughput of several runs as a Markdown table (images/s of the last epoch of each).
    Scaling {
        /// Run folders (see launch/slurm/scaling.sh).
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<PathBuf>,
    },
}

/// Arguments of `plot`.
#[derive(Args, Debug)]
pub struct PlotArgs {
    /// The figure.
    #[command(subcommand)]
    pub figure: Figure,
}

/// One variant per figure.
#[derive(Debug, Subcommand)]
pub enum Figure {
    /// Plot the test accuracies of architectures sampled from the Dirichlet after each epoch of a NAS-Bench-201 search
    /// (SVG and PNG).
    Trajectory(TrajectoryArgs),
}

/// Arguments of `plot trajectory`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  drnas-dist plot trajectory runs/nb201 --table nb201.table
  drnas-dist plot trajectory runs/nb201 --table nb201.table --dataset cifar100 \\
      --out figures/cifar100

A running search is plotted up to its newest epoch.")]
pub struct TrajectoryArgs {
    /// Run folder of a NAS-Bench-201 search.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Table written by `nb201 import`.
    #[arg(long, value_name = "FILE")]
    pub table: PathBuf,
    /// Data set of the test accuracy; if omitted, the data set of the search, inferred from its number of classes.
    #[arg(long)]
    pub dataset: Option<Dataset>,
    /// Write FILE.svg and FILE.png; if omitted, write or replace trajectory-DATASET.svg and .png in the run folder.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace existing figures at --out with different content.
    #[arg(long)]
    pub overwrite: bool,
    /// Architectures sampled per epoch.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub samples: u32,
    /// Random seed; another seed samples other architectures.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Arguments of `nb201`.
#[derive(Args, Debug)]
pub struct Nb201Args {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Nb201Command,
}

/// One variant per subcommand of `nb201`.
#[derive(Debug, Subcommand)]
pub enum Nb201Command {
    /// Show the accuracies and the rank of one architecture.
    #[command(after_help = QUERY_EXAMPLES)]
    Query {
        /// Architecture string, quoted because it contains '|', or its index in the benchmark.
        #[arg(value_name = "ARCH")]
        architecture: String,
        /// Table written by `nb201 import`.
        #[arg(long, value_name = "FILE")]
        table: PathBuf,
        /// Print a JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// List the best architectures.
    Top {
        /// Number of architectures.
        #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        count: u16,
        /// Column to rank by; a data set stands for its test accuracy after 200 epochs.
        #[arg(long, value_name = "COLUMN", default_value = "cifar10")]
        by: String,
        /// Table written by `nb201 import`.
        #[arg(long, value_name = "FILE")]
        table: PathBuf,
        /// Print a JSON array instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Convert a file of accuracies into a table: JSON ("columns", "rows") or CSV with named columns.
    Import {
        /// JSON or CSV file with a column "arch"; an optional column "index" is the index in the benchmark.
        #[arg(value_name = "FILE")]
        source: PathBuf,
        /// Table to write; repeating the same import changes nothing.
        #[arg(long, value_name = "TABLE")]
        out: PathBuf,
        /// Replace a table with different content.
        #[arg(long)]
        overwrite: bool,
        /// Skip this column; can be repeated.
        #[arg(long, value_name = "COLUMN")]
        skip: Vec<String>,
    },
}

const QUERY_EXAMPLES: &str = "\
Examples:
  drnas-dist nb201 query 9930 --table nb201.table
  drnas-dist nb201 query --table nb201.table \\
      '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|'";

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Golden files (safetensors or JSON).
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Numerical precision of the networks; also determines the tolerances.
    #[arg(long, default_value_t = Precision::Fp32)]
    pub precision: Precision,
    /// Compute device.
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// Use the contiguous (NCHW) instead of the channels-last (NHWC) memory format.
    #[arg(long)]
    pub channels_first: bool,
    /// Recompute cells in the backward pass (activation checkpointing).
    #[arg(long)]
    pub checkpoint_cells: bool,
    /// On GPUs, use libtorch's native convolutions instead of cuDNN.
    #[arg(long)]
    pub no_cudnn: bool,
    /// Append the results to this file, one line of JSON per golden file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}
