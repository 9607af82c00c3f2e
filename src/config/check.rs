//! What can be known to be wrong before anything is opened or computed.

use super::{Config, Regulariser};
use crate::error::{Error, Result};
use crate::space::SearchSpace;

/// An error unless `holds`, with one line.
macro_rules! require {
    ($holds:expr, $($line:tt)*) => {
        let holds: bool = $holds;
        if !holds {
            return Err(Error::ConfigCheck(format!($($line)*)));
        }
    };
}

/// The divisors of `number`, as text for an error.
fn divisors(number: i64) -> String {
    let all = (1..=number).filter(|n| number % n == 0);
    all.map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
}

impl Config {
    /// Checks all that does not depend on data and ranks; `load` has done it. Needed after changing fields by hand.
    pub fn check(&self) -> Result<()> {
        self.check_numbers()?;
        self.check_model()?;
        self.check_stages()?;
        self.check_batch()
    }

    /// Whether `size` ranks can share the replicas. Local, the same on every rank.
    pub fn check_ranks(&self, size: usize) -> Result<()> {
        let replicas = self.search.replicas;
        require!(
            size > 0 && replicas % size as i64 == 0,
            "{size} ranks cannot share search.replicas = {replicas} evenly; start one of {} ranks",
            divisors(replicas)
        );
        Ok(())
    }

    /// Whether the shards hold the classes that the head has.
    pub fn check_classes(&self, num_classes_of_shards: usize) -> Result<()> {
        let expected = self.model.num_classes;
        require!(
            num_classes_of_shards as i64 == expected,
            "the shards have {num_classes_of_shards} classes, model.num_classes is {expected}; \
             use --set model.num_classes={num_classes_of_shards} or other shards"
        );
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        let (data, weights, eta, run) = (&self.data, &self.weights, &self.eta, &self.run);
        require!(
            i64::try_from(self.seed).is_ok(),
            "seed = {} is above 2^63 - 1, the largest integer of TOML",
            self.seed
        );
        for (name, value) in [
            ("data.mean", &data.mean[..]),
            ("weights.weight_decay", &[weights.weight_decay]),
            ("weights.lr_min", &[weights.lr_min]),
            ("eta.weight_decay", &[eta.weight_decay]),
            ("eta.kl_scale", &[eta.kl_scale]),
            ("search.grad_clip", &[self.search.grad_clip]),
        ] {
            let good = value.iter().all(|x| x.is_finite() && *x >= 0.0);
            require!(good, "{name} must be 0 or more, found {value:?}");
        }
        for (name, value) in [
            ("data.std", &data.std[..]),
            ("weights.lr", &[weights.lr]),
            ("eta.lr", &[eta.lr]),
            ("run.bucket_mib", &[run.bucket_mib]),
            ("run.time_limit_s", &[run.time_limit_s]),
        ] {
            let good = value.iter().all(|x| x.is_finite() && *x > 0.0);
            require!(good, "{name} must be above 0, found {value:?}");
        }
        for (name, value) in [("weights.momentum", &[weights.momentum][..]), ("eta.betas", &eta.betas)] {
            let good = value.iter().all(|x| (0.0..1.0).contains(x));
            require!(good, "{name} must be in [0, 1), found {value:?}");
        }
        for (name, value) in [
            ("run.log_every", run.log_every),
            ("run.compare_every", run.compare_every),
            ("run.checkpoint_every", run.checkpoint_every),
            ("run.checkpoints_kept", run.checkpoints_kept as u64),
            ("data.prefetch", data.prefetch as u64),
        ] {
            require!(value > 0, "{name} must be 1 or more, found 0");
        }
        require!(
            data.crop_area_min > 0.0 && data.crop_area_min <= 1.0,
            "data.crop_area_min must be above 0 and at most 1, found {}",
            data.crop_area_min
        );
        require!(
            weights.lr_min <= weights.lr,
            "weights.lr_min = {} is above weights.lr = {}",
            weights.lr_min,
            weights.lr
        );
        require!(
            eta.regulariser == Regulariser::L2 || eta.weight_decay == 0.0,
            "eta.weight_decay = {} beside eta.regulariser = \"kl\": one of the two pulls eta; leave weight_decay out",
            eta.weight_decay
        );
        Ok(())
    }

    fn check_model(&self) -> Result<()> {
        let (model, px) = (&self.model, self.data.px);
        require!(model.num_classes >= 2, "model.num_classes must be 2 or more, found {}", model.num_classes);
        require!(
            model.layers >= 3 || model.space == SearchSpace::NasBench201,
            "model.layers must be 3 or more (two cells reduce, one comes first), found {}",
            model.layers
        );
        require!(model.layers >= 1, "model.layers must be 1 or more, found {}", model.layers);
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
        require!(
            self.weights.warmup_epochs <= self.num_epochs(),
            "weights.warmup_epochs = {} is above the {} epochs of all stages",
            self.weights.warmup_epochs,
            self.num_epochs()
        );
        Ok(())
    }

    fn check_batch(&self) -> Result<()> {
        let (replicas, batch) = (self.search.replicas, self.search.global_batch);
        require!(
            (1..=1 << 20).contains(&replicas) && batch >= 1,
            "search.replicas = {replicas} and search.global_batch = {batch} must be 1 or more"
        );
        require!(
            batch % replicas == 0,
            "search.replicas = {replicas} does not divide search.global_batch = {batch}; the next batch that fits is {}",
            (batch / replicas + 1) * replicas
        );
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
