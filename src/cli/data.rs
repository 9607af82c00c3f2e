//! Arguments of the commands that make data sets: `demo-data`, `split`, `pack`.

use clap::{Args, ValueEnum};
use std::ops::Range;
use std::path::PathBuf;

/// Draws a small labelled JPEG ImageFolder to try the program with
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Folder for the images: OUT/CLASS/NNNN.jpg
    pub out: PathBuf,
    /// Number of classes, 2 to 24
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub classes: usize,
    /// Images of each class
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub per_class: usize,
    /// Another seed draws other images
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Width and height lie in this range, both ends included
    #[arg(long, default_value = "96..160", value_name = "A..B")]
    pub px: String,
}

/// How a data set is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceFormat {
    /// ROOT/CLASS/IMAGE.jpg
    Folder,
    /// data_batch_1.bin to data_batch_5.bin, test_batch.bin, batches.meta.txt
    Cifar10,
    /// train.bin, test.bin, fine_label_names.txt
    Cifar100,
    /// train_data_batch_1 to train_data_batch_10, val_data (the ImageNet of 16 x 16 pixels)
    Imagenet16,
}

/// Which images of a data set.
#[derive(Args, Clone, Debug, Default)]
pub struct SourceArgs {
    /// Layout of ROOT; without it, the files in ROOT tell
    #[arg(long, value_enum)]
    pub format: Option<SourceFormat>,
    /// The test images instead of the training images (not for a folder)
    #[arg(long)]
    pub test: bool,
    /// Only the first N classes; ImageNet16-120 has 120 (not for a folder)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub classes: Option<u32>,
    /// Only images A..B in the order of the files, B excluded (not for a folder)
    #[arg(long, value_name = "A..B", value_parser = range)]
    pub range: Option<Range<u32>>,
    /// Only images in a list of this JSON file, as NAS-Bench-201 publishes them: {"NAME": ["int", ["0", "5", ...]], ...}
    /// (not for a folder)
    #[arg(long, value_name = "FILE", requires = "part", conflicts_with = "range")]
    pub split_file: Option<PathBuf>,
    /// NAME of the list in the split file
    #[arg(long, value_name = "NAME", requires = "split_file")]
    pub part: Option<String>,
}

fn range(text: &str) -> Result<Range<u32>, String> {
    let ends = text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    ends.filter(|range| !range.is_empty()).ok_or_else(|| "A..B expected, A below B".into())
}

/// Draws class-balanced, disjoint lists of images
#[derive(Args, Clone, Debug)]
pub struct SplitArgs {
    /// The data set, such as an ImageFolder: ROOT/CLASS/IMAGE.jpg. Other layouts: see --format
    pub root: PathBuf,
    /// Layout, and which images.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Part of each class that goes into each list; at most 1 together
    #[arg(long, value_delimiter = ',', default_value = "0.10,0.025", value_name = "F,F")]
    pub fractions: Vec<f64>,
    /// Name of each list: train -> DIR/train.txt
    #[arg(long, value_delimiter = ',', default_value = "train,valid", value_name = "NAME,NAME")]
    pub names: Vec<String>,
    /// Folder for the lists
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Another seed draws other images
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Replace lists of another content
    #[arg(long)]
    pub overwrite: bool,
}

/// Packs an ImageFolder, CIFAR or ImageNet16 into memory-mapped shards
#[derive(Args, Clone, Debug)]
pub struct PackArgs {
    /// The data set, such as an ImageFolder: ROOT/CLASS/IMAGE.jpg; a class's label is its place in the sorted list of
    /// folders. Other layouts: see --format
    pub root: PathBuf,
    /// Folder for the shards; given again, an interrupted pack goes on where it stopped
    pub out: PathBuf,
    /// Layout, and which images.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Only the images that this list names (lines "class/file", see `split`)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["split_file", "range"])]
    pub list: Option<PathBuf>,
    /// Leave out images that cannot be decoded; they are listed in OUT/bad.txt
    #[arg(long)]
    pub skip_bad: bool,
    /// Do not decode every image once to find damaged ones now (headers are still read)
    #[arg(long)]
    pub no_decode: bool,
    /// Remove shards of another set from OUT first
    #[arg(long)]
    pub overwrite: bool,
    /// Seed of the order in which images go into shards
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Images in one shard
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub shard_images: u32,
    /// Threads; 0 means one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: usize,
}
