//! Arguments of the commands that make a run folder: searches and evaluations.

use crate::config::{self, Settings};
use crate::space::nb201::Dataset;
use clap::Args;
use std::path::PathBuf;

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
    pub fn settings<S: Settings>(&self, published: (&str, &str), sets: &[String]) -> config::Result<S> {
        let sets = [sets, &self.sets].concat();
        match &self.config {
            Some(path) => S::load(path, &sets),
            None => S::parse(published.1, published.0, &sets),
        }
    }
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

const SEARCH_EXAMPLES: &str = "\
Examples:
  mpirun -n 8 drnas-dist search-imagenet --config configs/search-imagenet.toml \\
      --train shards/train --valid shards/valid --out runs/imagenet
  drnas-dist search-nb201 --dataset cifar10 --progressive --table nb201.table \\
      --train shards/train --valid shards/valid --out runs/nb201
  ... the same with --resume      goes on after an interruption; other numbers of ranks will do
  ... --set seed=1 --set search.stage.2.epochs=30";

const EVALUATE_EXAMPLES: &str = "\
Examples:
  mpirun -n 8 drnas-dist evaluate-imagenet --config configs/evaluate-imagenet.toml \\
      --genotype runs/imagenet/genotype.json --train shards/all --test shards/val --out runs/evaluation
  ... the same with --resume      goes on after an interruption; other numbers of ranks will do
  drnas-dist evaluate-cifar --config runs/evaluation/config.toml --genotype runs/evaluation/genotype.json \\
      --test shards/test --test-only --weights runs/evaluation/best.safetensors --out runs/test";
