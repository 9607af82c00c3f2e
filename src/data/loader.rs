//! `Loader`: samples decoded and augmented ahead of the training loop, in an order that only the seed decides.
//!
//! A conductor thread keeps a window of single-sample jobs under way in the `DecodePool`, takes their answers in order
//! and copies them into batch tensors. Shapes: N images per replica, px output side.

use super::augment::Augment;
use super::decode::{self, Picture};
use super::order::Order;
use super::pool::{DecodePool, Pending};
use super::set::ShardSet;
use crate::error::{Error, Result};
use crate::random::{Purpose, stream};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Replacements tried for one unusable sample before that is an error.
const MAX_SKIPS: usize = 100;

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

/// The images of one replica at one step, on the CPU.
#[derive(Debug)]
pub struct Batch {
    /// Shape `[N, 3, px, px]`, kind Uint8.
    pub images: Tensor,
    /// Shape `[N]`, kind Int64.
    pub labels: Tensor,
    /// The samples taken, positions in the `ShardSet`.
    pub indices: Vec<u32>,
    /// Samples that were replaced (`skip_bad`).
    pub num_skipped: usize,
}

/// A stream of batches without end. Memory: at most `prefetch + 2` batches and a window of max(N, 2 threads) pictures,
/// however large the set is.
pub struct Loader {
    batches: Option<Receiver<Result<Batch>>>,
    conductor: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    order: Order,
    wait_ms: f64,
}

/// What conductor and decode threads have in common.
struct Shared {
    set: Arc<ShardSet>,
    spec: LoaderSpec,
    stop: AtomicBool,
    num_started: AtomicU64,
}

impl LoaderSpec {
    /// The order in which the stream serves `set`.
    pub fn order(&self, set: &ShardSet) -> Order {
        Order {
            num_samples: set.len(),
            num_replicas: self.num_replicas,
            batch: self.batch,
            seed: self.seed,
            stream: self.stream,
        }
    }
}

impl Loader {
    /// Starts to decode from global step `step` (counted from 0 over the whole run) on.
    /// Errors: a set smaller than one global batch, replicas that are not of the run.
    pub fn open(set: Arc<ShardSet>, spec: LoaderSpec, pool: &DecodePool, step: u64) -> Result<Loader> {
        let order = spec.order(&set);
        order.check(set.dir())?;
        if spec.replicas.is_empty() || spec.replicas.end > spec.num_replicas {
            let (served, all) = (&spec.replicas, spec.num_replicas);
            return Err(Error::LoaderSpec(format!(
                "replicas {served:?} of {all}; a part of 0..{all} expected"
            )));
        }
        if spec.px == 0 {
            return Err(Error::LoaderSpec("pictures of 0 px; at least 1 expected".into()));
        }
        let (sender, batches) = bounded(spec.prefetch.max(1));
        let shared =
            Arc::new(Shared { set, stop: AtomicBool::new(false), num_started: AtomicU64::new(0), spec });
        let places = Places::new(order.clone(), shared.spec.replicas.clone(), step);
        let conductor = Conductor {
            shared: shared.clone(),
            pool: pool.clone(),
            places,
            window: VecDeque::new(),
            spare: Vec::new(),
        };
        let conductor = std::thread::Builder::new()
            .name(format!("loader-{}", shared.spec.stream))
            .spawn(move || conductor.run(sender))
            .map_err(Error::io("start the loader thread for", shared.set.dir()))?;
        Ok(Loader { batches: Some(batches), conductor: Some(conductor), shared, order, wait_ms: 0.0 })
    }

    /// The next batch: for each step the served replicas one after another, then the next step.
    /// Errors: an unusable sample (shard, record and file are named); after an error the loader has ended.
    #[allow(clippy::should_implement_trait)] // never ends and can fail: no Iterator
    pub fn next(&mut self) -> Result<Batch> {
        let started = Instant::now();
        let batch = self.batches.as_ref().and_then(|batches| batches.recv().ok());
        self.wait_ms += started.elapsed().as_secs_f64() * 1e3;
        batch.unwrap_or(Err(Error::LoaderEnded))
    }

    /// Global batches in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.order.steps_per_epoch()
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

impl Drop for Loader {
    fn drop(&mut self) {
        // Queued jobs answer at once, a conductor that waits for room in the channel sees it closed: the join is short.
        self.shared.stop.store(true, Ordering::Relaxed);
        self.batches = None;
        if let Some(conductor) = self.conductor.take() {
            let _ = conductor.join();
        }
    }
}

/// One sample to serve.
#[derive(Clone, Copy)]
struct Place {
    epoch: u64,
    /// In the epoch's permutation.
    position: usize,
    /// In the set.
    index: u32,
}

/// The samples of the served replicas, step after step, without end.
struct Places {
    order: Order,
    replicas: Range<usize>,
    step: u64,
    replica: usize,
    within: usize,
    epoch: u64,
    permutation: Vec<u32>,
}

impl Places {
    fn new(order: Order, replicas: Range<usize>, step: u64) -> Places {
        let epoch = order.epoch_of(step);
        let permutation = order.permutation(epoch);
        Places { replica: replicas.start, order, replicas, step, within: 0, epoch, permutation }
    }
}

impl Iterator for Places {
    type Item = Place;

    fn next(&mut self) -> Option<Place> {
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
        Some(Place { epoch, position, index: self.permutation[position] })
    }
}

/// A decoded sample.
struct Pixels {
    /// [3, px, px].
    planar: Vec<u8>,
    label: u32,
    index: u32,
    num_skipped: usize,
}

struct Conductor {
    shared: Arc<Shared>,
    pool: DecodePool,
    places: Places,
    window: VecDeque<(u32, Pending<Result<Pixels>>)>,
    /// Buffers that were copied out and serve again.
    spare: Vec<Vec<u8>>,
}

impl Conductor {
    fn run(mut self, batches: Sender<Result<Batch>>) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let batch = self.batch();
            let failed = batch.is_err();
            if batches.send(batch).is_err() || failed {
                break;
            }
        }
        // Jobs that nobody will read.
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    fn batch(&mut self) -> Result<Batch> {
        let spec = &self.shared.spec;
        let (num_images, px) = (spec.batch, i64::from(spec.px));
        let sample_bytes = 3 * spec.px as usize * spec.px as usize;
        let images = Tensor::f_empty([num_images as i64, 3, px, px], (Kind::Uint8, Device::Cpu))?;
        // SAFETY: a new contiguous CPU tensor of num_images * sample_bytes bytes that nobody else holds; the slice ends
        // with this function. Uninitialised bytes: every one is written below before the tensor is handed out.
        let target = unsafe {
            std::slice::from_raw_parts_mut(images.data_ptr().cast::<u8>(), num_images * sample_bytes)
        };
        let (mut labels, mut indices, mut num_skipped) = (Vec::new(), Vec::new(), 0);
        for slot in target.chunks_exact_mut(sample_bytes) {
            let pixels = self.sample()?;
            slot.copy_from_slice(&pixels.planar);
            labels.push(i64::from(pixels.label));
            indices.push(pixels.index);
            num_skipped += pixels.num_skipped;
            self.spare.push(pixels.planar);
        }
        Ok(Batch { images, labels: Tensor::f_from_slice(&labels)?, indices, num_skipped })
    }

    /// Fills the window, then waits for its oldest sample.
    fn sample(&mut self) -> Result<Pixels> {
        let size = self.shared.spec.batch.max(2 * self.pool.num_threads());
        while self.window.len() < size {
            let place = self.places.next().expect("places never end");
            let buffer = self.spare.pop().unwrap_or_default();
            let shared = self.shared.clone();
            self.shared.num_started.fetch_add(1, Ordering::Relaxed);
            self.window.push_back((place.index, self.pool.submit(move || shared.decode(place, buffer))));
        }
        let (index, pending) = self.window.pop_front().expect("the window was filled");
        pending.wait().unwrap_or_else(|what| {
            Err(Error::DecodePanic { place: self.shared.set.place(index as usize), what })
        })
    }
}

thread_local! {
    static PICTURE: RefCell<Picture> = RefCell::default();
}

impl Shared {
    /// Runs in a decode thread.
    fn decode(&self, place: Place, mut planar: Vec<u8>) -> Result<Pixels> {
        planar.resize(3 * self.spec.px as usize * self.spec.px as usize, 0);
        let num_samples = self.set.len();
        let mut num_skipped = 0;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::LoaderEnded);
            }
            // The neighbour in the shard is a random other sample, since `pack` shuffles.
            let index = (place.index as usize + num_skipped) % num_samples;
            match self.pixels(index, place, &mut planar) {
                Ok(label) => {
                    return Ok(Pixels { planar, label, index: index as u32, num_skipped });
                }
                Err(_) if self.spec.skip_bad && num_skipped < MAX_SKIPS.min(num_samples) => num_skipped += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn pixels(&self, index: usize, place: Place, planar: &mut [u8]) -> Result<u32> {
        let sample = self.set.sample(index)?;
        let bad = |reason| Error::BadImage { place: self.set.place(index), reason };
        let address = [self.spec.stream, place.epoch, place.position as u64];
        let mut rng = stream(self.spec.seed, Purpose::Augment, &address);
        PICTURE.with_borrow_mut(|picture| {
            decode::decode_into(sample.bytes, picture).map_err(bad)?;
            self.spec.augment.apply(picture, self.spec.px, &mut rng, planar).map_err(bad)?;
            Ok(sample.label)
        })
    }
}
