//! Sections of the configuration of a search and their defaults.

use serde::{Deserialize, Serialize};

/// How theta is drawn in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Theta {
    /// Each replica draws its own (published behaviour).
    PerReplica,
    /// One draw for all replicas: an estimator of the same gradient with a higher variance.
    Shared,
}

/// Order of the architecture gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum GradientOrder {
    /// 1: at the current weights, taken as constant.
    First,
    /// 2: at the weights after one virtual step, which depends on eta; four passes instead of one.
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

/// What a step trains on which images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// The architecture parameters on a batch of the second data set, the weights on a batch of the first.
    Bilevel,
    /// Both on the same batch, from one loss; there is no second data set.
    SingleLevel,
}

/// What a bilevel step trains first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstPart {
    /// The architecture parameters.
    Architecture,
    /// The weights.
    Weights,
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
    /// How theta is drawn.
    pub theta: Theta,
    /// What a step trains on which images.
    pub scheme: Scheme,
    /// What a bilevel step trains first.
    pub first: FirstPart,
    /// Order of the architecture gradient; 2 differentiates through a virtual weight step.
    pub order: GradientOrder,
    /// Largest norm of the averaged gradients of the weights; 0 = no clipping.
    pub grad_clip: f64,
    /// First epoch **of each stage**, counted from 0, with architecture steps; earlier epochs train only the weights.
    pub architecture_from_epoch: u64,
    /// Steps per epoch; 0 = the whole data set without the last incomplete batch.
    pub steps_per_epoch: u64,
    /// The stages, in order (`[[search.stage]]` in the file).
    #[serde(rename = "stage")]
    pub stages: Vec<StageSection>,
}

/// One stage of the progressive search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSection {
    /// Partial-channel divisor: 1/k of the channels pass through the operations; 1 = all.
    pub k: i64,
    /// Operations kept on every edge, 1 to the number of `model.operations`.
    pub ops_kept: usize,
    /// Epochs of the stage.
    pub epochs: u64,
}

/// Regulariser that pulls eta towards the uniform Dirichlet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Regulariser {
    /// Weight decay of Adam (the only regulariser published for ImageNet).
    L2,
    /// `kl_scale` * the sum over edges of KL(Dirichlet(beta) || Dirichlet(1)); weight decay is then 0.
    Kl,
}

/// The architecture parameters and their optimiser, Adam. Keys that the method does not use are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArchitectureSection {
    /// Learning rate, constant.
    pub lr: f64,
    /// Decay of the two moments, each in [0, 1).
    pub betas: [f64; 2],
    /// L2 weight decay; 0 when `regulariser` is `Kl`.
    pub weight_decay: f64,
    /// Regulariser that pulls eta towards the uniform Dirichlet.
    pub regulariser: Regulariser,
    /// Weight of the KL term.
    pub kl_scale: f64,
    /// Largest norm of the averaged gradient; 0 = no clipping.
    pub grad_clip: f64,
    /// Mean and standard deviation of the initial parameters.
    pub initial: [f64; 2],
    /// Temperature of the Gumbel-softmax at the start and at the end of the search; changes linearly per epoch.
    pub temperature: [f64; 2],
    /// When the temperature reaches its ends.
    pub temperature_ramp: Ramp,
    /// Gradient of the weights of operations that were not sampled; by default that of the published code for the space.
    pub unsampled: Unsampled,
    /// Size of the perturbation at the start and at the end of the search; changes linearly per epoch.
    pub epsilon: [f64; 2],
    /// Gradients that an adversarial perturbation follows.
    pub attack: Attack,
}

/// When a value that changes linearly over E epochs reaches its ends; e counts from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ramp {
    /// The start in the first epoch, the end after the last: e / E.
    Start,
    /// The start in the first epoch, the end in the last: e / (E - 1).
    Both,
    /// The start before the first epoch, the end in the last: (e + 1) / E.
    End,
}

/// Gradient of the mixing weight of an operation that was not sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unsampled {
    /// None: only the sampled operation has a gradient.
    Zero,
    /// That of an operation with the constant output 1 (published for NAS-Bench-201).
    Constant,
}

/// Gradients that an adversarial perturbation follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attack {
    /// Those of the whole batch: one attack for all replicas.
    Shared,
    /// Those of its batch: every replica has its own attack, without communication.
    PerReplica,
}

impl Default for SearchSection {
    fn default() -> Self {
        let stage = |k, ops_kept| StageSection { k, ops_kept, epochs: 25 };
        SearchSection {
            replicas: 8,
            global_batch: 512,
            theta: Theta::PerReplica,
            scheme: Scheme::Bilevel,
            first: FirstPart::Architecture,
            order: GradientOrder::First,
            grad_clip: 5.0,
            architecture_from_epoch: 10,
            steps_per_epoch: 0,
            stages: vec![stage(6, 7), stage(3, 4)],
        }
    }
}

impl Default for ArchitectureSection {
    fn default() -> Self {
        ArchitectureSection {
            lr: 6e-3,
            betas: [0.5, 0.999],
            weight_decay: 1e-3,
            regulariser: Regulariser::L2,
            kl_scale: 1e-3,
            grad_clip: 5.0,
            initial: [0.0, 1e-3],
            temperature: [10.0, 1.0],
            temperature_ramp: Ramp::Start,
            unsampled: Unsampled::Zero,
            epsilon: [0.03, 0.3],
            attack: Attack::Shared,
        }
    }
}
