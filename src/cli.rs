//! What a user may type.

use crate::data::demo::DemoArgs;
use crate::data::pack::PackArgs;
use crate::data::split::SplitArgs;
use crate::nb201::Nb201Args;
use crate::plot::PlotArgs;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Data-parallel Dirichlet neural architecture search (DrNAS).
///
/// Searches a convolutional network directly on images: packs an ImageFolder into shards, trains the DrNAS supernet over
/// any number of MPI ranks in progressive stages, and ends with a genotype.
#[derive(Debug, Parser)]
#[command(name = "drnas-dist", version, after_help = EXAMPLES, after_long_help = EXAMPLES)]
#[command(arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One variant per subcommand, in the order of a first run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw a small labelled set of images to try everything on.
    DemoData(DemoArgs),
    /// Choose class-balanced subsets and write their lists.
    Split(SplitArgs),
    /// Pack an ImageFolder, or a list of its images, into memory-mapped shards.
    Pack(PackArgs),
    /// Search an architecture on shards; under mpirun, over many ranks.
    SearchImagenet(SearchArgs),
    /// Compare finished runs.
    #[command(subcommand)]
    Report(ReportCommand),
    /// Look up what architectures of NAS-Bench-201 reach.
    Nb201(Nb201Args),
    /// Draw a figure of a run.
    Plot(PlotArgs),
    /// Run golden files through the network and compare.
    Verify(VerifyArgs),
    /// Show libraries, ranks, threads and devices, and what is missing.
    Doctor,
}

/// Arguments of `search-imagenet`.
#[derive(Args, Debug)]
#[command(after_help = SEARCH_EXAMPLES)]
pub struct SearchArgs {
    /// What every run is given.
    #[command(flatten)]
    pub run: RunArgs,
    /// Folder of shards that train the weights.
    #[arg(long, value_name = "SHARDS")]
    pub train: PathBuf,
    /// Folder of shards that train the architecture.
    #[arg(long, value_name = "SHARDS")]
    pub valid: PathBuf,
}

/// Arguments of everything that makes a run folder.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The configuration, a TOML file; configs/README.md explains every key.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Run folder: checkpoints, metrics, results. Made if need be; an older run in it is never overwritten.
    #[arg(long, value_name = "RUN")]
    pub out: PathBuf,
    /// Change one key of the configuration; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Go on from the newest good checkpoint in RUN; without one, begin.
    #[arg(long)]
    pub resume: bool,
    /// Let several ranks share one GPU, for trying things out: needs NCCL 2.30 and NCCL_MULTI_RANK_GPU_ENABLE=1.
    #[arg(long)]
    pub share_gpu: bool,
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

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Golden files, safetensors or JSON.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  drnas-dist demo-data demo/images
  drnas-dist split demo/images --fractions 0.6,0.3 --names train,valid --out demo/lists
  drnas-dist pack demo/images demo/train --list demo/lists/train.txt
  drnas-dist pack demo/images demo/valid --list demo/lists/valid.txt
  mpirun -n 2 drnas-dist search-imagenet --config configs/quickstart.toml \\
      --train demo/train --valid demo/valid --out runs/first

Exit codes:
  0 done   1 error (one line on stderr says which)   2 wrong usage   130 interrupted, can be resumed";

const SEARCH_EXAMPLES: &str = "\
Examples:
  mpirun -n 8 drnas-dist search-imagenet --config configs/search-imagenet.toml \\
      --train shards/train --valid shards/valid --out runs/imagenet
  ... the same with --resume      goes on after an interruption; other numbers of ranks will do
  ... --set seed=1 --set search.stage.2.epochs=30";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
