//! Checks of the configuration of a search, and keys that are derived from others.

use super::check::{
    MAX_NUMBER, below_one, check_batch_split, check_seed, divisors, not_negative, positive, require,
    zero_or_more,
};
use super::{Config, FirstPart, GradientOrder, Regulariser, Scheme, Settings, Unsampled};
use crate::config::error::{Error, Result};
use crate::space::SearchSpace;

impl Config {
    /// [`Settings::check`].
    pub(super) fn check_keys(&self) -> Result<()> {
        self.check_numbers()?;
        self.model.check(self.data.px)?;
        self.check_stem()?;
        self.check_operations()?;
        self.check_scheme()?;
        self.check_stages()?;
        self.check_batch()
    }

    /// Applies the defaults of the method, and refuses given keys that it does not use, unless their value is the default: a
    /// file for one method can be used with another one.
    pub(super) fn derive_keys(&mut self, given: &dyn Fn(&str) -> bool) -> Result<()> {
        let (now, default) = (table(self), table(&Config::default()));
        for (key, users) in self.method.unused_keys() {
            let users: Vec<&str> = users.iter().map(|method| method.name()).collect();
            require!(
                !given(key) || value(&now, key) == value(&default, key),
                "{key} has no effect with method = \"{}\"; remove it, or use {}",
                self.method.name(),
                users.join(", ")
            );
        }
        self.model.operations = if given("model.operations") && !self.model.operations.is_empty() {
            self.model.operations.clone()
        } else {
            self.method.operations(self.model.space)
        };
        if self.model.space == SearchSpace::NasBench201 && !given("architecture.unsampled") {
            self.architecture.unsampled = Unsampled::Constant;
        }
        // With the KL regulariser, weight decay is 0 unless given.
        let architecture = &mut self.architecture;
        if architecture.regulariser == Regulariser::Kl && !given("architecture.weight_decay") {
            architecture.weight_decay = 0.0;
        }
        Ok(())
    }

    pub(super) fn keys_without_effect(&self) -> Vec<&'static str> {
        self.method.unused_keys().map(|(key, _)| key).collect()
    }

    /// Checks that the configuration is for `space`; each space has its own command.
    pub fn check_space(&self, space: SearchSpace) -> Result<()> {
        let command = |space| match space {
            SearchSpace::DartsImagenet => "search-imagenet",
            SearchSpace::DartsCifar => "search-cifar",
            SearchSpace::NasBench201 => "search-nb201",
        };
        require!(
            self.model.space == space,
            "this is {}, but the configuration is for {}; use that command or change model.space",
            command(space),
            command(self.model.space)
        );
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        let architecture = &self.architecture;
        check_seed(self.seed)?;
        not_negative(&[
            ("architecture.weight_decay", &[architecture.weight_decay]),
            ("architecture.kl_scale", &[architecture.kl_scale]),
            ("architecture.grad_clip", &[architecture.grad_clip]),
            ("search.grad_clip", &[self.search.grad_clip]),
        ])?;
        positive(&[
            ("architecture.lr", &[architecture.lr]),
            ("architecture.temperature", &architecture.temperature),
        ])?;
        let [mean, deviation] = architecture.initial;
        require!(
            mean.abs() <= MAX_NUMBER && (0.0..=MAX_NUMBER).contains(&deviation),
            "architecture.initial = [{mean:?}, {deviation:?}] must be a mean and a standard deviation of 0 or more, both at \
             most {MAX_NUMBER:e}"
        );
        require!(
            architecture.epsilon.iter().all(|epsilon| (0.0..=1.0).contains(epsilon)),
            "architecture.epsilon must be in 0..=1, found {:?}",
            architecture.epsilon
        );
        zero_or_more(&[("search.steps_per_epoch", self.search.steps_per_epoch)])?;
        below_one(&[("architecture.betas", &architecture.betas)])?;
        require!(
            architecture.regulariser == Regulariser::L2 || architecture.weight_decay == 0.0,
            "architecture.weight_decay = {} cannot be combined with architecture.regulariser = \"kl\"; remove \
             architecture.weight_decay",
            architecture.weight_decay
        );
        self.data.check()?;
        self.run.check()
    }

    fn check_stem(&self) -> Result<()> {
        let model = &self.model;
        require!(
            model.space != SearchSpace::DartsImagenet || model.init_channels % 2 == 0,
            "model.init_channels = {} must be even: the ImageNet stem begins with 3/2 as many channels",
            model.init_channels
        );
        Ok(())
    }

    fn check_operations(&self) -> Result<()> {
        let (space, operations) = (self.model.space, self.operations());
        let allowed = space.allowed_operations();
        for (index, operation) in operations.iter().enumerate() {
            let name = operation.name();
            require!(
                allowed.contains(operation),
                "model.operations: the {} space has no {name}, only {}",
                space.name(),
                allowed.iter().map(|operation| operation.name()).collect::<Vec<_>>().join(", ")
            );
            require!(!operations[..index].contains(operation), "model.operations: {name} appears twice");
        }
        let selectable = |row: &Vec<bool>| {
            let mut kept = row.iter().zip(&operations).filter(|(kept, _)| **kept);
            kept.any(|(_, operation)| space.operations().contains(operation))
        };
        require!(
            self.masks()?.iter().flat_map(|mask| &mask.0).all(selectable),
            "model.operations and model.edges must leave every edge an operation that the found architecture can contain"
        );
        Ok(())
    }

    fn check_scheme(&self) -> Result<()> {
        let search = &self.search;
        if search.scheme == Scheme::SingleLevel {
            require!(
                search.order == GradientOrder::First,
                "search.order = 2 requires search.scheme = \"bilevel\": its virtual step uses the other data set"
            );
            require!(
                search.first == FirstPart::Architecture,
                "search.first has no effect with search.scheme = \"single-level\"; remove it"
            );
        }
        require!(
            search.order == GradientOrder::First || search.first == FirstPart::Architecture,
            "search.order = 2 requires search.first = \"architecture\": the virtual step precedes the weight step"
        );
        Ok(())
    }

    fn check_stages(&self) -> Result<()> {
        let (search, channels) = (&self.search, self.model.init_channels);
        let operations = self.operations().len();
        require!(
            !search.stages.is_empty(),
            "no search stage; add one or more [[search.stage]] with k, ops_kept and epochs"
        );
        for (index, stage) in search.stages.iter().enumerate() {
            let number = index + 1;
            require!(
                stage.k >= 1 && channels % stage.k == 0,
                "stage {number}: k = {} does not divide model.init_channels = {channels}; its divisors are {}",
                stage.k,
                divisors(channels)
            );
            require!(
                (1..=operations).contains(&stage.ops_kept),
                "stage {number}: ops_kept = {} must be in 1..={operations}, the number of operations",
                stage.ops_kept
            );
            require!(
                (1..=1_000_000).contains(&stage.epochs),
                "stage {number}: epochs = {} must be in 1..=1000000",
                stage.epochs
            );
            require!(
                stage.epochs > search.architecture_from_epoch,
                "stage {number}: epochs = {} must be above search.architecture_from_epoch = {}, or the architecture is \
                 not trained; add epochs or lower search.architecture_from_epoch",
                stage.epochs,
                search.architecture_from_epoch
            );
        }
        require!(
            search.stages[0].ops_kept == operations,
            "stage 1: ops_kept = {} must be {operations}, all operations: pruning begins with stage 2",
            search.stages[0].ops_kept
        );
        for (index, pair) in search.stages.windows(2).enumerate() {
            let (number, old, new) = (index + 2, pair[0], pair[1]);
            require!(
                new.k <= old.k,
                "stage {number}: k = {} is above k = {} of the previous stage; the network can only be widened",
                new.k,
                old.k
            );
            require!(
                new.ops_kept <= old.ops_kept,
                "stage {number}: ops_kept = {} is above {} of the previous stage; pruned operations cannot be restored",
                new.ops_kept,
                old.ops_kept
            );
        }
        self.weights.check(self.num_epochs())
    }

    fn check_batch(&self) -> Result<()> {
        check_batch_split(self)?;
        let deepest = match self.model.space {
            SearchSpace::DartsImagenet => self.data.px / 32,
            SearchSpace::DartsCifar | SearchSpace::NasBench201 => self.data.px / 4,
        };
        require!(
            self.replica_batch() * deepest * deepest >= 2,
            "batch norm would see a single value per channel: one image per replica and a last map of one pixel; \
             raise search.global_batch or data.px"
        );
        Ok(())
    }
}

fn table(config: &Config) -> toml::Table {
    toml::Table::try_from(config).expect("a configuration has only values that TOML can hold")
}

/// Returns the value of a key of a section.
fn value<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    let (section, key) = key.split_once('.')?;
    table.get(section)?.get(key)
}
