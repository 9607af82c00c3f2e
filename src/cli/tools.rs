//! Arguments of the commands that look at runs, networks and tables: `bench`, `export`, `report`, `plot`, `nb201`, `verify`.

use crate::config::{DeviceChoice, Precision};
use crate::space::nb201::Dataset;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// The configuration of a search or, with --genotype, of an evaluation.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Change one key of the configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Stage of the search whose supernet is trained, from 1.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub stage: usize,
    /// Train the final network of this architecture instead.
    #[arg(long, value_name = "FILE|NAME|TEXT")]
    pub genotype: Option<String>,
    /// No architecture steps.
    #[arg(long)]
    pub weights_only: bool,
    /// Steps before the measurement.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = at_least_one)]
    pub warmup: usize,
    /// Steps of one block.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = at_least_one)]
    pub steps: usize,
    /// Blocks; the median counts.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = at_least_one)]
    pub blocks: usize,
    /// Let several ranks share one GPU, as in a search.
    #[arg(long)]
    pub share_gpu: bool,
    /// Append the result to this file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("a whole number from 1 on is expected".into()),
    }
}

/// Arguments of `export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Run folder of an evaluation.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Where to write; made if need be. The same export again changes nothing.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// The weights of the best test instead of the newest checkpoint's.
    #[arg(long)]
    pub best: bool,
    /// Replace files of another export in DIR; without it they are refused.
    #[arg(long)]
    pub overwrite: bool,
}

/// What `report` can tell.
#[derive(Debug, Subcommand)]
pub enum ReportCommand {
    /// How the speed grows with the ranks: images/s of the last epoch of each run, as a Markdown table.
    Scaling {
        /// Run folders, see launch/slurm/scaling.sh.
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<PathBuf>,
    },
}

/// Arguments of `plot`.
#[derive(Args, Debug)]
pub struct PlotArgs {
    /// Which figure.
    #[command(subcommand)]
    pub figure: Figure,
}

/// One variant per figure.
#[derive(Debug, Subcommand)]
pub enum Figure {
    /// How the accuracy of what the Dirichlet draws narrows over the epochs of a NAS-Bench-201 search (SVG and PNG).
    Trajectory(TrajectoryArgs),
}

/// Arguments of `plot trajectory`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  drnas-dist plot trajectory runs/nb201 --table nb201.table
  drnas-dist plot trajectory runs/nb201 --table nb201.table --dataset cifar100 --out figures/cifar100

A search that is still running is drawn as far as it is.")]
pub struct TrajectoryArgs {
    /// Folder of a NAS-Bench-201 search.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The table, as `nb201 import` wrote it.
    #[arg(long, value_name = "FILE")]
    pub table: PathBuf,
    /// Whose test accuracy is shown; left out: that of the data set searched on, by its number of classes.
    #[arg(long)]
    pub dataset: Option<Dataset>,
    /// FILE.svg and FILE.png are written; left out: trajectory-DATASET in the run folder, drawn anew each time.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace other figures that --out names.
    #[arg(long)]
    pub overwrite: bool,
    /// Architectures drawn at every epoch.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub samples: u32,
    /// Another seed draws other architectures.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Arguments of `nb201`.
#[derive(Args, Debug)]
pub struct Nb201Args {
    /// What to do with the table.
    #[command(subcommand)]
    pub command: Nb201Command,
}

/// One variant per subcommand of `nb201`.
#[derive(Debug, Subcommand)]
pub enum Nb201Command {
    /// Show what one architecture reaches, and its rank among all.
    #[command(after_help = QUERY_EXAMPLES)]
    Query {
        /// The architecture's text, in quotes (it is full of '|'), or its index in the benchmark.
        #[arg(value_name = "ARCH")]
        architecture: String,
        /// The table, as `nb201 import` wrote it.
        #[arg(long, value_name = "FILE")]
        table: PathBuf,
        /// One JSON object instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// List the best architectures.
    Top {
        /// How many.
        #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        count: u16,
        /// The column that counts, or a data set for its test accuracy after 200 epochs.
        #[arg(long, value_name = "COLUMN", default_value = "cifar10")]
        by: String,
        /// The table, as `nb201 import` wrote it.
        #[arg(long, value_name = "FILE")]
        table: PathBuf,
        /// A JSON array instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// Make a table from a published file: JSON ("columns", "rows") or CSV with named columns.
    Import {
        /// The JSON or CSV; a column "arch" is needed, "index" is the benchmark's index.
        #[arg(value_name = "FILE")]
        source: PathBuf,
        /// The table to write. The same table again changes nothing.
        #[arg(long, value_name = "TABLE")]
        out: PathBuf,
        /// Replace another table.
        #[arg(long)]
        overwrite: bool,
        /// A column to leave out; may be repeated.
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
    /// Golden files, safetensors or JSON.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How exact the networks compute; what is allowed follows from it.
    #[arg(long, default_value_t = Precision::Fp32)]
    pub precision: Precision,
    /// What to compute on.
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// Activations lie in memory channel by channel, not pixel by pixel.
    #[arg(long)]
    pub channels_first: bool,
    /// Compute cells again for the backward pass.
    #[arg(long)]
    pub checkpoint_cells: bool,
    /// On cards, use libtorch's own convolutions instead of cuDNN's.
    #[arg(long)]
    pub no_cudnn: bool,
    /// Append what was found to this file, one JSON object per golden file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}
