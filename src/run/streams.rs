//! Streams: the training images of a run, in order, from any step on.

use crate::config::Settings;
use crate::data::{DecodePool, Loader, LoaderSpec, ShardSet};
use crate::error::Result;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Opens a packed set, for all who read it.
pub(super) fn open(folder: &Path) -> Result<Arc<ShardSet>> {
    Ok(Arc::new(ShardSet::open(folder)?))
}

/// Opens streams of training samples, each at any step.
pub(super) struct Streams {
    pub(super) pool: DecodePool,
    spec: LoaderSpec,
}

impl Streams {
    /// For `replicas`, the ones that this rank computes; `threads` that decode unless the configuration says otherwise.
    pub(super) fn new(settings: &impl Settings, replicas: Range<usize>, threads: usize) -> Streams {
        let pool = DecodePool::new(settings.data().threads(threads));
        Streams { pool, spec: LoaderSpec::of(settings, replicas) }
    }

    /// Steps of one pass over `set`, which must have one at least.
    pub(super) fn steps_per_pass(&self, set: &ShardSet) -> Result<u64> {
        let order = self.spec.order(set.len());
        order.check(set.dir())?;
        Ok(order.steps_per_epoch())
    }

    pub(super) fn open(&self, set: &Arc<ShardSet>, stream: u64, step: u64) -> Result<Loader> {
        Ok(Loader::open(Arc::clone(set), LoaderSpec { stream, ..self.spec.clone() }, &self.pool, step)?)
    }
}
