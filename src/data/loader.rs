//! `Loader`: decodes and augments samples ahead of the training loop, in an order determined by the seed alone.
//!
//! Shapes: N images per replica, px output side.

use super::augment::Augment;
use super::order::SampleOrder;
use super::pool::DecodePool;
use super::reader::{Batch, Reader, ReaderOptions, SamplePosition};
use super::set::ShardSet;
use crate::config::Settings;
use crate::data::error::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Options of a loader.
#[derive(Clone, Debug)]
pub struct LoaderSpec {
    /// Side of the output images.
    pub px: u32,
    /// Augmentation.
    pub augment: Augment,
    /// Seed of the run.
    pub seed: u64,
    /// Which stream: weights 0, architecture 1.
    pub stream: u64,
    /// Number of replicas of the run.
    pub num_replicas: usize,
    /// The replicas served by this loader.
    pub replicas: Range<usize>,
    /// Images per replica and step.
    pub batch: usize,
    /// Batches to prefetch, at least 1.
    pub prefetch: usize,
    /// Replace an unusable image by another one, which does not depend on ranks and threads, instead of failing.
    pub skip_bad: bool,
}

impl LoaderSpec {
    /// Returns the options of stream 0 of the training images for `replicas`, as configured.
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

    /// Returns the order in which the stream serves a set of `num_samples`.
    pub fn order(&self, num_samples: usize) -> SampleOrder {
        let LoaderSpec { num_replicas, batch, seed, stream, .. } = *self;
        SampleOrder { num_samples, num_replicas, batch, seed, stream }
    }
}

/// An endless stream of batches. Memory: at most `prefetch + 2` batches and a window of max(N, 2 threads) images,
/// regardless of the size of the set.
pub struct Loader {
    source: BatchSource,
    order: SampleOrder,
}

enum BatchSource {
    Set(Reader),
    /// Returns the same batch every time.
    Repeated(Batch),
}

impl Loader {
    /// Starts decoding at global step `step`, counted from 0 over the whole run.
    /// Errors: a set smaller than one global batch, invalid replicas.
    pub fn open(set: Arc<ShardSet>, spec: LoaderSpec, pool: &DecodePool, step: u64) -> Result<Loader> {
        let order = spec.order(set.len());
        order.check(set.dir())?;
        if spec.replicas.is_empty() || spec.replicas.end > spec.num_replicas {
            let (served, all) = (&spec.replicas, spec.num_replicas);
            return Err(Error::LoaderSpec(format!("expected replicas within 0..{all}, found {served:?}")));
        }
        let options = ReaderOptions {
            px: spec.px,
            augment: spec.augment,
            seed: spec.seed,
            stream: spec.stream,
            batch: spec.batch,
            prefetch: spec.prefetch,
            skip_bad: spec.skip_bad,
        };
        let samples = SampleSequence::new(order.clone(), spec.replicas, step);
        Ok(Loader { source: BatchSource::Set(Reader::start(set, options, pool, samples)?), order })
    }

    /// Returns a loader that serves `batch` endlessly, without any work: for measurements without reading images.
    pub fn repeat(batch: Batch, spec: &LoaderSpec) -> Loader {
        let order = spec.order(spec.batch * spec.num_replicas);
        Loader { source: BatchSource::Repeated(batch), order }
    }

    /// Returns the next batch: for each step the served replicas one after another, then the next step.
    /// Errors: an unusable sample (shard, record and file are named); after an error the loader cannot be used any
    /// more.
    #[allow(clippy::should_implement_trait)] // endless and fallible: not an Iterator
    pub fn next(&mut self) -> Result<Batch> {
        match &mut self.source {
            BatchSource::Set(reader) => reader.next(),
            BatchSource::Repeated(batch) => Ok(batch.share()),
        }
    }

    /// Returns the number of global batches per epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.order.steps_per_epoch()
    }

    /// Returns the milliseconds spent waiting in `next` since the last call.
    pub fn wait_ms(&mut self) -> f64 {
        match &mut self.source {
            BatchSource::Set(reader) => reader.wait_ms(),
            BatchSource::Repeated(_) => 0.0,
        }
    }

    /// Returns the number of samples submitted to the decode threads so far.
    pub fn num_started(&self) -> u64 {
        match &self.source {
            BatchSource::Set(reader) => reader.num_started(),
            BatchSource::Repeated(_) => 0,
        }
    }
}

/// The endless sequence of samples of the served replicas.
struct SampleSequence {
    order: SampleOrder,
    replicas: Range<usize>,
    step: u64,
    replica: usize,
    offset: usize,
    epoch: u64,
    permutation: Vec<u32>,
}

impl SampleSequence {
    fn new(order: SampleOrder, replicas: Range<usize>, step: u64) -> SampleSequence {
        let epoch = order.epoch_of(step);
        let permutation = order.permutation(epoch);
        SampleSequence { replica: replicas.start, order, replicas, step, offset: 0, epoch, permutation }
    }
}

impl Iterator for SampleSequence {
    type Item = SamplePosition;

    fn next(&mut self) -> Option<SamplePosition> {
        if self.offset == self.order.batch {
            (self.offset, self.replica) = (0, self.replica + 1);
        }
        if self.replica == self.replicas.end {
            (self.replica, self.step) = (self.replicas.start, self.step + 1);
        }
        let epoch = self.order.epoch_of(self.step);
        if epoch != self.epoch {
            (self.epoch, self.permutation) = (epoch, self.order.permutation(epoch));
        }
        let position = self.order.positions(self.step, self.replica).start + self.offset;
        self.offset += 1;
        Some(SamplePosition { epoch, position, index: self.permutation[position] })
    }
}
