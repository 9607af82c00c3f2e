//! Configuration of an evaluation, which trains a found architecture from scratch and tests it.

use super::check::{
    MAX_IMAGES, at_least_one, below_one, check_batch_split, check_seed, not_negative, require, zero_or_more,
};
use super::shared::configuration;
use super::{DataSection, Settings, WeightsSection};
use crate::config::error::{Error, Result};
use crate::space::SearchSpace;
use serde::{Deserialize, Serialize};

configuration! {
    /// Resolved and checked configuration of an evaluation. [`Settings::load`] returns one; `Default` is the published
    /// ImageNet run. The genotype is not part of it.
    pub struct EvaluateConfig {
        ;
        /// The training: replicas, batch, epochs.
        evaluate: EvaluateSection,
        ;
    }
}

/// The training: replicas, batch, epochs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvaluateSection {
    /// R, the logical replicas that the global batch is split over. Ranks must divide R; the result does not depend on
    /// the number of ranks.
    pub replicas: i64,
    /// Images per step, over all replicas.
    pub global_batch: i64,
    /// Epochs of the run.
    pub epochs: u64,
    /// Steps per epoch; 0 = the whole data set without the last incomplete batch.
    pub steps_per_epoch: u64,
    /// Decay of the learning rate.
    pub decay: DecayKind,
    /// Reference batch of `weights.lr`: the learning rate is multiplied by global_batch / lr_batch (linear scaling
    /// rule). 0 = no scaling.
    pub lr_batch: i64,
    /// Largest norm of the averaged gradients; 0 = no clipping.
    pub grad_clip: f64,
    /// Label smoothing: fraction of the target spread over all classes, in [0, 1).
    pub label_smoothing: f64,
    /// Weight of the auxiliary head's loss; 0 = no auxiliary head.
    pub auxiliary_weight: f64,
    /// Drop-path probability, in [0, 1): rises linearly per epoch from 0 and would reach this value after the last
    /// epoch.
    pub drop_path: f64,
    /// Epochs between tests; the last epoch is always tested.
    pub test_every: u64,
    /// Images per test batch.
    pub test_batch: i64,
}

/// Decay of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecayKind {
    /// See [`crate::train::schedule::Decay::Linear`].
    Linear,
    /// See [`crate::train::schedule::Decay::Cosine`], to `weights.lr_min`.
    Cosine,
}

/// Keys of the shared sections that only searches use.
const SEARCH_KEYS: [&str; 2] = ["model.operations", "model.edges"];

impl Default for EvaluateConfig {
    fn default() -> Self {
        let data = DataSection { jitter: [0.4, 0.4, 0.4, 0.2], ..DataSection::default() };
        EvaluateConfig::with(
            data,
            EvaluateSection::default(),
            WeightsSection { weight_decay: 3e-5, ..WeightsSection::default() },
        )
    }
}

impl Default for EvaluateSection {
    fn default() -> Self {
        EvaluateSection {
            replicas: 8,
            global_batch: 768,
            epochs: 250,
            steps_per_epoch: 0,
            decay: DecayKind::Linear,
            lr_batch: 0,
            grad_clip: 5.0,
            label_smoothing: 0.1,
            auxiliary_weight: 0.4,
            drop_path: 0.0,
            test_every: 1,
            test_batch: 100,
        }
    }
}

impl EvaluateConfig {
    /// Peak learning rate: `weights.lr`, scaled by the linear rule unless `evaluate.lr_batch` is 0.
    pub fn lr(&self) -> f64 {
        match self.evaluate.lr_batch {
            0 => self.weights.lr,
            batch => self.weights.lr * self.evaluate.global_batch as f64 / batch as f64,
        }
    }
}

impl EvaluateConfig {
    /// Checks that the configuration is for the space of the command (`evaluate-imagenet` or `evaluate-cifar`).
    pub fn check_space(&self, command: SearchSpace) -> Result<()> {
        let (space, other) = match self.model.space {
            SearchSpace::DartsImagenet => ("darts-imagenet", "requires the command evaluate-imagenet"),
            SearchSpace::DartsCifar => ("darts-cifar", "requires the command evaluate-cifar"),
            SearchSpace::NasBench201 => (
                "nas-bench-201",
                "cannot be evaluated: its benchmark holds the accuracies; see `nb201 query`",
            ),
        };
        require!(self.model.space == command, "model.space = \"{space}\" {other}");
        Ok(())
    }
}

impl EvaluateConfig {
    /// Refuses given keys of the search; no key is derived from others.
    fn derive_keys(&mut self, given: &dyn Fn(&str) -> bool) -> Result<()> {
        for key in SEARCH_KEYS {
            require!(
                !given(key),
                "{key} has no effect in an evaluation: the genotype names its operations; remove it"
            );
        }
        Ok(())
    }

    fn keys_without_effect(&self) -> Vec<&'static str> {
        SEARCH_KEYS.to_vec()
    }

    /// [`Settings::check`].
    fn check_keys(&self) -> Result<()> {
        let evaluate = &self.evaluate;
        check_seed(self.seed)?;
        self.model.check(self.data.px)?;
        self.data.check()?;
        self.run.check()?;
        not_negative(&[
            ("evaluate.grad_clip", &[evaluate.grad_clip]),
            ("evaluate.auxiliary_weight", &[evaluate.auxiliary_weight]),
        ])?;
        below_one(&[
            ("evaluate.label_smoothing", &[evaluate.label_smoothing]),
            ("evaluate.drop_path", &[evaluate.drop_path]),
        ])?;
        at_least_one(&[("evaluate.test_every", evaluate.test_every)])?;
        zero_or_more(&[("evaluate.steps_per_epoch", evaluate.steps_per_epoch)])?;
        require!(
            (1..=1_000_000).contains(&evaluate.epochs),
            "evaluate.epochs = {} must be in 1..=1000000",
            evaluate.epochs
        );
        require!(
            (1..=1 << 20).contains(&evaluate.test_batch),
            "evaluate.test_batch = {} must be in 1..=1048576",
            evaluate.test_batch
        );
        require!(
            (0..=MAX_IMAGES).contains(&evaluate.lr_batch),
            "evaluate.lr_batch = {} must be 0 (no scaling) or the reference batch of weights.lr, at most {MAX_IMAGES}",
            evaluate.lr_batch
        );
        self.weights.check(evaluate.epochs)?;
        check_batch_split(self)?;
        self.check_maps()
    }
}

impl EvaluateConfig {
    /// Checks that the feature maps are large enough for the layers that use them.
    fn check_maps(&self) -> Result<()> {
        let (space, px) = (self.model.space, self.data.px);
        require!(
            self.model.init_channels % 2 == 0,
            "model.init_channels = {} must be even: each convolution of a FactorizedReduce computes half of them",
            self.model.init_channels
        );
        let deepest = match space {
            SearchSpace::DartsImagenet => px / 32,
            SearchSpace::DartsCifar | SearchSpace::NasBench201 => px / 4,
        };
        let auxiliary = self.evaluate.auxiliary_weight > 0.0;
        let smallest = space.smallest_auxiliary_side();
        require!(
            !auxiliary || deepest >= smallest,
            "data.px = {px}: the auxiliary head gets a {deepest} x {deepest} map and requires {smallest} x {smallest}; \
             use --set data.px={} or --set evaluate.auxiliary_weight=0",
            smallest * px / deepest
        );
        require!(
            self.replica_batch() * deepest * deepest >= 2 && (!auxiliary || self.replica_batch() >= 2),
            "batch norm would see a single value per channel: one image per replica, and one pixel in the last map or \
             in the auxiliary head; raise evaluate.global_batch"
        );
        let test = self.data.test_crop_px();
        let multiple = px / deepest;
        require!(
            test % multiple == 0 && test <= 4096,
            "data.test_crop = {test} must be a multiple of {multiple}, at most 4096, so that every reduction halves an \
             even map"
        );
        Ok(())
    }
}
