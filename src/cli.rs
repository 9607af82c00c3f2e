//! What a user may type.

use crate::config::{DeviceChoice, Precision, Settings};
use crate::data::demo::DemoArgs;
use crate::data::pack::PackArgs;
use crate::data::split::SplitArgs;
use crate::error::Result;
use crate::nb201::Nb201Args;
use crate::plot::PlotArgs;
use crate::space::nb201::Dataset;
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

/// Arguments of `search-nb201`.
#[derive(Args, Debug)]
pub struct SearchNb201Args {
    /// What the shards hold: sets classes, side, padding and normalisation, over the configuration.
    #[arg(long, value_enum)]
    pub dataset: Dataset,
    /// The published progressive run (k 4, then 2), instead of the plain one, if there is no --config.
    #[arg(long, conflicts_with = "config")]
    pub progressive: bool,
    /// The benchmark's table (drnas-dist nb201 import): every epoch tells what its architecture reaches.
    #[arg(long, value_name = "FILE")]
    pub table: Option<PathBuf>,
    /// What every search is given.
    #[command(flatten)]
    pub search: SearchArgs,
}

/// Arguments of `search-imagenet` and `search-cifar`.
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

/// Arguments of `evaluate-imagenet` and `evaluate-cifar`.
#[derive(Args, Debug)]
#[command(after_help = EVALUATE_EXAMPLES)]
pub struct EvaluateArgs {
    /// What every run is given.
    #[command(flatten)]
    pub run: RunArgs,
    /// The architecture: a file (the genotype.json of a search), a published name (DrNAS_imagenet, DrNAS_cifar10,
    /// PC_DARTS_image, PC_DARTS_cifar, DARTS_V1, DARTS_V2), or the one-line text of DARTS code.
    #[arg(long, value_name = "FILE|NAME|TEXT")]
    pub genotype: String,
    /// Folder of shards that train the network.
    #[arg(long, value_name = "SHARDS", required_unless_present = "test_only")]
    pub train: Option<PathBuf>,
    /// Folder of shards that test it.
    #[arg(long, value_name = "SHARDS")]
    pub test: PathBuf,
    /// Only test the weights of --weights; the result goes to RUN/test.json, which must not be there yet.
    #[arg(long, requires = "weights", conflicts_with_all = ["train", "resume"])]
    pub test_only: bool,
    /// Weights to test: a safetensors file of an export, RUN/best.safetensors, or a checkpoint's state.safetensors.
    #[arg(long, value_name = "FILE", requires = "test_only")]
    pub weights: Option<PathBuf>,
}

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

/// Arguments of everything that makes a run folder.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The configuration, a TOML file; configs/README.md explains every key. Without one: the published run.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
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

impl RunArgs {
    /// The configuration with every `--set`, and before them `sets`; without a file, the published one: its name and text.
    pub fn settings<S: Settings>(&self, published: (&str, &str), sets: &[String]) -> Result<S> {
        let sets = [sets, &self.sets].concat();
        match &self.config {
            Some(path) => S::load(path, &sets),
            None => S::parse(published.1, published.0, &sets),
        }
    }
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
A run has finished when RUN/finished.json is there, whatever mpirun answers.";

const EVALUATE_EXAMPLES: &str = "\
Examples:
  mpirun -n 8 drnas-dist evaluate-imagenet --config configs/evaluate-imagenet.toml \\
      --genotype runs/imagenet/genotype.json --train shards/all --test shards/val --out runs/evaluation
  ... the same with --resume      goes on after an interruption; other numbers of ranks will do
  drnas-dist evaluate-cifar --config runs/evaluation/config.toml --genotype runs/evaluation/genotype.json \\
      --test shards/test --test-only --weights runs/evaluation/best.safetensors --out runs/test";

const SEARCH_EXAMPLES: &str = "\
Examples:
  mpirun -n 8 drnas-dist search-imagenet --config configs/search-imagenet.toml \\
      --train shards/train --valid shards/valid --out runs/imagenet
  drnas-dist search-nb201 --dataset cifar10 --progressive --table nb201.table \\
      --train shards/train --valid shards/valid --out runs/nb201
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
