//! `TestLoader`: every image of a set exactly once, divided among any number of ranks.

use super::augment::Augment;
use super::pool::DecodePool;
use super::reader::{Batch, Reader, ReaderOptions, SamplePosition};
use super::set::ShardSet;
use crate::data::error::{Error, Result};
use std::sync::Arc;

/// Options of a test loader.
#[derive(Clone, Debug)]
pub struct TestSpec {
    /// Side of the output images (`DataSection::test_crop_px`).
    pub px: u32,
    /// Augmentation (`Augment::test`); should be deterministic.
    pub augment: Augment,
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub size: usize,
    /// Images per batch; the last batch of the set may have fewer.
    pub batch: usize,
    /// Batches to prefetch, at least 1.
    pub prefetch: usize,
}

/// The batches of a test set that one rank evaluates. The set is cut into the same batches for any number of ranks, so
/// that results are bit-identical; a rank takes batches rank, rank + size, rank + 2 size ... The number of batches per
/// rank differs by at most one, and is 0 on some ranks if there are more ranks than batches. An unusable image is an
/// error: leaving it out would change the test.
pub struct TestLoader {
    reader: Reader,
    num_left: usize,
}

impl TestLoader {
    /// Starts decoding. Errors: `rank` is not below `size`, an image or batch size of 0.
    pub fn open(set: Arc<ShardSet>, spec: TestSpec, pool: &DecodePool) -> Result<TestLoader> {
        let TestSpec { rank, size, .. } = spec;
        if rank >= size {
            return Err(Error::LoaderSpec(format!("expected a rank below {size}, found {rank}")));
        }
        let (num_images, batch) = (set.len(), spec.batch.max(1));
        let batches = (rank..num_images.div_ceil(batch)).step_by(size);
        let num_left = batches.len();
        let images = batches.flat_map(move |number| number * batch..num_images.min((number + 1) * batch));
        let samples = images.map(|index| SamplePosition { epoch: 0, position: index, index: index as u32 });
        let options = ReaderOptions {
            px: spec.px,
            augment: spec.augment,
            seed: 0,
            stream: 0,
            batch: spec.batch,
            prefetch: spec.prefetch,
            skip_bad: false,
        };
        Ok(TestLoader { reader: Reader::start(set, options, pool, samples)?, num_left })
    }

    /// Returns the next batch, or `None` after the last one.
    /// Errors: an unusable image (shard, record and file are named); after an error the loader cannot be used any more.
    #[allow(clippy::should_implement_trait)] // fallible: not an Iterator
    pub fn next(&mut self) -> Result<Option<Batch>> {
        if self.num_left == 0 {
            return Ok(None);
        }
        let batch = self.reader.next()?;
        self.num_left -= 1;
        Ok(Some(batch))
    }

    /// Returns the number of remaining batches.
    pub fn num_left(&self) -> usize {
        self.num_left
    }

    /// Returns the milliseconds spent waiting in `next` since the last call.
    pub fn wait_ms(&mut self) -> f64 {
        self.reader.wait_ms()
    }
}
