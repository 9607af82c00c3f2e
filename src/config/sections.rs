//! The sections of a configuration file, as they are written there, with their defaults.

use crate::space::SearchSpace;
use serde::{Deserialize, Serialize};

/// In which kind gradients travel between cards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduce {
    /// As they are.
    #[default]
    Fp32,
    /// Rounded to bfloat16 before they are summed: half the bytes.
    Bf16,
}

/// Where a rank computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// On cards if every rank has one, else on the CPU.
    #[default]
    Auto,
    /// On a card, or not at all.
    Cuda,
    /// On the CPU.
    Cpu,
}

/// The supernet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSection {
    /// Family of networks.
    pub space: SearchSpace,
    /// C, channels of the first cell's nodes; doubled at each of the two reduction cells.
    pub init_channels: i64,
    /// Number of cells; those at layers / 3 and 2 layers / 3 (rounded down) reduce.
    pub layers: i64,
    /// Outputs of the head; the shards must hold as many classes.
    pub num_classes: i64,
}

/// Images: size, augmentation, workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSection {
    /// Side of the square that the network sees, pixels.
    pub px: i64,
    /// Which part of a training picture is taken.
    pub crop: CropKind,
    /// RandomResizedCrop: smallest part of the picture's area, in (0, 1].
    pub crop_area_min: f64,
    /// `CropKind::Pad`: black pixels on each side.
    pub pad: u32,
    /// Mirror half of the images left to right.
    pub flip: bool,
    /// Colour jitter: strength of brightness, contrast, saturation, hue; 0 = none.
    pub jitter: [f64; 4],
    /// Side of the square that is cut out of a training picture, pixels; 0 = none.
    pub cutout: u32,
    /// The shorter side of a test picture becomes so long, pixels; 0 = automatic, see `test_resize_px`.
    pub test_resize: i64,
    /// Side of the centre of it that is tested, pixels; 0 = px.
    pub test_crop: i64,
    /// Subtracted from each channel (red, green, blue, in 0..1).
    pub mean: [f64; 3],
    /// Each channel is divided by this.
    pub std: [f64; 3],
    /// Threads that decode and augment, per rank; 0 = automatic.
    pub decode_threads: usize,
    /// Batches made ahead, per stream; bounds the memory of the loader.
    pub prefetch: usize,
    /// Replace an undecodable image by another one and count it, instead of ending the run.
    pub skip_bad: bool,
}

/// Which part of a training picture is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CropKind {
    /// A random rectangle, resized (ImageNet).
    RandomResized,
    /// A random square of the padded picture, not resized (CIFAR).
    Pad,
}

impl DataSection {
    /// Side of a test picture, pixels.
    pub fn test_crop_px(&self) -> i64 {
        if self.test_crop > 0 { self.test_crop } else { self.px }
    }

    /// Length that the shorter side of a test picture gets, pixels. Automatic: the published proportion 256 : 224 where
    /// training resizes, nothing is cut off where it does not.
    pub fn test_resize_px(&self) -> i64 {
        match (self.test_resize, self.crop) {
            (0, CropKind::RandomResized) => (self.test_crop_px() * 8 + 3) / 7,
            (0, CropKind::Pad) => self.test_crop_px(),
            (side, _) => side,
        }
    }
}

/// How often theta is drawn in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Theta {
    /// Each replica draws its own (published behaviour).
    PerReplica,
    /// One draw for all replicas: another estimator of the same gradient, with more variance.
    Shared,
}

/// What the architecture's gradient knows of the weights' training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum GradientOrder {
    /// 1: the weights are as they are.
    First,
    /// 2: the weights after one virtual step, which depends on eta; four passes instead of one.
    Second,
}

impl From<GradientOrder> for u8 {
    fn from(order: GradientOrder) -> u8 {
        match order {
            GradientOrder::First => 1,
            GradientOrder::Second => 2,
        }
    }
}

impl TryFrom<u8> for GradientOrder {
    type Error = String;

    fn try_from(order: u8) -> Result<GradientOrder, String> {
        match order {
            1 => Ok(GradientOrder::First),
            2 => Ok(GradientOrder::Second),
            order => Err(format!("order must be 1 or 2, found {order}")),
        }
    }
}

/// The search: replicas, batch, stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SearchSection {
    /// R, the logical replicas that the global batch is split over. Ranks must divide R; the result does not depend on
    /// the number of ranks.
    pub replicas: i64,
    /// Images per step, over all replicas.
    pub global_batch: i64,
    /// How often theta is drawn.
    pub theta: Theta,
    /// Whether an architecture step differentiates through a virtual weight step.
    pub order: GradientOrder,
    /// Largest norm of the averaged gradients of the weights; 0 = no clipping.
    pub grad_clip: f64,
    /// Architecture steps begin at this epoch **of each stage**, counted from 0: so many epochs train weights only.
    pub architecture_from_epoch: u64,
    /// Steps of one epoch; 0 = the whole set, less the last incomplete batch.
    pub steps_per_epoch: u64,
    /// The stages, in order (`[[search.stage]]` in the file).
    #[serde(rename = "stage")]
    pub stages: Vec<StageSection>,
}

/// One stage of the progressive search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSection {
    /// Partial-channel divisor: 1/k of the channels go through the operations; 1 = all.
    pub k: i64,
    /// Operations left on every edge, 1..=7.
    pub ops_kept: usize,
    /// Epochs of the stage.
    pub epochs: u64,
}

/// SGD of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WeightsSection {
    /// Learning rate at the top of the cosine.
    pub lr: f64,
    /// Learning rate at its foot.
    pub lr_min: f64,
    /// Momentum, in [0, 1).
    pub momentum: f64,
    /// L2 weight decay.
    pub weight_decay: f64,
    /// Epochs of linear warm-up, over the whole run (not per stage); 0 = none.
    pub warmup_epochs: u64,
}

/// What pulls eta towards the uniform Dirichlet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Regulariser {
    /// Weight decay of Adam (the only one that was published for ImageNet).
    L2,
    /// `kl_scale` * the sum over edges of KL(Dirichlet(beta) || Dirichlet(1)); weight decay is then 0.
    Kl,
}

/// Adam of the architecture parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EtaSection {
    /// Learning rate, constant.
    pub lr: f64,
    /// Decay of the two moments, each in [0, 1).
    pub betas: [f64; 2],
    /// L2 weight decay; 0 when `regulariser` is `Kl`.
    pub weight_decay: f64,
    /// What pulls eta towards the uniform Dirichlet.
    pub regulariser: Regulariser,
    /// Weight of the KL term.
    pub kl_scale: f64,
    /// Largest norm of eta's averaged gradient; 0 = no clipping.
    pub grad_clip: f64,
}

/// Reporting, checkpoints, communication.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunSection {
    /// Steps between two looks at the losses: the progress moves, the log gets its lines, a NaN ends the run.
    pub log_every: u64,
    /// Steps between comparisons of the hash of eta, masks and weights over the ranks.
    pub compare_every: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Newest checkpoints kept.
    pub checkpoints_kept: usize,
    /// Size of a gradient bucket, MiB: what travels at once while backward goes on.
    pub bucket_mib: f64,
    /// In which kind gradients travel between cards.
    pub reduce: Reduce,
    /// libtorch threads per rank; 0 = automatic. Another number adds in another order: results differ by rounding.
    pub threads: usize,
    /// A rank that has not started so long after another ends the run, seconds.
    pub start_limit_s: f64,
    /// A collective that takes longer ends the run, seconds.
    pub time_limit_s: f64,
    /// A rank that gives no sign of life for so long ends the run, seconds; 0 = it is not watched.
    pub heartbeat_s: f64,
}

impl Default for ModelSection {
    fn default() -> Self {
        ModelSection { space: SearchSpace::DartsImagenet, init_channels: 48, layers: 14, num_classes: 1000 }
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

impl Default for SearchSection {
    fn default() -> Self {
        let stage = |k, ops_kept| StageSection { k, ops_kept, epochs: 25 };
        SearchSection {
            replicas: 8,
            global_batch: 512,
            theta: Theta::PerReplica,
            order: GradientOrder::First,
            grad_clip: 5.0,
            architecture_from_epoch: 10,
            steps_per_epoch: 0,
            stages: vec![stage(6, 7), stage(3, 4)],
        }
    }
}

impl Default for WeightsSection {
    fn default() -> Self {
        WeightsSection { lr: 0.5, lr_min: 0.0, momentum: 0.9, weight_decay: 3e-4, warmup_epochs: 5 }
    }
}

impl Default for EtaSection {
    fn default() -> Self {
        EtaSection {
            lr: 6e-3,
            betas: [0.5, 0.999],
            weight_decay: 1e-3,
            regulariser: Regulariser::L2,
            kl_scale: 1e-3,
            grad_clip: 5.0,
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
