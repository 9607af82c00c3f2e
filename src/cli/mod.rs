//! Command line: all argument types.

mod data;
mod runs;
mod tools;

pub use data::{DemoArgs, PackArgs, SourceArgs, SourceFormat, SplitArgs};
pub use runs::{EvaluateArgs, RunArgs, SearchArgs, SearchNb201Args};
pub use tools::{
    BenchArgs, ExportArgs, Figure, Nb201Args, Nb201Command, PlotArgs, ReportCommand, TrajectoryArgs,
    VerifyArgs,
};

use clap::{Parser, Subcommand};

/// Data-parallel Dirichlet neural architecture search (DrNAS).
///
/// Searches for a convolutional architecture directly on the target images: packs an ImageFolder into shards, trains the
/// DrNAS supernet on any number of MPI ranks in progressive stages, and writes the genotype it finds.
#[derive(Debug, Parser)]
#[command(name = "drnas-dist", version, after_help = EXAMPLES, after_long_help = EXAMPLES)]
#[command(arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// One variant per subcommand, in the order of a first run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate a small labelled set of JPEG images for trying out the program.
    DemoData(DemoArgs),
    /// Split a data set into disjoint, class-balanced lists of images.
    Split(SplitArgs),
    /// Pack all or part of an ImageFolder, CIFAR or ImageNet16 into memory-mapped shards.
    Pack(PackArgs),
    /// Search for DARTS cells on ImageNet-like shards; on several ranks under mpirun.
    SearchImagenet(SearchArgs),
    /// Search for DARTS cells on CIFAR-like shards; on several ranks under mpirun.
    SearchCifar(SearchArgs),
    /// Search for a NAS-Bench-201 cell and look up its accuracy; on several ranks under mpirun.
    SearchNb201(SearchNb201Args),
    /// Train an architecture from scratch on ImageNet-like shards and test it; on several ranks under mpirun.
    EvaluateImagenet(EvaluateArgs),
    /// Train an architecture from scratch on CIFAR-like shards and test it; on several ranks under mpirun.
    EvaluateCifar(EvaluateArgs),
    /// Export a trained network to PyTorch: weights, genotype, and a Python file that loads them.
    Export(ExportArgs),
    /// Compare several runs.
    #[command(subcommand)]
    Report(ReportCommand),
    /// Import the NAS-Bench-201 table and look up architectures in it.
    Nb201(Nb201Args),
    /// Plot a figure of a run.
    Plot(PlotArgs),
    /// Compare the networks with golden files of the published code.
    Verify(VerifyArgs),
    /// Check libraries, ranks, threads and devices, and report problems.
    Doctor,
    /// Measure the training speed on synthetic images; the trained weights are discarded.
    Bench(BenchArgs),
}

const EXAMPLES: &str = "\
Examples:
  drnas-dist demo-data demo/images
  drnas-dist split demo/images --fractions 0.6,0.3 --names train,valid --out demo/lists
  drnas-dist pack demo/images demo/train --list demo/lists/train.txt
  drnas-dist pack demo/images demo/valid --list demo/lists/valid.txt
  mpirun --bind-to none -n 2 drnas-dist search-imagenet --config configs/quickstart.toml \\
      --train demo/train --valid demo/valid --out runs/first

Exit codes:
  0    success
  1    error, reported in one line on stderr
  2    usage error
  75   stopped with a checkpoint by SIGUSR1 (or, without mpirun, by SIGINT or SIGTERM); use --resume
  130  interrupted without a new checkpoint; --resume continues from the newest one
A run has finished if RUN/finished.json exists, whatever exit code mpirun returns.

Environment:
  DRNAS_PROGRESS=bar|lines   progress of runs: one line that is updated after every step (default if
                             standard output, under mpirun that of mpirun, is a terminal), or a
                             plain line every run.log_every steps (default otherwise)
  OMP_NUM_THREADS            threads per rank unless run.threads is set";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
