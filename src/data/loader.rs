//! `Loader`: samples decoded and augmented ahead of the training loop, in an order that only the seed decides.
//!
//! Shapes: N images per replica, px output side.

use super::augment::Augment;
use super::order::SampleOrder;
use super::pool::DecodePool;
use super::reader::{Batch, Reader, SamplePosition, Work};
use super::set::ShardSet;
use crate::config::Settings;
use crate::data::error::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// What a loader serves.
#[derive(Clone, Debug)]
pub struct LoaderSpec {
    /// Side of the pictures.
    pub px: u32,
    /// How they are cut out.
    pub augment: Augment,
    /// Seed of the run.
    pub seed: u64,
    /// Which stream: weights 0, architecture 1.
    pub stream: u64,
    /// Replicas of the run.
    pub num_replicas: usize,
    /// Replicas served here.
    pub replicas: Range<usize>,
    /// Images per replica and step.
    pub batch: usize,
    /// Batches kept ready, at least 1.
    pub prefetch: usize,
    /// Replace an unusable image by another one, the same for any ranks and threads, instead of ending with an error.
    pub skip_bad: bool,
}

impl LoaderSpec {
    /// Stream 0 of the training images for `replicas`, as configured.
    pub fn of(settings: &impl Settings, replicas: Range<usize>) -> LoaderSpec {
        let data = settings.data();
        LoaderSpec {
            px: data.px as u32,
            augment: Augment::train(data),
            seed: settings.seed(),
            stream: 0,
            num_replicas: settings.replicas() as usize,
            replicas,
            batch: settings.replica_batch() as usize,
            prefetch: data.prefetch,
            skip_bad: data.skip_bad,
        }
    }

    /// The order in which the stream serves a set of `num_samples`.
    pub fn order(&self, num_samples: usize) -> SampleOrder {
        let LoaderSpec { num_replicas, batch, seed, stream, .. } = *self;
        SampleOrder { num_samples, num_replicas, batch, seed, stream }
    }
}

/// A stream of batches without end. Memory: at most `prefetch + 2` batches and a window of max(N, 2 threads) pictures,
/// however large the set is.
pub struct Loader {
    source: BatchSource,
    order: SampleOrder,
}

enum BatchSource {
    Set(Reader),
    /// The same batch again and again.
    Repeated(Batch),
}

impl Loader {
    /// Starts to decode from global step `step` (counted from 0 over the whole run) on.
    /// Errors: a set smaller than one global batch, replicas that are not of the run.
    pub fn open(set: Arc<ShardSet>, spec: LoaderSpec, pool: &DecodePool, step: u64) -> Result<Loader> {
        let order = spec.order(set.len());
        order.check(set.dir())?;
        if spec.replicas.is_empty() || spec.replicas.end > spec.num_replicas {
            let (served, all) = (&spec.replicas, spec.num_replicas);
            return Err(Error::LoaderSpec(format!(
                "replicas {served:?} of {all}; a part of 0..{all} expected"
            )));
        }
        let work = Work {
            px: spec.px,
            augment: spec.augment,
            seed: spec.seed,
            stream: spec.stream,
            batch: spec.batch,
            prefetch: spec.prefetch,
            skip_bad: spec.skip_bad,
        };
        let places = Places::new(order.clone(), spec.replicas, step);
        Ok(Loader { source: BatchSource::Set(Reader::start(set, work, pool, places)?), order })
    }

    /// Serves `batch` without end and without work: to measure what does not read images.
    pub fn repeat(batch: Batch, spec: &LoaderSpec) -> Loader {
        let order = spec.order(spec.batch * spec.num_replicas);
        Loader { source: BatchSource::Repeated(batch), order }
    }

    /// The next batch: for each step the served replicas one after another, then the next step.
    /// Errors: an unusable sample (shard, record and file are named); after an error the loader has ended.
    #[allow(clippy::should_implement_trait)] // never ends and can fail: no Iterator
    pub fn next(&mut self) -> Result<Batch> {
        match &mut self.source {
            BatchSource::Set(reader) => reader.next(),
            BatchSource::Repeated(batch) => Ok(batch.again()),
        }
    }

    /// Global batches in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.order.steps_per_epoch()
    }

    /// Milliseconds the caller waited in `next` since this was last asked.
    pub fn wait_ms(&mut self) -> f64 {
        match &mut self.source {
            BatchSource::Set(reader) => reader.wait_ms(),
            BatchSource::Repeated(_) => 0.0,
        }
    }

    /// Samples given to the decode threads so far.
    pub fn num_started(&self) -> u64 {
        match &self.source {
            BatchSource::Set(reader) => reader.num_started(),
            BatchSource::Repeated(_) => 0,
        }
    }
}

/// The samples of the served replicas, step after step, without end.
struct Places {
    order: SampleOrder,
    replicas: Range<usize>,
    step: u64,
    replica: usize,
    within: usize,
    epoch: u64,
    permutation: Vec<u32>,
}

impl Places {
    fn new(order: SampleOrder, replicas: Range<usize>, step: u64) -> Places {
        let epoch = order.epoch_of(step);
        let permutation = order.permutation(epoch);
        Places { replica: replicas.start, order, replicas, step, within: 0, epoch, permutation }
    }
}

impl Iterator for Places {
    type Item = SamplePosition;

    fn next(&mut self) -> Option<SamplePosition> {
        if self.within == self.order.batch {
            (self.within, self.replica) = (0, self.replica + 1);
        }
        if self.replica == self.replicas.end {
            (self.replica, self.step) = (self.replicas.start, self.step + 1);
        }
        let epoch = self.order.epoch_of(self.step);
        if epoch != self.epoch {
            (self.epoch, self.permutation) = (epoch, self.order.permutation(epoch));
        }
        let position = self.order.positions(self.step, self.replica).start + self.within;
        self.within += 1;
        Some(SamplePosition { epoch, position, index: self.permutation[position] })
    }
}
