//! `Reader`: decodes and augments a given sequence of samples ahead of the consumer, keeping their order.
//!
//! A collator thread keeps a window of single-sample jobs in flight in the `DecodePool`, takes their results in order
//! and copies them into batch tensors. Shapes: N images per batch, px output side.

use super::augment::{Augment, Rect, normalise};
use super::decode::{self, DecodedImage};
use super::pool::{DecodePool, PendingJob};
use super::set::ShardSet;
use crate::data::error::{Error, Result};
use crate::files;
use crate::random::{Purpose, stream};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Maximum number of replacements tried for an unusable sample.
const MAX_SKIPS: usize = 100;

/// Options of a reader.
pub(super) struct ReaderOptions {
    pub px: u32,
    pub augment: Augment,
    pub seed: u64,
    pub stream: u64,
    /// Images per batch; the last batch may have fewer.
    pub batch: usize,
    /// Batches to prefetch.
    pub prefetch: usize,
    pub skip_bad: bool,
}

/// A sample of the sequence.
#[derive(Clone, Copy)]
pub(super) struct SamplePosition {
    pub epoch: u64,
    /// Position in the epoch's order.
    pub position: usize,
    /// Index in the set.
    pub index: u32,
}

/// A batch of images on the CPU: of one replica at one step, or of a test set.
#[derive(Debug)]
pub struct Batch {
    /// Shape `[N, 3, px, px]`, kind Uint8.
    pub images: Tensor,
    /// Shape `[N]`, kind Int64.
    pub labels: Tensor,
    /// Holes of cutout, one per image or none at all: these pixels are 0 after normalisation.
    pub holes: Vec<Rect>,
    /// Indices of the samples in the `ShardSet`.
    pub indices: Vec<u32>,
    /// Number of samples that were replaced (`skip_bad`).
    pub num_skipped: usize,
    /// Shard, record, file name and error of each replaced sample.
    pub replaced: Vec<String>,
}

impl Batch {
    /// Creates `n` synthetic images of `px` and labels below `num_classes`, for benchmarks.
    pub fn synthetic(n: usize, px: i64, num_classes: i64) -> Batch {
        let bytes: Vec<u8> =
            (0..n * 3 * (px * px) as usize).map(|at| ((at * 2654435761) >> 7) as u8).collect();
        let labels: Vec<i64> = (0..n as i64).map(|at| at * 7 % num_classes).collect();
        Batch {
            images: Tensor::from_slice(&bytes).view([n as i64, 3, px, px]),
            labels: Tensor::from_slice(&labels),
            holes: Vec::new(),
            indices: Vec::new(),
            num_skipped: 0,
            replaced: Vec::new(),
        }
    }

    /// Returns the same batch, sharing memory.
    pub(super) fn share(&self) -> Batch {
        Batch {
            images: self.images.shallow_clone(),
            labels: self.labels.shallow_clone(),
            holes: self.holes.clone(),
            indices: self.indices.clone(),
            num_skipped: self.num_skipped,
            replaced: self.replaced.clone(),
        }
    }

    /// Returns the network's input on `device`: normalised as by `normalise`, then 0 in the holes.
    pub fn input(&self, mean: &[f64; 3], std: &[f64; 3], device: Device) -> Tensor {
        self.mask_holes(normalise(&self.images.to_device(device), mean, std))
    }

    /// Sets normalised images to 0 in the holes.
    pub(super) fn mask_holes(&self, images: Tensor) -> Tensor {
        match self.holes.as_slice() {
            [] => images,
            holes => {
                let mask = mask(holes, self.images.size()[3] as usize);
                let device = images.device();
                images * mask.to_device(device)
            }
        }
    }

    /// Returns the label of each image and, if there are holes, first row, end row, first column, end column of the
    /// hole. Shape [N, 1] or [N, 5], kind Int64.
    pub(super) fn labels_and_holes(&self) -> Tensor {
        let labels = self.labels.unsqueeze(1);
        if self.holes.is_empty() {
            return labels;
        }
        let edges = |hole: &Rect| {
            [hole.top, hole.top + hole.height, hole.left, hole.left + hole.width].map(i64::from)
        };
        let edges: Vec<i64> = self.holes.iter().flat_map(edges).collect();
        Tensor::cat(&[labels, Tensor::from_slice(&edges).view([-1, 4])], 1)
    }
}

/// Returns a mask that is 0 in the holes, 1 elsewhere. Shape [N, 1, px, px], kind Float.
fn mask(holes: &[Rect], px: usize) -> Tensor {
    let mut mask = vec![1.0f32; holes.len() * px * px];
    for (image, hole) in mask.chunks_exact_mut(px * px).zip(holes) {
        for row in image.chunks_exact_mut(px).skip(hole.top as usize).take(hole.height as usize) {
            row[hole.left as usize..(hole.left + hole.width) as usize].fill(0.0);
        }
    }
    Tensor::from_slice(&mask).view([holes.len() as i64, 1, px as i64, px as i64])
}

/// Batches of a sequence of samples. Memory: at most `prefetch + 2` batches and a window of max(N, 2 threads) images,
/// regardless of the size of the set.
pub(super) struct Reader {
    batches: Option<Receiver<Result<Batch>>>,
    collator: Option<JoinHandle<()>>,
    shared: Arc<ReaderShared>,
    wait_ms: f64,
}

/// Shared by the collator and the decode threads.
struct ReaderShared {
    set: Arc<ShardSet>,
    options: ReaderOptions,
    stop: AtomicBool,
    num_started: AtomicU64,
}

impl Reader {
    /// Starts decoding. Errors: an image or batch size of 0, no thread can be started.
    pub fn start(
        set: Arc<ShardSet>,
        options: ReaderOptions,
        pool: &DecodePool,
        samples: impl Iterator<Item = SamplePosition> + Send + 'static,
    ) -> Result<Reader> {
        if options.px == 0 || options.batch == 0 {
            let (batch, px) = (options.batch, options.px);
            return Err(Error::LoaderSpec(format!(
                "expected at least 1 image per batch and 1 px per side, found {batch} images and {px} px"
            )));
        }
        let (sender, batches) = bounded(options.prefetch.max(1));
        let shared = Arc::new(ReaderShared {
            set,
            stop: AtomicBool::new(false),
            num_started: AtomicU64::new(0),
            options,
        });
        let collator = Collator {
            shared: shared.clone(),
            pool: pool.clone(),
            samples,
            window: VecDeque::new(),
            spare: Vec::new(),
        };
        let collator = std::thread::Builder::new()
            .name(format!("loader-{}", shared.options.stream))
            .spawn(move || collator.run(sender))
            .map_err(files::io("start the loader thread for", shared.set.dir()))?;
        Ok(Reader { batches: Some(batches), collator: Some(collator), shared, wait_ms: 0.0 })
    }

    /// Returns the next batch. Errors: an unusable sample (shard, record and file are named); `LoaderEnded` after an
    /// error and after the last sample.
    pub fn next(&mut self) -> Result<Batch> {
        let started = Instant::now();
        let batch = self.batches.as_ref().and_then(|batches| batches.recv().ok());
        self.wait_ms += started.elapsed().as_secs_f64() * 1e3;
        batch.unwrap_or(Err(Error::LoaderEnded))
    }

    /// Returns the milliseconds spent waiting in `next` since the last call.
    pub fn wait_ms(&mut self) -> f64 {
        std::mem::take(&mut self.wait_ms)
    }

    /// Returns the number of samples submitted to the decode threads so far.
    pub fn num_started(&self) -> u64 {
        self.shared.num_started.load(Ordering::Relaxed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Queued jobs return immediately, and a collator blocked on the channel sees it closed: the join is short.
        self.shared.stop.store(true, Ordering::Relaxed);
        self.batches = None;
        if let Some(collator) = self.collator.take() {
            let _ = collator.join();
        }
    }
}

/// A decoded sample.
struct Pixels {
    /// [3, px, px].
    planar: Vec<u8>,
    label: u32,
    index: u32,
    /// Samples that it replaces, with their errors.
    replaced: Vec<String>,
    hole: Option<Rect>,
}

struct Collator<P> {
    shared: Arc<ReaderShared>,
    pool: DecodePool,
    samples: P,
    window: VecDeque<(u32, PendingJob<Result<Pixels>>)>,
    /// Buffers for reuse.
    spare: Vec<Vec<u8>>,
}

impl<P: Iterator<Item = SamplePosition>> Collator<P> {
    fn run(mut self, batches: Sender<Result<Batch>>) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let Some(batch) = self.batch() else {
                return;
            };
            let failed = batch.is_err();
            if batches.send(batch).is_err() || failed {
                break;
            }
        }
        // The remaining jobs are not needed.
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Returns the next batch, or `None` after the last sample.
    fn batch(&mut self) -> Option<Result<Batch>> {
        self.fill();
        let num_images = self.shared.options.batch.min(self.window.len());
        (num_images > 0).then(|| self.gather(num_images))
    }

    /// Fills the window with jobs.
    fn fill(&mut self) {
        let size = self.shared.options.batch.max(2 * self.pool.num_threads());
        while self.window.len() < size {
            let Some(place) = self.samples.next() else {
                return;
            };
            let buffer = self.spare.pop().unwrap_or_default();
            let shared = self.shared.clone();
            self.shared.num_started.fetch_add(1, Ordering::Relaxed);
            self.window.push_back((place.index, self.pool.submit(move || shared.decode(place, buffer))));
        }
    }

    /// Collects the next `num_images` samples into a batch.
    fn gather(&mut self, num_images: usize) -> Result<Batch> {
        let px = i64::from(self.shared.options.px);
        let sample_bytes = 3 * (px * px) as usize;
        let images = Tensor::f_empty([num_images as i64, 3, px, px], (Kind::Uint8, Device::Cpu))?;
        // SAFETY: a new contiguous CPU tensor of num_images * sample_bytes bytes without other owners; the slice ends
        // with this function. The uninitialised bytes are all written below before the tensor is returned.
        let target = unsafe {
            std::slice::from_raw_parts_mut(images.data_ptr().cast::<u8>(), num_images * sample_bytes)
        };
        let (mut labels, mut indices, mut holes, mut replaced) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for slot in target.chunks_exact_mut(sample_bytes) {
            let pixels = self.sample()?;
            slot.copy_from_slice(&pixels.planar);
            labels.push(i64::from(pixels.label));
            indices.push(pixels.index);
            holes.extend(pixels.hole);
            replaced.extend(pixels.replaced);
            self.spare.push(pixels.planar);
        }
        let labels = Tensor::f_from_slice(&labels)?;
        Ok(Batch { images, labels, holes, indices, num_skipped: replaced.len(), replaced })
    }

    /// Waits for the oldest job.
    fn sample(&mut self) -> Result<Pixels> {
        self.fill();
        let (index, pending) = self.window.pop_front().expect("a batch is not larger than the window");
        pending.wait().unwrap_or_else(|what| {
            Err(Error::DecodePanic { place: self.shared.set.location(index as usize), what })
        })
    }
}

thread_local! {
    static IMAGE: RefCell<DecodedImage> = RefCell::default();
}

impl ReaderShared {
    /// Decodes a sample; runs in a decode thread.
    fn decode(&self, place: SamplePosition, mut planar: Vec<u8>) -> Result<Pixels> {
        planar.resize(3 * self.options.px as usize * self.options.px as usize, 0);
        let num_samples = self.set.len();
        let mut replaced = Vec::new();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::LoaderEnded);
            }
            // The next sample in the shard is a random one: the set was shuffled, by `pack` or by its publisher.
            let index = (place.index as usize + replaced.len()) % num_samples;
            match self.pixels(index, place, &mut planar) {
                Ok((label, hole)) => {
                    return Ok(Pixels { planar, label, index: index as u32, replaced, hole });
                }
                // Only an image that was already unusable when packed is skipped. In a corrupt shard, labels and other
                // data may be wrong too.
                Err(Error::BadImage { place, reason })
                    if self.options.skip_bad && replaced.len() < MAX_SKIPS.min(num_samples) =>
                {
                    replaced.push(format!("{place}: {reason}"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn pixels(&self, index: usize, place: SamplePosition, planar: &mut [u8]) -> Result<(u32, Option<Rect>)> {
        let sample = self.set.sample(index)?;
        let bad = |reason| Error::BadImage { place: self.set.location(index), reason };
        let address = [self.options.stream, place.epoch, place.position as u64];
        let mut rng = stream(self.options.seed, Purpose::Augment, &address);
        IMAGE.with_borrow_mut(|image| {
            decode::decode_into(sample.bytes, image).map_err(bad)?;
            let hole = self.options.augment.apply(image, self.options.px, &mut rng, planar).map_err(bad)?;
            Ok((sample.label, hole))
        })
    }
}
