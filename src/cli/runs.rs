//! Arguments of the commands that write a run folder: searches and evaluations.

use crate::config::{self, Config, Method, Settings, published};
use crate::space::SearchSpace;
use crate::space::nb201::Dataset;
use clap::Args;
use std::path::PathBuf;

/// Arguments common to searches and evaluations.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Configuration file (TOML, see configs/README.md); if omitted, the published configuration.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run folder for checkpoints, metrics and results; created if missing. An existing run is never overwritten.
    #[arg(long, value_name = "RUN")]
    pub out: PathBuf,
    /// Override one key of the configuration; can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Resume from the newest valid checkpoint in RUN; start from scratch if there is none.
    #[arg(long)]
    pub resume: bool,
    /// Let several ranks share one GPU, for testing; requires NCCL 2.30 or newer and NCCL_MULTI_RANK_GPU_ENABLE=1.
    #[arg(long)]
    pub share_gpu: bool,
}

impl RunArgs {
    /// Loads the configuration and applies `overrides`, then every `--set`. Without `--config`, parses `published`
    /// (name, text).
    pub fn settings<S: Settings>(&self, published: (&str, &str), overrides: &[String]) -> config::Result<S> {
        let overrides = [overrides, &self.sets].concat();
        match &self.config {
            Some(path) => S::load(path, &overrides),
            None => S::parse(published.1, published.0, &overrides),
        }
    }
}

/// Arguments of `search-imagenet` and `search-cifar`.
#[derive(Args, Debug)]
#[command(after_help = SEARCH_EXAMPLES)]
pub struct SearchArgs {
    /// Arguments shared with evaluations.
    #[command(flatten)]
    pub run: RunArgs,
    /// Folder of the shards on which the weights are trained.
    #[arg(long, value_name = "SHARDS")]
    pub train: PathBuf,
    /// Folder of the shards on which the architecture parameters are trained; not in a single-level search, which trains
    /// everything on --train.
    #[arg(long, value_name = "SHARDS")]
    pub valid: Option<PathBuf>,
    /// Search method. Without --config, selects its published configuration (configs/methods); with --config, the same
    /// as --set method=METHOD.
    #[arg(long, value_enum)]
    pub method: Option<Method>,
}

impl SearchArgs {
    /// Loads the configuration and applies `overrides`, `--method`, then every `--set`. `published`: the configuration
    /// without `--config` and `--method`, name and text.
    pub fn config(
        &self,
        space: SearchSpace,
        published: (&str, &str),
        overrides: Vec<String>,
    ) -> config::Result<Config> {
        let published = self.method.map_or(published, |method| published::of_method(method, space));
        let method = self.method.filter(|_| self.run.config.is_some());
        let method = method.map(|method| format!("method={}", method.name()));
        self.run.settings(published, &overrides.into_iter().chain(method).collect::<Vec<_>>())
    }
}

/// Arguments of `search-nb201`.
#[derive(Args, Debug)]
pub struct SearchNb201Args {
    /// Data set of the shards; overrides the number of classes, image size, padding and normalisation of the
    /// configuration.
    #[arg(long, value_enum)]
    pub dataset: Dataset,
    /// Use the published progressive configuration of DrNAS (k 4, then 2) instead of the single-stage one.
    #[arg(long, conflicts_with_all = ["config", "method"])]
    pub progressive: bool,
    /// Benchmark table (from `drnas-dist nb201 import`) in which the architecture of each epoch is looked up.
    #[arg(long, value_name = "FILE")]
    pub table: Option<PathBuf>,
    /// Arguments shared with the other searches.
    #[command(flatten)]
    pub search: SearchArgs,
}

/// Arguments of `evaluate-imagenet` and `evaluate-cifar`.
#[derive(Args, Debug)]
#[command(after_help = EVALUATE_EXAMPLES)]
pub struct EvaluateArgs {
    /// Arguments shared with searches.
    #[command(flatten)]
    pub run: RunArgs,
    /// The architecture: a file (genotype.json of a search), a published name (DrNAS_imagenet, DrNAS_cifar10,
    /// PC_DARTS_image, PC_DARTS_cifar, DARTS_V1, DARTS_V2), or a genotype in the one-line notation of the DARTS code.
    #[arg(long, value_name = "FILE|NAME|TEXT")]
    pub genotype: String,
    /// Folder of the shards with the training images.
    #[arg(long, value_name = "SHARDS", required_unless_present = "test_only")]
    pub train: Option<PathBuf>,
    /// Folder of the shards with the test images.
    #[arg(long, value_name = "SHARDS")]
    pub test: PathBuf,
    /// Only test --weights and write the result to RUN/test.json, which must not exist yet.
    #[arg(long, requires = "weights", conflicts_with_all = ["train", "resume"])]
    pub test_only: bool,
    /// Weights to test: exported safetensors, RUN/best.safetensors, or the state.safetensors of a checkpoint.
    #[arg(long, value_name = "FILE", requires = "test_only")]
    pub weights: Option<PathBuf>,
}

const SEARCH_EXAMPLES: &str = "\
Examples:
  mpirun --bind-to none -n 8 drnas-dist search-imagenet --train shards/train \\
      --valid shards/valid --out runs/search-imagenet
  drnas-dist search-nb201 --dataset cifar10 --progressive --table nb201.table \\
      --train shards/c10-a --valid shards/c10-b --out runs/nb201
  mpirun --bind-to none -n 2 drnas-dist search-cifar --method pc-darts --train shards/c10-a \\
      --valid shards/c10-b --out runs/pc-darts

Append --resume to continue after an interruption; the number of ranks may change.
To override keys: --set seed=1 --set search.stage.2.epochs=30";

const EVALUATE_EXAMPLES: &str = "\
Examples:
  mpirun --bind-to none -n 8 drnas-dist evaluate-imagenet \\
      --genotype runs/search-imagenet/genotype.json --train shards/all \\
      --test shards/val --out runs/evaluate-imagenet
  drnas-dist evaluate-cifar --config runs/evaluate-cifar10/config.toml \\
      --genotype runs/evaluate-cifar10/genotype.json --test shards/cifar10-test \\
      --test-only --weights runs/evaluate-cifar10/best.safetensors --out runs/test

Append --resume to continue after an interruption; the number of ranks may change.";
