//! Interface that the configurations of searches and evaluations share.

use super::check::{divisors, require};
use super::{DataSection, DeviceChoice, ModelSection, Precision, RunSection, load};
use crate::config::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ops::Range;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Configuration of a search or an evaluation. `Default` is the published one.
pub trait Settings: Clone + Default + PartialEq + Serialize + DeserializeOwned {
    /// The table that holds `replicas` and `global_batch`.
    const SECTION: &'static str;

    /// Seed of everything random.
    fn seed(&self) -> u64;

    /// R, the logical replicas that the global batch is split over.
    fn replicas(&self) -> i64;

    /// Images per step, over all replicas.
    fn global_batch(&self) -> i64;

    /// Device of the ranks.
    fn device(&self) -> DeviceChoice;

    /// Numerical precision of the network.
    fn precision(&self) -> Precision;

    /// Whether activations use the channels-last memory format.
    fn channels_last(&self) -> bool;

    /// Whether only the inputs of cells are kept for the backward pass and the rest is recomputed.
    fn checkpoint_cells(&self) -> bool;

    /// The network.
    fn model(&self) -> &ModelSection;

    /// Images: size, augmentation, workers.
    fn data(&self) -> &DataSection;

    /// Reporting, checkpoints, communication.
    fn run(&self) -> &RunSection;

    /// Copies from `other` the keys that may change when a run resumes: `device`, `checkpoint_cells`, `[run]` and the
    /// keys of the decoder. They change results by rounding at most.
    fn take_runtime_keys(&mut self, other: &Self);

    /// Checks everything that does not depend on data and ranks. `load` calls it; call it again after changing fields.
    fn check(&self) -> Result<()>;

    /// Sets the keys that are derived from others; `given` tells whether the user wrote a dotted key. Errors: a given key
    /// has no effect.
    fn derive(&mut self, given: &dyn Fn(&str) -> bool) -> Result<()>;

    /// Keys without effect in this configuration, which `to_toml` omits.
    fn unused_keys(&self) -> Vec<&'static str>;

    /// Reads `path`, applies `overrides` and checks everything that does not depend on data and ranks.
    ///
    /// An override is `key=value`: the key is dotted, the value is written as in TOML, a bare word is a string, and a
    /// number in the key selects an entry of a list, from 1: `search.stage.2.epochs=3`. Local: every rank loads the
    /// same.
    fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        load::load(path, overrides)
    }

    /// `load` from text; errors call the file `name`.
    fn parse(text: &str, name: &str, overrides: &[String]) -> Result<Self> {
        load::parse(text, name, overrides)
    }

    /// Returns the replicas that rank `rank` of `size` computes; `check_ranks` must have passed.
    fn replicas_of(&self, rank: usize, size: usize) -> Range<usize> {
        let per_rank = self.replicas() as usize / size;
        rank * per_rank..(rank + 1) * per_rank
    }

    /// Images of one replica in one step.
    fn replica_batch(&self) -> i64 {
        self.global_batch() / self.replicas()
    }

    /// Serialises the configuration as a TOML file with every key that has an effect, in a canonical form: equal
    /// configurations give equal text. Loading the text gives the same configuration.
    fn to_toml(&self) -> String {
        let text = toml::to_string(self).expect("a checked configuration has only values that TOML can hold");
        let unused = self.unused_keys();
        let mut table = String::new();
        let mut used = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                table = format!("{name}.");
            }
            let key = line.split_once(" = ").map(|(key, _)| format!("{table}{key}"));
            if !key.is_some_and(|key| unused.contains(&key.as_str())) {
                used += line;
                used.push('\n');
            }
        }
        used
    }

    /// Hash of the configuration, compared across ranks.
    fn hash(&self) -> u64 {
        xxh3_64(self.to_toml().as_bytes())
    }

    /// Checks that `size` ranks can split the replicas evenly. Local, the same on every rank.
    fn check_ranks(&self, size: usize) -> Result<()> {
        let (replicas, section) = (self.replicas(), Self::SECTION);
        require!(
            size > 0 && replicas % size as i64 == 0,
            "{section}.replicas = {replicas} is not divisible by {size} ranks; use one of {} ranks",
            divisors(replicas)
        );
        Ok(())
    }

    /// Checks that the head has as many outputs as the shards have classes.
    fn check_classes(&self, num_classes_of_shards: usize) -> Result<()> {
        let expected = self.model().num_classes;
        require!(
            num_classes_of_shards as i64 == expected,
            "shards: expected model.num_classes = {expected} classes, found {num_classes_of_shards}; \
             use --set model.num_classes={num_classes_of_shards} or other shards"
        );
        Ok(())
    }
}
