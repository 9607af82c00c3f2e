//! `TestLoader`: every image of a set exactly once, shared by any number of ranks.

use super::augment::Augment;
use super::pool::DecodePool;
use super::reader::{Batch, Reader, SamplePosition, Work};
use super::set::ShardSet;
use crate::data::error::{Error, Result};
use std::sync::Arc;

/// What a test loader serves.
#[derive(Clone, Debug)]
pub struct TestSpec {
    /// Side of the pictures (`Data::test_crop_px`).
    pub px: u32,
    /// How they are cut out (`Augment::test`); should draw nothing.
    pub augment: Augment,
    /// Which of the ranks this is.
    pub rank: usize,
    /// Number of ranks.
    pub size: usize,
    /// Images per batch; the last batch of the set may have fewer.
    pub batch: usize,
    /// Batches kept ready, at least 1.
    pub prefetch: usize,
}

/// The part of a set that one rank tests. The set is cut into batches, the same ones for any number of ranks, so that even
/// rounding is the same; a rank takes batches rank, rank + size, rank + 2 size ... Ranks may have different numbers of
/// batches, by one at most; a rank of more ranks than batches has none. An unusable image is an error: a test that leaves
/// images out is another test.
pub struct TestLoader {
    reader: Reader,
    num_left: usize,
}

impl TestLoader {
    /// Starts to decode. Errors: a rank that is not of `size`, batches or pictures of nothing.
    pub fn open(set: Arc<ShardSet>, spec: TestSpec, pool: &DecodePool) -> Result<TestLoader> {
        let TestSpec { rank, size, .. } = spec;
        if rank >= size {
            return Err(Error::LoaderSpec(format!("rank {rank} of {size}; less than {size} expected")));
        }
        let (num_images, batch) = (set.len(), spec.batch.max(1));
        let batches = (rank..num_images.div_ceil(batch)).step_by(size);
        let num_left = batches.len();
        let images = batches.flat_map(move |number| number * batch..num_images.min((number + 1) * batch));
        let places = images.map(|index| SamplePosition { epoch: 0, position: index, index: index as u32 });
        let work = Work {
            px: spec.px,
            augment: spec.augment,
            seed: 0,
            stream: 0,
            batch: spec.batch,
            prefetch: spec.prefetch,
            skip_bad: false,
        };
        Ok(TestLoader { reader: Reader::start(set, work, pool, places)?, num_left })
    }

    /// The next batch, `None` after the last one.
    /// Errors: an unusable image (shard, record and file are named); after an error the loader has ended.
    #[allow(clippy::should_implement_trait)] // can fail: no Iterator
    pub fn next(&mut self) -> Result<Option<Batch>> {
        if self.num_left == 0 {
            return Ok(None);
        }
        let batch = self.reader.next()?;
        self.num_left -= 1;
        Ok(Some(batch))
    }

    /// Batches that are still to come.
    pub fn num_left(&self) -> usize {
        self.num_left
    }

    /// Milliseconds the caller waited in `next` since this was last asked.
    pub fn wait_ms(&mut self) -> f64 {
        self.reader.wait_ms()
    }
}
