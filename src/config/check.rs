//! What can be known to be wrong before anything is opened or computed.

use super::{Config, DataSection, ModelSection, Regulariser, RunSection, Settings, WeightsSection};
use crate::config::error::{Error, Result};
use crate::space::SearchSpace;

/// An error unless `holds`, with one line.
macro_rules! require {
    ($holds:expr, $($line:tt)*) => {
        let holds: bool = $holds;
        if !holds {
            return Err(Error::Check(format!($($line)*)));
        }
    };
}

pub(super) use require;

/// The divisors of `number`, as text for an error.
pub(super) fn divisors(number: i64) -> String {
    let all = (1..=number).filter(|n| number % n == 0);
    all.map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
}

impl Config {
    /// [`Settings::check`].
    pub(super) fn check_keys(&self) -> Result<()> {
        self.check_numbers()?;
        self.model.check(self.data.px)?;
        self.check_stem()?;
        self.check_stages()?;
        self.check_batch()
    }

    /// KL takes the place of the weight decay.
    pub(super) fn settle_keys(&mut self, given: &dyn Fn(&str) -> bool) {
        if self.eta.regulariser == Regulariser::Kl && !given("eta.weight_decay") {
            self.eta.weight_decay = 0.0;
        }
    }
}

/// A named value of a configuration, or several of one name.
type NamedNumbers<'a> = (&'a str, &'a [f64]);

/// Rates, norms and weights: float32 holds it, and its product with a batch.
const LARGEST: f64 = 1e30;

/// Times: thirty years. What a clock adds to now has a bound far above this and far below that of a float.
const MOST_SECONDS: f64 = 1e9;

/// Steps, epochs and checkpoints: a value that stands for "never", whose products still fit into 64 bits.
const MOST: u64 = 1_000_000_000_000;

/// Threads of one kind in one rank; no machine has more cores, and each takes memory.
const MOST_THREADS: u64 = 1024;

/// Batches that are decoded ahead.
const MOST_BATCHES: u64 = 65_536;

/// Images of a step, more than a whole ImageNet.
pub(super) const MOST_IMAGES: i64 = 1 << 24;

/// Replicas, and outputs of the head.
const MOST_PARTS: i64 = 1 << 20;

/// Each is 0 or more.
pub(super) fn not_negative(values: &[NamedNumbers]) -> Result<()> {
    for (name, value) in values {
        let good = value.iter().all(|x| (0.0..=LARGEST).contains(x));
        require!(good, "{name} must be 0 or more and at most {LARGEST:e}, found {value:?}");
    }
    Ok(())
}

/// Each is above 0.
pub(super) fn positive(values: &[NamedNumbers]) -> Result<()> {
    positive_to(LARGEST, values)
}

/// Each is above 0 and at most `most`.
fn positive_to(most: f64, values: &[NamedNumbers]) -> Result<()> {
    for (name, value) in values {
        let good = value.iter().all(|x| *x > 0.0 && *x <= most);
        require!(good, "{name} must be above 0 and at most {most:e}, found {value:?}");
    }
    Ok(())
}

/// Each is in [0, 1).
pub(super) fn below_one(values: &[NamedNumbers]) -> Result<()> {
    for (name, value) in values {
        let good = value.iter().all(|x| (0.0..1.0).contains(x));
        require!(good, "{name} must be in [0, 1), found {value:?}");
    }
    Ok(())
}

/// Each is 1 or more.
pub(super) fn at_least_one(counts: &[(&str, u64)]) -> Result<()> {
    for (name, count) in counts {
        require!((1..=MOST).contains(count), "{name} must be 1 or more and at most {MOST}, found {count}");
    }
    Ok(())
}

/// Each is 0, which stands for a default, or more.
pub(super) fn zero_or_more(counts: &[(&str, u64)]) -> Result<()> {
    at_most(MOST, counts)
}

fn at_most(most: u64, counts: &[(&str, u64)]) -> Result<()> {
    for (name, count) in counts {
        require!(*count <= most, "{name} must be at most {most}, found {count}");
    }
    Ok(())
}

/// TOML holds the seed.
pub(super) fn check_seed(seed: u64) -> Result<()> {
    require!(i64::try_from(seed).is_ok(), "seed = {seed} is above 2^63 - 1, the largest integer of TOML");
    Ok(())
}

/// The batch can be split over the replicas; `section` holds both numbers.
pub(super) fn check_share<S: Settings>(settings: &S) -> Result<()> {
    let (replicas, batch, section) = (settings.replicas(), settings.global_batch(), S::SECTION);
    require!(
        (1..=MOST_PARTS).contains(&replicas) && (1..=MOST_IMAGES).contains(&batch),
        "{section}.replicas = {replicas} and {section}.global_batch = {batch} must be 1 or more, at most {MOST_PARTS} and \
         {MOST_IMAGES}"
    );
    require!(
        batch % replicas == 0,
        "{section}.replicas = {replicas} does not divide {section}.global_batch = {batch}; the next batch that fits is {}",
        (batch / replicas + 1) * replicas
    );
    Ok(())
}

impl DataSection {
    /// Every key for itself; what fits the network is the network's business.
    pub(super) fn check(&self) -> Result<()> {
        not_negative(&[("data.mean", &self.mean)])?;
        positive(&[("data.std", &self.std)])?;
        at_least_one(&[("data.prefetch", self.prefetch as u64)])?;
        at_most(MOST_BATCHES, &[("data.prefetch", self.prefetch as u64)])?;
        at_most(MOST_THREADS, &[("data.decode_threads", self.decode_threads as u64)])?;
        require!(
            self.crop_area_min > 0.0 && self.crop_area_min <= 1.0,
            "data.crop_area_min must be above 0 and at most 1, found {}",
            self.crop_area_min
        );
        // First of the sizes: others are computed from it.
        require!((0..=4096).contains(&self.px), "data.px = {} must be in 1..=4096", self.px);
        require!(self.pad <= 4096, "data.pad must be at most 4096, found {}", self.pad);
        require!(
            self.cutout.is_multiple_of(2) && self.cutout <= 8192,
            "data.cutout must be even and at most 8192, found {}",
            self.cutout
        );
        require!(
            self.jitter.iter().all(|x| (0.0..=1000.0).contains(x)) && self.jitter[3] <= 0.5,
            "data.jitter must be 0 or more and at most 1000, the hue at most 0.5, found {:?}",
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

    /// Threads that decode images, of a rank that has `threads`.
    pub fn threads(&self, threads: usize) -> usize {
        if self.decode_threads == 0 { threads } else { self.decode_threads }
    }

    /// What decodes images may change in a run that goes on.
    pub(super) fn take_free_keys(&mut self, now: &DataSection) {
        self.decode_threads = now.decode_threads;
        self.prefetch = now.prefetch;
    }
}

impl WeightsSection {
    /// Every key for itself, and the warm-up against the `epochs` of the run.
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
    /// Every key for itself, and the side of the images, `px`.
    pub(super) fn check(&self, px: i64) -> Result<()> {
        let model = self;
        require!(
            (2..=MOST_PARTS).contains(&model.num_classes),
            "model.num_classes must be 2 or more and at most {MOST_PARTS}, found {}",
            model.num_classes
        );
        require!(
            model.layers >= 3 || model.space == SearchSpace::NasBench201,
            "model.layers must be 3 or more (two cells reduce, one comes first), found {}",
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
        // Strided operations round a map's side up, the bypass of partial channels rounds it down, and the two halves of
        // a FactorizedReduce must agree: whatever is halved must be even. ImageNet: stem / 8, then two reductions.
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
    /// Every key for itself.
    pub(super) fn check(&self) -> Result<()> {
        not_negative(&[("run.heartbeat_s", &[self.heartbeat_s])])?;
        require!(
            self.heartbeat_s == 0.0 || (1.0..=3600.0).contains(&self.heartbeat_s),
            "run.heartbeat_s must be 0 (nobody is watched) or in 1..=3600 seconds, found {}",
            self.heartbeat_s
        );
        positive_to(1e6, &[("run.bucket_mib", &[self.bucket_mib])])?;
        positive_to(
            MOST_SECONDS,
            &[("run.start_limit_s", &[self.start_limit_s]), ("run.time_limit_s", &[self.time_limit_s])],
        )?;
        at_most(MOST_THREADS, &[("run.threads", self.threads as u64)])?;
        at_least_one(&[
            ("run.log_every", self.log_every),
            ("run.compare_every", self.compare_every),
            ("run.checkpoint_every", self.checkpoint_every),
            ("run.checkpoints_kept", self.checkpoints_kept as u64),
        ])
    }
}

impl Config {
    /// Whether the configuration is one of `space`: each has a command of its own.
    pub fn check_space(&self, space: SearchSpace) -> Result<()> {
        let command = |space| match space {
            SearchSpace::DartsImagenet => "search-imagenet",
            SearchSpace::DartsCifar => "search-cifar",
            SearchSpace::NasBench201 => "search-nb201",
        };
        require!(
            self.model.space == space,
            "this is {}, the configuration is one for {}: give it to that, or set model.space",
            command(space),
            command(self.model.space)
        );
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        let eta = &self.eta;
        check_seed(self.seed)?;
        not_negative(&[
            ("eta.weight_decay", &[eta.weight_decay]),
            ("eta.kl_scale", &[eta.kl_scale]),
            ("eta.grad_clip", &[eta.grad_clip]),
            ("search.grad_clip", &[self.search.grad_clip]),
        ])?;
        positive(&[("eta.lr", &[eta.lr])])?;
        zero_or_more(&[("search.steps_per_epoch", self.search.steps_per_epoch)])?;
        below_one(&[("eta.betas", &eta.betas)])?;
        require!(
            eta.regulariser == Regulariser::L2 || eta.weight_decay == 0.0,
            "eta.weight_decay = {} beside eta.regulariser = \"kl\": one of the two pulls eta; leave weight_decay out",
            eta.weight_decay
        );
        self.data.check()?;
        self.run.check()
    }

    fn check_stem(&self) -> Result<()> {
        let model = &self.model;
        require!(
            model.space != SearchSpace::DartsImagenet || model.init_channels % 2 == 0,
            "model.init_channels = {} must be even: the ImageNet stem begins with 3/2 of it",
            model.init_channels
        );
        Ok(())
    }

    fn check_stages(&self) -> Result<()> {
        let (search, channels) = (&self.search, self.model.init_channels);
        let operations = self.model.space.operations().len();
        require!(
            !search.stages.is_empty(),
            "there is no stage; write one or more [[search.stage]] with k, ops_kept and epochs"
        );
        for (index, stage) in search.stages.iter().enumerate() {
            let number = index + 1;
            require!(
                stage.k >= 1 && channels % stage.k == 0,
                "stage {number}: k = {} does not divide model.init_channels = {channels}; possible: {}",
                stage.k,
                divisors(channels)
            );
            require!(
                (1..=operations).contains(&stage.ops_kept),
                "stage {number}: ops_kept = {} must be in 1..={operations}, the operations of the {} space",
                stage.ops_kept,
                self.model.space.name()
            );
            require!(
                (1..=1_000_000).contains(&stage.epochs),
                "stage {number}: epochs = {} must be in 1..=1000000",
                stage.epochs
            );
            require!(
                stage.epochs > search.architecture_from_epoch,
                "stage {number} has {} epochs and architecture steps begin at epoch {} of each stage: eta would stay \
                 as it was; lower search.architecture_from_epoch or add epochs",
                stage.epochs,
                search.architecture_from_epoch
            );
        }
        require!(
            search.stages[0].ops_kept == operations,
            "stage 1: ops_kept = {} must be {operations}: nothing is known yet that could be pruned",
            search.stages[0].ops_kept
        );
        for (index, pair) in search.stages.windows(2).enumerate() {
            let (number, old, new) = (index + 2, pair[0], pair[1]);
            require!(
                new.k <= old.k,
                "stage {number}: k = {} is above k = {} of the stage before; the network can only be widened",
                new.k,
                old.k
            );
            require!(
                new.ops_kept <= old.ops_kept,
                "stage {number}: ops_kept = {} is above {} of the stage before; pruned operations do not come back",
                new.ops_kept,
                old.ops_kept
            );
        }
        self.weights.check(self.num_epochs())
    }

    fn check_batch(&self) -> Result<()> {
        check_share(self)?;
        let deepest = match self.model.space {
            SearchSpace::DartsImagenet => self.data.px / 32,
            SearchSpace::DartsCifar | SearchSpace::NasBench201 => self.data.px / 4,
        };
        require!(
            self.replica_batch() * deepest * deepest >= 2,
            "one image per replica and a last map of one pixel give batch norm a single value; \
             raise search.global_batch or data.px"
        );
        Ok(())
    }
}
