//! Settings: what every kind of run's configuration can be asked, whatever else it holds.

use super::check::{divisors, require};
use super::{DataSection, DeviceChoice, ModelSection, Precision, RunSection, load};
use crate::config::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ops::Range;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// The configuration of one kind of run. `Default` is the published one.
pub trait Settings: Clone + Default + PartialEq + Serialize + DeserializeOwned {
    /// The table that holds `replicas` and `global_batch`.
    const SECTION: &'static str;

    /// What everything random follows from.
    fn seed(&self) -> u64;

    /// R, the logical replicas that the global batch is split over.
    fn replicas(&self) -> i64;

    /// Images per step, over all replicas.
    fn global_batch(&self) -> i64;

    /// What ranks compute on.
    fn device(&self) -> DeviceChoice;

    /// How exact the network computes.
    fn precision(&self) -> Precision;

    /// Channels last in memory.
    fn channels_last(&self) -> bool;

    /// Keep only the inputs of cells for the backward pass and compute the rest again.
    fn checkpoint_cells(&self) -> bool;

    /// The network.
    fn model(&self) -> &ModelSection;

    /// The images.
    fn data(&self) -> &DataSection;

    /// Reporting, checkpoints, communication.
    fn run(&self) -> &RunSection;

    /// Takes over what may be another in a run that goes on: `device`, `[run]` and what decodes images, which change
    /// results by rounding at most.
    fn take_free_keys(&mut self, now: &Self);

    /// Checks all that does not depend on data and ranks; `load` has done it. Needed after changing fields by hand.
    fn check(&self) -> Result<()>;

    /// Fills in what follows from other keys; `given` knows which dotted keys a user wrote.
    fn settle(&mut self, given: &dyn Fn(&str) -> bool);

    /// Reads `path`, applies `sets` and checks everything that can be known without data and ranks.
    ///
    /// A set is `key=value`: dotted keys, values as in TOML, bare words are strings, and a number in a key picks an entry
    /// of a list, from 1: `search.stage.2.epochs=3`. Local: every rank loads the same.
    fn load(path: &Path, sets: &[String]) -> Result<Self> {
        load::load(path, sets)
    }

    /// `load` from text; `name` is what errors call the file.
    fn parse(text: &str, name: &str, sets: &[String]) -> Result<Self> {
        load::parse(text, name, sets)
    }

    /// The replicas that rank `rank` of `size` computes; `check_ranks` has been passed.
    fn replicas_of(&self, rank: usize, size: usize) -> Range<usize> {
        let per_rank = self.replicas() as usize / size;
        rank * per_rank..(rank + 1) * per_rank
    }

    /// Images of one replica in one step.
    fn replica_batch(&self) -> i64 {
        self.global_batch() / self.replicas()
    }

    /// The configuration as a TOML file with every key, in one order and one spelling: equal configurations give equal
    /// text. Loading it gives this configuration again.
    fn to_toml(&self) -> String {
        toml::to_string(self).expect("a checked configuration has only values that TOML can hold")
    }

    /// Identity of the configuration: ranks with different ones must not compute together.
    fn hash(&self) -> u64 {
        xxh3_64(self.to_toml().as_bytes())
    }

    /// Whether `size` ranks can share the replicas. Local, the same on every rank.
    fn check_ranks(&self, size: usize) -> Result<()> {
        let (replicas, section) = (self.replicas(), Self::SECTION);
        require!(
            size > 0 && replicas % size as i64 == 0,
            "{size} ranks cannot share {section}.replicas = {replicas} evenly; start one of {} ranks",
            divisors(replicas)
        );
        Ok(())
    }

    /// Whether the shards hold the classes that the head has.
    fn check_classes(&self, num_classes_of_shards: usize) -> Result<()> {
        let expected = self.model().num_classes;
        require!(
            num_classes_of_shards as i64 == expected,
            "the shards have {num_classes_of_shards} classes, model.num_classes is {expected}; \
             use --set model.num_classes={num_classes_of_shards} or other shards"
        );
        Ok(())
    }
}
