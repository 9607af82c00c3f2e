//! Checks that configurations of searches and evaluations share; they need neither data nor ranks.

use super::{DataSection, ModelSection, RunSection, Settings, WeightsSection};
use crate::config::error::{Error, Result};
use crate::process::openmp::MAX_THREADS;
use crate::space::SearchSpace;

/// Returns [`Error::Check`] with the formatted line unless `holds`.
macro_rules! require {
    ($holds:expr, $($line:tt)*) => {
        let holds: bool = $holds;
        if !holds {
            return Err(Error::Check(format!($($line)*)));
        }
    };
}

pub(super) use require;

/// Lists the divisors of `number` for an error message.
pub(super) fn divisors(number: i64) -> String {
    let all = (1..=number).filter(|n| number % n == 0);
    all.map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
}

/// A configuration key with its value, or with the values of its list.
type NamedNumbers<'a> = (&'a str, &'a [f64]);

/// Rates, norms and weights: float32 can represent it and its product with a batch.
pub(super) const MAX_NUMBER: f64 = 1e30;

/// Durations: thirty years. Adding a duration to the current time overflows far above this, but far below the largest
/// float.
const MAX_SECONDS: f64 = 1e9;

/// Steps, epochs and checkpoints: large enough to mean "never"; products still fit into 64 bits.
const MAX_COUNT: u64 = 1_000_000_000_000;

/// Prefetched batches.
const MAX_BATCHES: u64 = 65_536;

/// Images per step: more than all of ImageNet.
pub(super) const MAX_IMAGES: i64 = 1 << 24;

/// Replicas, and outputs of the head.
const MAX_PARTS: i64 = 1 << 20;

/// Requires 0 or more.
pub(super) fn not_negative(values: &[NamedNumbers]) -> Result<()> {
    for (name, value) in values {
        let good = value.iter().all(|x| (0.0..=MAX_NUMBER).contains(x));
        require!(good, "{name} must be 0 or more and at most {MAX_NUMBER:e}, found {value:?}");
    }
    Ok(())
}

/// Requires values above 0.
pub(super) fn positive(values: &[NamedNumbers]) -> Result<()> {
    positive_up_to(MAX_NUMBER, values)
}

/// Requires values above 0 and at most `max`.
fn positive_up_to(max: f64, values: &[NamedNumbers]) -> Result<()> {
    for (name, value) in values {
        let good = value.iter().all(|x| *x > 0.0 && *x <= max);
        require!(good, "{name} must be above 0 and at most {max:e}, found {value:?}");
    }
    Ok(())
}

/// Requires values in [0, 1).
pub(super) fn below_one(values: &[NamedNumbers]) -> Result<()> {
    for (name, value) in values {
        let good = value.iter().all(|x| (0.0..1.0).contains(x));
        require!(good, "{name} must be in [0, 1), found {value:?}");
    }
    Ok(())
}

/// Requires 1 or more.
pub(super) fn at_least_one(counts: &[(&str, u64)]) -> Result<()> {
    for (name, count) in counts {
        require!(
            (1..=MAX_COUNT).contains(count),
            "{name} must be 1 or more and at most {MAX_COUNT}, found {count}"
        );
    }
    Ok(())
}

/// Requires 0, which selects a default, or more.
pub(super) fn zero_or_more(counts: &[(&str, u64)]) -> Result<()> {
    at_most(MAX_COUNT, counts)
}

fn at_most(max: u64, counts: &[(&str, u64)]) -> Result<()> {
    for (name, count) in counts {
        require!(*count <= max, "{name} must be at most {max}, found {count}");
    }
    Ok(())
}

/// TOML can represent the seed.
pub(super) fn check_seed(seed: u64) -> Result<()> {
    require!(i64::try_from(seed).is_ok(), "seed = {seed} is above 2^63 - 1, the largest integer of TOML");
    Ok(())
}

/// The batch can be split over the replicas; both keys are in [`Settings::SECTION`].
pub(super) fn check_batch_split<S: Settings>(settings: &S) -> Result<()> {
    let (replicas, batch, section) = (settings.replicas(), settings.global_batch(), S::SECTION);
    require!(
        (1..=MAX_PARTS).contains(&replicas) && (1..=MAX_IMAGES).contains(&batch),
        "{section}.replicas = {replicas} and {section}.global_batch = {batch} must be 1 or more and at most \
         {MAX_PARTS} and {MAX_IMAGES}"
    );
    require!(
        batch % replicas == 0,
        "{section}.replicas = {replicas} does not divide {section}.global_batch = {batch}; the next multiple is {}",
        (batch / replicas + 1) * replicas
    );
    Ok(())
}

impl DataSection {
    /// Checks every key by itself. [`ModelSection::check`] checks `px` against the network.
    pub(super) fn check(&self) -> Result<()> {
        not_negative(&[("data.mean", &self.mean)])?;
        positive(&[("data.std", &self.std)])?;
        at_least_one(&[("data.prefetch", self.prefetch as u64)])?;
        at_most(MAX_BATCHES, &[("data.prefetch", self.prefetch as u64)])?;
        at_most(MAX_THREADS as u64, &[("data.decode_threads", self.decode_threads as u64)])?;
        require!(
            self.crop_area_min > 0.0 && self.crop_area_min <= 1.0,
            "data.crop_area_min must be above 0 and at most 1, found {}",
            self.crop_area_min
        );
        // Before the other sizes, which are derived from it.
        require!((0..=4096).contains(&self.px), "data.px = {} must be in 1..=4096", self.px);
        require!(self.pad <= 4096, "data.pad must be at most 4096, found {}", self.pad);
        require!(
            self.cutout.is_multiple_of(2) && self.cutout <= 8192,
            "data.cutout must be even and at most 8192, found {}",
            self.cutout
        );
        require!(
            self.jitter.iter().all(|x| (0.0..=1000.0).contains(x)) && self.jitter[3] <= 0.5,
            "data.jitter must be 0 or more and at most 1000, with the hue at most 0.5, found {:?}",
            self.jitter
        );
        require!(
            (0..=4096).contains(&self.test_crop) && (0..=8192).contains(&self.test_resize),
            "data.test_crop = {} must be in 0..=4096 and data.test_resize = {} in 0..=8192",
            self.test_crop,
            self.test_resize
        );
        require!(
            self.test_resize_px() >= self.test_crop_px(),
            "data.test_resize = {} is below the {} pixels of data.test_crop",
            self.test_resize_px(),
            self.test_crop_px()
        );
        Ok(())
    }

    /// Number of decoding threads of a rank that has `threads` cores.
    pub fn threads(&self, threads: usize) -> usize {
        if self.decode_threads == 0 { threads } else { self.decode_threads }
    }

    /// Copies the keys of the decoder, which may change when a run resumes.
    pub(super) fn take_runtime_keys(&mut self, other: &DataSection) {
        self.decode_threads = other.decode_threads;
        self.prefetch = other.prefetch;
    }
}

impl WeightsSection {
    /// Checks every key by itself, and the warm-up against the `epochs` of the run.
    pub(super) fn check(&self, epochs: u64) -> Result<()> {
        not_negative(&[("weights.weight_decay", &[self.weight_decay]), ("weights.lr_min", &[self.lr_min])])?;
        positive(&[("weights.lr", &[self.lr])])?;
        below_one(&[("weights.momentum", &[self.momentum])])?;
        require!(
            self.lr_min <= self.lr,
            "weights.lr_min = {} is above weights.lr = {}",
            self.lr_min,
            self.lr
        );
        require!(
            self.warmup_epochs <= epochs,
            "weights.warmup_epochs = {} is above the {epochs} epochs of the run",
            self.warmup_epochs
        );
        Ok(())
    }
}

impl ModelSection {
    /// Checks every key by itself, and the side `px` of the images.
    pub(super) fn check(&self, px: i64) -> Result<()> {
        let model = self;
        require!(
            (2..=MAX_PARTS).contains(&model.num_classes),
            "model.num_classes must be 2 or more and at most {MAX_PARTS}, found {}",
            model.num_classes
        );
        require!(
            model.layers >= 3 || model.space == SearchSpace::NasBench201,
            "model.layers must be 3 or more (one normal cell and two reduction cells), found {}",
            model.layers
        );
        require!(
            (1..=1000).contains(&model.layers),
            "model.layers must be 1 or more and at most 1000, found {}",
            model.layers
        );
        require!(
            (1..=1 << 16).contains(&model.init_channels),
            "model.init_channels must be in 1..=65536, found {}",
            model.init_channels
        );
        // Strided operations round the side of a map up, the bypass of partial channels rounds it down, and the two
        // halves of a FactorizedReduce must match: a map must be even before it is halved. ImageNet: stem / 8, then two
        // reductions.
        let multiple = match model.space {
            SearchSpace::DartsImagenet => 32,
            SearchSpace::DartsCifar | SearchSpace::NasBench201 => 4,
        };
        require!(
            px > 0 && px <= 4096 && px % multiple == 0,
            "data.px = {px} must be a multiple of {multiple}, at most 4096, so that every reduction halves an even map"
        );
        Ok(())
    }
}

impl RunSection {
    /// Checks every key by itself.
    pub(super) fn check(&self) -> Result<()> {
        not_negative(&[("run.heartbeat_s", &[self.heartbeat_s])])?;
        require!(
            self.heartbeat_s == 0.0 || (1.0..=3600.0).contains(&self.heartbeat_s),
            "run.heartbeat_s must be 0 (off) or in 1..=3600 seconds, found {}",
            self.heartbeat_s
        );
        positive_up_to(1e6, &[("run.bucket_mib", &[self.bucket_mib])])?;
        positive_up_to(
            MAX_SECONDS,
            &[("run.start_limit_s", &[self.start_limit_s]), ("run.time_limit_s", &[self.time_limit_s])],
        )?;
        at_most(MAX_THREADS as u64, &[("run.threads", self.threads as u64)])?;
        at_least_one(&[
            ("run.log_every", self.log_every),
            ("run.compare_every", self.compare_every),
            ("run.checkpoint_every", self.checkpoint_every),
            ("run.checkpoints_kept", self.checkpoints_kept as u64),
        ])
    }
}
