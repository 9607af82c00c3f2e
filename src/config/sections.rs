//! Sections that the configurations of searches and evaluations share, and their defaults.

use crate::space::edges::EdgeOperations;
use crate::space::{Operation, SearchSpace};
use serde::{Deserialize, Serialize};

/// Data type of gradients in transfers between GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduce {
    /// float32, unchanged.
    #[default]
    Fp32,
    /// Rounded to bfloat16 before the sum: half the bytes.
    Bf16,
}

/// Device of a rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// GPUs if every rank has one, the CPU if no host has a GPU, otherwise an error.
    #[default]
    Auto,
    /// One GPU per rank; an error if a rank has none.
    Cuda,
    /// The CPU.
    Cpu,
}

/// The network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSection {
    /// Search space.
    pub space: SearchSpace,
    /// C, channels of the first cell's nodes; doubled at each of the two reduction cells.
    pub init_channels: i64,
    /// Number of cells; those at layers / 3 and 2 layers / 3 (rounded down) are reduction cells.
    pub layers: i64,
    /// Outputs of the head; must equal the number of classes in the shards.
    pub num_classes: i64,
    /// Searches: the operations on every edge, in the order of the columns of the tables; empty = those of the method.
    pub operations: Vec<Operation>,
    /// Searches: edges with fewer operations, such as "normal 2<-0: skip_connect, dil_conv_5x5".
    pub edges: Vec<EdgeOperations>,
}

/// Images: size, augmentation, workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSection {
    /// Side of the square network input, pixels.
    pub px: i64,
    /// Random crop of a training image.
    pub crop: CropKind,
    /// RandomResizedCrop: smallest fraction of the image area, in (0, 1].
    pub crop_area_min: f64,
    /// `CropKind::Pad`: black pixels on each side.
    pub pad: u32,
    /// Flip half of the training images horizontally.
    pub flip: bool,
    /// Colour jitter: strength of brightness, contrast, saturation, hue; 0 = none.
    pub jitter: [f64; 4],
    /// Side of the Cutout square in a training image, pixels; 0 = none.
    pub cutout: u32,
    /// Test images are resized so that their shorter side has this length, pixels; 0 = automatic, see `test_resize_px`.
    pub test_resize: i64,
    /// Side of the centre crop of a test image, pixels; 0 = px.
    pub test_crop: i64,
    /// Mean subtracted from each channel (red, green, blue, in 0..1).
    pub mean: [f64; 3],
    /// Standard deviation by which each channel is divided.
    pub std: [f64; 3],
    /// Threads per rank that decode and augment; 0 = automatic.
    pub decode_threads: usize,
    /// Batches prefetched per stream; bounds the memory of the loader.
    pub prefetch: usize,
    /// Replace an undecodable image by another image and count it instead of ending the run.
    pub skip_bad: bool,
}

/// Random crop of a training image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CropKind {
    /// A random rectangle, resized (ImageNet).
    RandomResized,
    /// A random square of the padded image, not resized (CIFAR).
    Pad,
}

impl DataSection {
    /// Side of the centre crop of a test image, pixels.
    pub fn test_crop_px(&self) -> i64 {
        if self.test_crop > 0 { self.test_crop } else { self.px }
    }

    /// Shorter side of a resized test image, pixels. Automatic: the published ratio 256 : 224 if training resizes,
    /// otherwise equal to the crop.
    pub fn test_resize_px(&self) -> i64 {
        match (self.test_resize, self.crop) {
            (0, CropKind::RandomResized) => (self.test_crop_px() * 8 + 3) / 7,
            (0, CropKind::Pad) => self.test_crop_px(),
            (side, _) => side,
        }
    }
}

/// SGD of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WeightsSection {
    /// Peak learning rate of the schedule.
    pub lr: f64,
    /// Final learning rate of the cosine.
    pub lr_min: f64,
    /// Momentum, in [0, 1).
    pub momentum: f64,
    /// Nesterov momentum.
    pub nesterov: bool,
    /// L2 weight decay.
    pub weight_decay: f64,
    /// Epochs of linear warm-up, over the whole run (not per stage); 0 = none.
    pub warmup_epochs: u64,
}

/// Reporting, checkpoints, communication.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunSection {
    /// Steps between read-backs of the losses: updates the progress line, writes the log, and ends the run on a NaN.
    pub log_every: u64,
    /// Steps between comparisons of the hash of eta, masks and weights across ranks.
    pub compare_every: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Number of newest checkpoints kept.
    pub checkpoints_kept: usize,
    /// Size of a gradient bucket, MiB; a bucket is reduced while the backward pass continues.
    pub bucket_mib: f64,
    /// Data type of gradients in transfers between GPUs.
    pub reduce: Reduce,
    /// libtorch threads per rank; 0 = automatic. The number changes the order of summation: results differ by rounding.
    pub threads: usize,
    /// Time after the start of the first rank by which all ranks must have started, seconds.
    pub start_limit_s: f64,
    /// Time limit of a collective, seconds.
    pub time_limit_s: f64,
    /// Time without a heartbeat after which a rank counts as lost and the run ends, seconds; 0 = off.
    pub heartbeat_s: f64,
}

impl Default for ModelSection {
    fn default() -> Self {
        ModelSection {
            space: SearchSpace::DartsImagenet,
            init_channels: 48,
            layers: 14,
            num_classes: 1000,
            operations: Vec::new(),
            edges: Vec::new(),
        }
    }
}

impl Default for DataSection {
    fn default() -> Self {
        DataSection {
            px: 224,
            crop: CropKind::RandomResized,
            crop_area_min: 0.08,
            pad: 4,
            flip: true,
            jitter: [0.0; 4],
            cutout: 0,
            test_resize: 0,
            test_crop: 0,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            decode_threads: 0,
            prefetch: 2,
            skip_bad: false,
        }
    }
}

impl Default for WeightsSection {
    fn default() -> Self {
        WeightsSection {
            lr: 0.5,
            lr_min: 0.0,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 3e-4,
            warmup_epochs: 5,
        }
    }
}

impl Default for RunSection {
    fn default() -> Self {
        RunSection {
            log_every: 50,
            compare_every: 100,
            checkpoint_every: 500,
            checkpoints_kept: 3,
            bucket_mib: 1.0,
            reduce: Reduce::Fp32,
            threads: 0,
            start_limit_s: 30.0,
            time_limit_s: 300.0,
            heartbeat_s: 20.0,
        }
    }
}
