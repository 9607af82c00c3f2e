//! Arguments of the commands that create data sets: `demo-data`, `split`, `pack`.

use clap::{Args, ValueEnum};
use std::ops::Range;
use std::path::PathBuf;

/// Arguments of `demo-data`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Folder for the images: OUT/CLASS/NNNN.jpg
    pub out: PathBuf,
    /// Number of classes, 2 to 24
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub classes: usize,
    /// Images per class
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub per_class: usize,
    /// Random seed; another seed generates other images
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Range of the width and height in pixels, both ends included
    #[arg(long, default_value = "96..160", value_name = "A..B")]
    pub px: String,
}

/// File layout of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceFormat {
    /// ROOT/CLASS/IMAGE.jpg
    Folder,
    /// data_batch_1.bin to data_batch_5.bin, test_batch.bin, batches.meta.txt
    Cifar10,
    /// train.bin, test.bin, fine_label_names.txt
    Cifar100,
    /// train_data_batch_1 to train_data_batch_10, val_data (ImageNet downsampled to 16 x 16 pixels)
    Imagenet16,
}

/// Selects images of a data set.
#[derive(Args, Clone, Debug, Default)]
pub struct SourceArgs {
    /// Layout of ROOT; detected from its files if omitted
    #[arg(long, value_enum)]
    pub format: Option<SourceFormat>,
    /// Use the test images instead of the training images (not with --format folder)
    #[arg(long)]
    pub test: bool,
    /// Use only the first N classes; 120 for ImageNet16-120 (not with --format folder)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub classes: Option<u32>,
    /// Use only images A..B in file order, B excluded (not with --format folder)
    #[arg(long, value_name = "A..B", value_parser = range)]
    pub range: Option<Range<u32>>,
    /// Use only the images in one list of this JSON file, in the format that NAS-Bench-201 publishes:
    /// {"NAME": ["int", ["0", "5", ...]], ...} (not with --format folder)
    #[arg(long, value_name = "FILE", requires = "part", conflicts_with = "range")]
    pub split_file: Option<PathBuf>,
    /// NAME of the list in the split file
    #[arg(long, value_name = "NAME", requires = "split_file")]
    pub part: Option<String>,
}

fn range(text: &str) -> Result<Range<u32>, String> {
    let ends = text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    ends.filter(|range| !range.is_empty()).ok_or_else(|| "expected A..B with A below B".into())
}

/// Arguments of `split`.
#[derive(Args, Clone, Debug)]
pub struct SplitArgs {
    /// The data set, such as an ImageFolder: ROOT/CLASS/IMAGE.jpg. Other layouts: see --format
    pub root: PathBuf,
    /// Layout and selection of images.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Fraction of each class that goes into each list; their sum is at most 1
    #[arg(long, value_delimiter = ',', default_value = "0.10,0.025", value_name = "F,F")]
    pub fractions: Vec<f64>,
    /// Name of each list; list NAME is written to DIR/NAME.txt
    #[arg(long, value_delimiter = ',', default_value = "train,valid", value_name = "NAME,NAME")]
    pub names: Vec<String>,
    /// Folder for the lists
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Random seed; another seed draws other images
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Replace existing lists with different content
    #[arg(long)]
    pub overwrite: bool,
}

/// Arguments of `pack`.
#[derive(Args, Clone, Debug)]
pub struct PackArgs {
    /// The data set, such as an ImageFolder: ROOT/CLASS/IMAGE.jpg; the label of a class is its index in the sorted list
    /// of folders. Other layouts: see --format
    pub root: PathBuf,
    /// Folder for the shards; repeat the command to continue after an interruption
    pub out: PathBuf,
    /// Layout and selection of images.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Pack only the images in this list (lines "class/file", see `split`)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["split_file", "range"])]
    pub list: Option<PathBuf>,
    /// Skip images that cannot be decoded and list them in OUT/bad.txt
    #[arg(long)]
    pub skip_bad: bool,
    /// Do not decode the images; this skips the check for corrupt images (headers are still read)
    #[arg(long)]
    pub no_decode: bool,
    /// Remove shards of another shard set from OUT first
    #[arg(long)]
    pub overwrite: bool,
    /// Random seed of the order of images in the shards
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Maximum number of images per shard
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub shard_images: u32,
    /// Number of threads; 0 = one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: usize,
}
