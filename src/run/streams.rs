//! Streams of training images, starting at any step.

use crate::config::Settings;
use crate::data::{DecodePool, Loader, LoaderSpec, ShardSet};
use crate::error::Result;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Opens a shard set for shared use.
pub(super) fn open(folder: &Path) -> Result<Arc<ShardSet>> {
    Ok(Arc::new(ShardSet::open(folder)?))
}

/// Opens streams of training images.
pub(super) struct Streams {
    pub(super) pool: DecodePool,
    spec: LoaderSpec,
}

impl Streams {
    /// `replicas`: those of this rank. `threads`: decoding threads unless the configuration sets their number.
    pub(super) fn new(settings: &impl Settings, replicas: Range<usize>, threads: usize) -> Streams {
        let pool = DecodePool::new(settings.data().threads(threads));
        Streams { pool, spec: LoaderSpec::of(settings, replicas) }
    }

    /// Returns the number of steps in one pass over `set`. Errors: the set is smaller than one batch.
    pub(super) fn steps_per_pass(&self, set: &ShardSet) -> Result<u64> {
        let order = self.spec.order(set.len());
        order.check(set.dir())?;
        Ok(order.steps_per_epoch())
    }

    /// Opens `stream` of `set` at `step`.
    pub(super) fn open(&self, set: &Arc<ShardSet>, stream: u64, step: u64) -> Result<Loader> {
        Ok(Loader::open(Arc::clone(set), LoaderSpec { stream, ..self.spec.clone() }, &self.pool, step)?)
    }
}
