//! What a user may type: every argument type is here, and nowhere else.

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
    /// Pack an ImageFolder, CIFAR or ImageNet16, whole or in part, into memory-mapped shards.
    Pack(PackArgs),
    /// Search an architecture on shards; under mpirun, over many ranks.
    SearchImagenet(SearchArgs),
    /// Search DARTS cells on CIFAR-10 shards, in two stages.
    SearchCifar(SearchArgs),
    /// Search a NAS-Bench-201 cell, and look up what it reaches.
    SearchNb201(SearchNb201Args),
    /// Train a found network from scratch on ImageNet-like images, and test it; under mpirun, over many ranks.
    EvaluateImagenet(EvaluateArgs),
    /// The same on CIFAR-like images.
    EvaluateCifar(EvaluateArgs),
    /// Take a trained network to PyTorch: weights, genotype, and one Python file that loads them.
    Export(ExportArgs),
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
    /// Measure training steps on synthetic images; what is trained is thrown away.
    Bench(BenchArgs),
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
  0    done
  1    error; one line on stderr says which
  2    wrong usage
  75   stopped by SIGUSR1 (or, without mpirun, by SIGINT or SIGTERM) with a checkpoint; go on with --resume
  130  interrupted at once; go on with --resume from the newest checkpoint
A run has finished when RUN/finished.json is there, whatever mpirun answers.

Environment:
  DRNAS_PROGRESS=bar|lines   how runs show their progress: in one line that is updated after every step
                             (the default where standard output, or that of mpirun, is a terminal), or as
                             a plain line every run.log_every steps (the default in files, pipes and srun)";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
