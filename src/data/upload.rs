//! `Upload`: batches to the network's input on a device, without the host waiting for the device.
//!
//! A GPU gets bytes, from pinned memory, on a stream of its own, while it computes the batch before; they are normalised
//! there. Two slots take turns. The order: the copy into a slot waits until the batch before in it was read (`read`),
//! the work of libtorch waits for the copy (`arrived`), the host waits for the copy before the one before, which is long
//! done unless the host is far ahead.
//!
//! Shapes: N images, px side.

use super::augment::Normaliser;
use super::reader::Batch;
use crate::cuda::{self, Context, Driver, Event, Stream};
use crate::data::error::Result;
use tch::{Device, Kind, Tensor};

/// Brings batches to one device.
pub struct Upload {
    device: Device,
    normaliser: Normaliser,
    /// The context of the GPU, if that was given.
    context: Option<Context>,
    /// Made for the first batch, and anew for a larger one.
    staging: Option<Staging>,
}

impl Upload {
    /// To `device`; `mean` and `std` as of `Data`.
    pub fn new(mean: &[f64; 3], std: &[f64; 3], device: Device) -> Upload {
        Upload { device, normaliser: Normaliser::new(mean, std, device), context: None, staging: None }
    }

    /// To a GPU whose tensors are `device`'s: for stand-ins of the driver, whose GPUs have host memory.
    pub fn to_gpu(mean: &[f64; 3], std: &[f64; 3], device: Device, context: Context) -> Upload {
        Upload { context: Some(context), ..Upload::new(mean, std, device) }
    }

    /// The network's input `[N, 3, px, px]` in Float, normalised, 0 in the holes; and the labels `[N]`. Both on the device.
    pub fn input(&mut self, batch: &Batch) -> Result<(Tensor, Tensor)> {
        if self.context.is_none()
            && let Device::Cuda(index) = self.device
        {
            let none =
                |why: cuda::DriverUnavailable| cuda::Error::CallFailed { call: "cuInit", code: 0, text: why.to_string() };
            let driver = Driver::open().map_err(none)?;
            self.context = Some(Context::new(driver, index)?);
        }
        let Some(context) = self.context else {
            let images = self.normaliser.apply(&batch.images);
            return Ok((batch.without_holes(images), batch.labels.shallow_clone()));
        };
        let facts = batch.facts();
        let parts = [&batch.images, &facts];
        let staging = match self.staging.take().filter(|staging| staging.holds(&parts)) {
            Some(staging) => self.staging.insert(staging),
            None => self.staging.insert(Staging::new(context, self.device, &parts)?),
        };
        let normaliser = &self.normaliser;
        staging.pass(&parts, |images, facts| {
            let images = normaliser.apply(images);
            let images = if batch.holes.is_empty() { images } else { without_holes(images, facts) };
            (images, facts.select(1, 0).copy())
        })
    }
}

/// Columns of `Batch::facts` behind the label: first row, end of rows, first column, end of columns of the hole.
fn without_holes(images: Tensor, facts: &Tensor) -> Tensor {
    let px = images.size()[3];
    let at = Tensor::arange(px, (Kind::Int64, images.device()));
    let between = |line: &Tensor, first: i64, end: i64| {
        let edge = |column| facts.select(1, column).view([-1, 1, 1, 1]);
        line.ge_tensor(&edge(first)).logical_and(&line.lt_tensor(&edge(end)))
    };
    let hole = between(&at.view([1, 1, px, 1]), 1, 2).logical_and(&between(&at.view([1, 1, 1, px]), 3, 4));
    images.masked_fill(&hole, 0.0)
}

/// One of two places in pinned memory and on the GPU.
struct Slot {
    /// Images and facts, room for the largest batch so far.
    pinned: [Tensor; 2],
    gpu: [Tensor; 2],
    /// The copy is done.
    arrived: Event,
    /// libtorch has read it.
    read: Event,
}

/// The way to one GPU.
pub struct Staging {
    context: Context,
    /// For copies.
    side: Stream,
    /// libtorch's.
    main: Stream,
    slots: [Slot; 2],
    /// The slot that is next.
    next: usize,
}

impl Staging {
    /// Room for batches of `like`, contiguous, whose first dimension is N; on the GPU they are tensors of `device`.
    pub fn new(context: Context, device: Device, like: &[&Tensor; 2]) -> Result<Staging> {
        context.bind()?;
        let main = Stream::legacy(context);
        let slot = || -> Result<Slot> {
            let pinned = |like: &Tensor| -> Result<Tensor> {
                // Not `pin_memory`: it warns that an argument is deprecated which tch always gives.
                let room = Tensor::f_empty(like.size(), (like.kind(), Device::Cpu))?;
                Ok(if device == Device::Cpu { room } else { room.f_internal_pin_memory(device)? })
            };
            let gpu = |like: &Tensor| Tensor::f_empty(like.size(), (like.kind(), device));
            let read = Event::new(context)?;
            let slot = Slot {
                pinned: [pinned(like[0])?, pinned(like[1])?],
                gpu: [gpu(like[0])?, gpu(like[1])?],
                arrived: Event::new(context)?,
                read,
            };
            // libtorch may hand out memory that its stream still uses.
            slot.read.record(&main)?;
            Ok(slot)
        };
        Ok(Staging { context, side: Stream::new(context)?, slots: [slot()?, slot()?], main, next: 0 })
    }

    /// Whether batches like `parts` fit.
    fn holds(&self, parts: &[&Tensor; 2]) -> bool {
        let fits = |room: &Tensor, part: &Tensor| {
            room.size()[0] >= part.size()[0] && room.size()[1..] == part.size()[1..]
        };
        self.slots[0].gpu.iter().zip(parts).all(|(room, part)| fits(room, part))
    }

    /// Brings `parts` to the GPU and gives them to `read`, which only reads them, in work of libtorch's stream.
    pub fn pass<T>(&mut self, parts: &[&Tensor; 2], read: impl FnOnce(&Tensor, &Tensor) -> T) -> Result<T> {
        self.context.bind()?;
        let slot = &self.slots[self.next];
        self.next = 1 - self.next;
        if !slot.arrived.is_done()? {
            slot.arrived.synchronize()?;
        }
        self.side.wait(&slot.read)?;
        let copied = self.start_copies(slot, parts);
        // After an error too: one of them may be under way.
        slot.arrived.record(&self.side)?;
        let arrived = copied?;
        self.main.wait(&slot.arrived)?;
        let result = read(&arrived[0], &arrived[1]);
        slot.read.record(&self.main)?;
        Ok(result)
    }

    /// Begins to copy `parts` to the GPU, by way of `slot`; where they will be. The caller records `arrived` next.
    fn start_copies(&self, slot: &Slot, parts: &[&Tensor; 2]) -> Result<Vec<Tensor>> {
        let places = parts.iter().zip(&slot.pinned).zip(&slot.gpu);
        places
            .map(|((part, pinned), gpu)| {
                let rows = part.size()[0];
                let (mut pinned, gpu) = (pinned.narrow(0, 0, rows), gpu.narrow(0, 0, rows));
                pinned.f_copy_(part)?;
                let bytes = part.numel() * part.kind().elt_size_in_bytes();
                // SAFETY: both are contiguous (the first rows of contiguous tensors) and have `bytes` bytes. The pinned one
                // is next written, or given back, after `arrived`; nobody reads or writes the other until then, since
                // libtorch's stream waits for it, and this stream has waited for what libtorch still read.
                unsafe { self.side.copy_to_gpu(gpu.data_ptr(), pinned.data_ptr(), bytes)? };
                Ok(gpu)
            })
            .collect()
    }
}

impl Drop for Staging {
    /// No memory is given back while a copy reads or writes it.
    fn drop(&mut self) {
        for slot in &self.slots {
            let _ = slot.arrived.synchronize();
        }
    }
}
