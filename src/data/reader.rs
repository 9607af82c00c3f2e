//! `Reader`: samples at given places, decoded and augmented ahead of whoever asks, in the order of the places.
//!
//! A conductor thread keeps a window of single-sample jobs under way in the `DecodePool`, takes their answers in order
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

/// Replacements tried for one unusable sample before that is an error.
const MAX_SKIPS: usize = 100;

/// What becomes of the samples.
pub(super) struct Work {
    pub px: u32,
    pub augment: Augment,
    pub seed: u64,
    pub stream: u64,
    /// Samples of a batch; the last one may have fewer.
    pub batch: usize,
    /// Batches kept ready.
    pub prefetch: usize,
    pub skip_bad: bool,
}

/// One sample to serve.
#[derive(Clone, Copy)]
pub(super) struct SamplePosition {
    pub epoch: u64,
    /// In the epoch's order.
    pub position: usize,
    /// In the set.
    pub index: u32,
}

/// Some images, on the CPU: those of one replica at one step, or a part of a test set.
#[derive(Debug)]
pub struct Batch {
    /// Shape `[N, 3, px, px]`, kind Uint8.
    pub images: Tensor,
    /// Shape `[N]`, kind Int64.
    pub labels: Tensor,
    /// Cut-outs, one for each image or none at all: these pixels are 0 after normalisation.
    pub holes: Vec<Rect>,
    /// The samples taken, positions in the `ShardSet`.
    pub indices: Vec<u32>,
    /// Samples that were replaced (`skip_bad`).
    pub num_skipped: usize,
    /// Each of them: shard, record, file name, and why it could not be used.
    pub replaced: Vec<String>,
}

impl Batch {
    /// `n` images of `px` that nobody took, and labels below `num_classes`. To measure with.
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

    /// The same batch once more; shares memory.
    pub(super) fn again(&self) -> Batch {
        Batch {
            images: self.images.shallow_clone(),
            labels: self.labels.shallow_clone(),
            holes: self.holes.clone(),
            indices: self.indices.clone(),
            num_skipped: self.num_skipped,
            replaced: self.replaced.clone(),
        }
    }

    /// The network's input, on `device`: normalised as `normalise` does, then 0 in the holes.
    pub fn input(&self, mean: &[f64; 3], std: &[f64; 3], device: Device) -> Tensor {
        self.without_holes(normalise(&self.images.to_device(device), mean, std))
    }

    /// Normalised images, 0 in the holes.
    pub(super) fn without_holes(&self, images: Tensor) -> Tensor {
        match self.holes.as_slice() {
            [] => images,
            holes => {
                let mask = mask(holes, self.images.size()[3] as usize);
                let device = images.device();
                images * mask.to_device(device)
            }
        }
    }

    /// What is known of each image in numbers: its label and, if there are holes, first row, end of rows, first column,
    /// end of columns. Shape [N, 1] or [N, 5], kind Int64.
    pub(super) fn facts(&self) -> Tensor {
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

/// 0 in the holes, 1 elsewhere. Shape [N, 1, px, px], kind Float.
fn mask(holes: &[Rect], px: usize) -> Tensor {
    let mut mask = vec![1.0f32; holes.len() * px * px];
    for (image, hole) in mask.chunks_exact_mut(px * px).zip(holes) {
        for row in image.chunks_exact_mut(px).skip(hole.top as usize).take(hole.height as usize) {
            row[hole.left as usize..(hole.left + hole.width) as usize].fill(0.0);
        }
    }
    Tensor::from_slice(&mask).view([holes.len() as i64, 1, px as i64, px as i64])
}

/// The batches of some places. Memory: at most `prefetch + 2` batches and a window of max(N, 2 threads) pictures,
/// however large the set is.
pub(super) struct Reader {
    batches: Option<Receiver<Result<Batch>>>,
    conductor: Option<JoinHandle<()>>,
    shared: Arc<ReaderShared>,
    wait_ms: f64,
}

/// What conductor and decode threads have in common.
struct ReaderShared {
    set: Arc<ShardSet>,
    work: Work,
    stop: AtomicBool,
    num_started: AtomicU64,
}

impl Reader {
    /// Starts to decode. Errors: pictures or batches of nothing, no thread to be had.
    pub fn start(
        set: Arc<ShardSet>,
        work: Work,
        pool: &DecodePool,
        places: impl Iterator<Item = SamplePosition> + Send + 'static,
    ) -> Result<Reader> {
        if work.px == 0 || work.batch == 0 {
            let (batch, px) = (work.batch, work.px);
            return Err(Error::LoaderSpec(format!(
                "batches of {batch} pictures of {px} px; at least 1 expected"
            )));
        }
        let (sender, batches) = bounded(work.prefetch.max(1));
        let shared = Arc::new(ReaderShared {
            set,
            stop: AtomicBool::new(false),
            num_started: AtomicU64::new(0),
            work,
        });
        let conductor = Conductor {
            shared: shared.clone(),
            pool: pool.clone(),
            places,
            window: VecDeque::new(),
            spare: Vec::new(),
        };
        let conductor = std::thread::Builder::new()
            .name(format!("loader-{}", shared.work.stream))
            .spawn(move || conductor.run(sender))
            .map_err(files::io("start the loader thread for", shared.set.dir()))?;
        Ok(Reader { batches: Some(batches), conductor: Some(conductor), shared, wait_ms: 0.0 })
    }

    /// The next batch. Errors: an unusable sample (shard, record and file are named); `LoaderEnded` after an error and
    /// after the last place.
    pub fn next(&mut self) -> Result<Batch> {
        let started = Instant::now();
        let batch = self.batches.as_ref().and_then(|batches| batches.recv().ok());
        self.wait_ms += started.elapsed().as_secs_f64() * 1e3;
        batch.unwrap_or(Err(Error::LoaderEnded))
    }

    /// Milliseconds the caller waited in `next` since this was last asked.
    pub fn wait_ms(&mut self) -> f64 {
        std::mem::take(&mut self.wait_ms)
    }

    /// Samples given to the decode threads so far.
    pub fn num_started(&self) -> u64 {
        self.shared.num_started.load(Ordering::Relaxed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Queued jobs answer at once, a conductor that waits for room in the channel sees it closed: the join is short.
        self.shared.stop.store(true, Ordering::Relaxed);
        self.batches = None;
        if let Some(conductor) = self.conductor.take() {
            let _ = conductor.join();
        }
    }
}

/// A decoded sample.
struct Pixels {
    /// [3, px, px].
    planar: Vec<u8>,
    label: u32,
    index: u32,
    /// What stood in its place and could not be used.
    replaced: Vec<String>,
    hole: Option<Rect>,
}

struct Conductor<P> {
    shared: Arc<ReaderShared>,
    pool: DecodePool,
    places: P,
    window: VecDeque<(u32, PendingJob<Result<Pixels>>)>,
    /// Buffers that were copied out and serve again.
    spare: Vec<Vec<u8>>,
}

impl<P: Iterator<Item = SamplePosition>> Conductor<P> {
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
        // Jobs that nobody will read.
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// `None` when all places are served.
    fn batch(&mut self) -> Option<Result<Batch>> {
        self.fill();
        let num_images = self.shared.work.batch.min(self.window.len());
        (num_images > 0).then(|| self.gather(num_images))
    }

    /// Keeps as many jobs under way as the window holds.
    fn fill(&mut self) {
        let size = self.shared.work.batch.max(2 * self.pool.num_threads());
        while self.window.len() < size {
            let Some(place) = self.places.next() else {
                return;
            };
            let buffer = self.spare.pop().unwrap_or_default();
            let shared = self.shared.clone();
            self.shared.num_started.fetch_add(1, Ordering::Relaxed);
            self.window.push_back((place.index, self.pool.submit(move || shared.decode(place, buffer))));
        }
    }

    /// Waits for the oldest samples.
    fn gather(&mut self, num_images: usize) -> Result<Batch> {
        let px = i64::from(self.shared.work.px);
        let sample_bytes = 3 * (px * px) as usize;
        let images = Tensor::f_empty([num_images as i64, 3, px, px], (Kind::Uint8, Device::Cpu))?;
        // SAFETY: a new contiguous CPU tensor of num_images * sample_bytes bytes that nobody else holds; the slice ends
        // with this function. Uninitialised bytes: every one is written below before the tensor is handed out.
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
            Err(Error::DecodePanic { place: self.shared.set.place(index as usize), what })
        })
    }
}

thread_local! {
    static PICTURE: RefCell<DecodedImage> = RefCell::default();
}

impl ReaderShared {
    /// Runs in a decode thread.
    fn decode(&self, place: SamplePosition, mut planar: Vec<u8>) -> Result<Pixels> {
        planar.resize(3 * self.work.px as usize * self.work.px as usize, 0);
        let num_samples = self.set.len();
        let mut replaced = Vec::new();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::LoaderEnded);
            }
            // The neighbour in the shard is a random other sample: the set was shuffled, by `pack` or as it came.
            let index = (place.index as usize + replaced.len()) % num_samples;
            match self.pixels(index, place, &mut planar) {
                Ok((label, hole)) => {
                    return Ok(Pixels { planar, label, index: index as u32, replaced, hole });
                }
                // An image that `pack` was given like this. A damaged shard is another matter: what else of it is wrong,
                // labels for one, is not known.
                Err(Error::BadImage { place, reason })
                    if self.work.skip_bad && replaced.len() < MAX_SKIPS.min(num_samples) =>
                {
                    replaced.push(format!("{place}: {reason}"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn pixels(&self, index: usize, place: SamplePosition, planar: &mut [u8]) -> Result<(u32, Option<Rect>)> {
        let sample = self.set.sample(index)?;
        let bad = |reason| Error::BadImage { place: self.set.place(index), reason };
        let address = [self.work.stream, place.epoch, place.position as u64];
        let mut rng = stream(self.work.seed, Purpose::Augment, &address);
        PICTURE.with_borrow_mut(|picture| {
            decode::decode_into(sample.bytes, picture).map_err(bad)?;
            let hole = self.work.augment.apply(picture, self.work.px, &mut rng, planar).map_err(bad)?;
            Ok((sample.label, hole))
        })
    }
}
