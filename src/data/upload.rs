//! `Upload`: turns batches into the network's input on a device, without blocking the host.
//!
//! Images are copied to a GPU as bytes, from pinned memory and on a separate stream, while the GPU computes the
//! previous batch; they are normalised there. Two slots alternate. The copy into a slot waits until its previous batch
//! has been read (`read`), libtorch's work waits for the copy (`arrived`), and the host waits for the slot's previous
//! copy, which has long finished unless the host is far ahead.
//!
//! Shapes: N images, px side.

use super::augment::Normaliser;
use super::reader::Batch;
use crate::cuda::{self, Context, Driver, Event, Stream};
use crate::data::error::Result;
use tch::{Device, Kind, Tensor};

/// Uploads batches to one device.
pub struct Upload {
    device: Device,
    normaliser: Normaliser,
    /// The GPU's context, if given.
    context: Option<Context>,
    /// Created for the first batch, and again for a larger one.
    staging: Option<Staging>,
}

impl Upload {
    /// Uploads to `device`; `mean` and `std` as in `DataSection`.
    pub fn new(mean: &[f64; 3], std: &[f64; 3], device: Device) -> Upload {
        Upload { device, normaliser: Normaliser::new(mean, std, device), context: None, staging: None }
    }

    /// Uploads to a GPU whose tensors are on `device`: for stand-ins of the driver, whose GPUs use host memory.
    pub fn to_gpu(mean: &[f64; 3], std: &[f64; 3], device: Device, context: Context) -> Upload {
        Upload { context: Some(context), ..Upload::new(mean, std, device) }
    }

    /// Returns the network's input `[N, 3, px, px]` in Float, normalised, 0 in the holes; and the labels `[N]`. Both on
    /// the device.
    pub fn input(&mut self, batch: &Batch) -> Result<(Tensor, Tensor)> {
        if self.context.is_none()
            && let Device::Cuda(index) = self.device
        {
            let none = |why: cuda::DriverUnavailable| cuda::Error::CallFailed {
                call: "cuInit",
                code: 0,
                text: why.to_string(),
            };
            let driver = Driver::open().map_err(none)?;
            self.context = Some(Context::new(driver, index)?);
        }
        let Some(context) = self.context else {
            let images = self.normaliser.apply(&batch.images);
            return Ok((batch.mask_holes(images), batch.labels.shallow_clone()));
        };
        let facts = batch.labels_and_holes();
        let parts = [&batch.images, &facts];
        let staging = match self.staging.take().filter(|staging| staging.fits(&parts)) {
            Some(staging) => self.staging.insert(staging),
            None => self.staging.insert(Staging::new(context, self.device, &parts)?),
        };
        let normaliser = &self.normaliser;
        staging.transfer(&parts, |images, facts| {
            let images = normaliser.apply(images);
            let images = if batch.holes.is_empty() { images } else { mask_holes(images, facts) };
            (images, facts.select(1, 0).copy())
        })
    }
}

/// Sets images to 0 in the holes. Columns of `facts` after the label: first row, end row, first column, end column.
fn mask_holes(images: Tensor, facts: &Tensor) -> Tensor {
    let px = images.size()[3];
    let at = Tensor::arange(px, (Kind::Int64, images.device()));
    let between = |line: &Tensor, first: i64, end: i64| {
        let edge = |column| facts.select(1, column).view([-1, 1, 1, 1]);
        line.ge_tensor(&edge(first)).logical_and(&line.lt_tensor(&edge(end)))
    };
    let hole = between(&at.view([1, 1, px, 1]), 1, 2).logical_and(&between(&at.view([1, 1, 1, px]), 3, 4));
    images.masked_fill(&hole, 0.0)
}

/// One of two buffers in pinned memory and on the GPU.
struct Slot {
    /// Images and facts; as large as the largest batch so far.
    pinned: [Tensor; 2],
    gpu: [Tensor; 2],
    /// The copy is complete.
    arrived: Event,
    /// libtorch has read the buffer.
    read: Event,
}

/// Transfers batches to one GPU.
pub struct Staging {
    context: Context,
    /// The stream of the copies.
    copy_stream: Stream,
    /// libtorch's stream.
    torch_stream: Stream,
    slots: [Slot; 2],
    /// Index of the next slot.
    next: usize,
}

impl Staging {
    /// Allocates slots for batches shaped like `like`, contiguous, with first dimension N; on the GPU, tensors are on
    /// `device`.
    pub fn new(context: Context, device: Device, like: &[&Tensor; 2]) -> Result<Staging> {
        context.bind()?;
        let torch_stream = Stream::legacy(context);
        let slot = || -> Result<Slot> {
            let pinned = |like: &Tensor| -> Result<Tensor> {
                // Not `pin_memory`, which warns about a deprecated argument that tch always passes.
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
            // libtorch may have allocated memory that its stream still uses.
            slot.read.record(&torch_stream)?;
            Ok(slot)
        };
        Ok(Staging {
            context,
            copy_stream: Stream::new(context)?,
            slots: [slot()?, slot()?],
            torch_stream,
            next: 0,
        })
    }

    /// Returns whether batches like `parts` fit.
    fn fits(&self, parts: &[&Tensor; 2]) -> bool {
        let large_enough = |room: &Tensor, part: &Tensor| {
            room.size()[0] >= part.size()[0] && room.size()[1..] == part.size()[1..]
        };
        self.slots[0].gpu.iter().zip(parts).all(|(room, part)| large_enough(room, part))
    }

    /// Copies `parts` to the GPU and passes them to `read`, which only reads them, in work on libtorch's stream.
    pub fn transfer<T>(
        &mut self,
        parts: &[&Tensor; 2],
        read: impl FnOnce(&Tensor, &Tensor) -> T,
    ) -> Result<T> {
        self.context.bind()?;
        let slot = &self.slots[self.next];
        self.next = 1 - self.next;
        if !slot.arrived.is_done()? {
            slot.arrived.synchronize()?;
        }
        self.copy_stream.wait(&slot.read)?;
        let copied = self.start_copies(slot, parts);
        // Even after an error: a copy may be in progress.
        slot.arrived.record(&self.copy_stream)?;
        let arrived = copied?;
        self.torch_stream.wait(&slot.arrived)?;
        let result = read(&arrived[0], &arrived[1]);
        slot.read.record(&self.torch_stream)?;
        Ok(result)
    }

    /// Starts copying `parts` to the GPU through `slot` and returns the destinations. The caller then records
    /// `arrived`.
    fn start_copies(&self, slot: &Slot, parts: &[&Tensor; 2]) -> Result<Vec<Tensor>> {
        let buffers = parts.iter().zip(&slot.pinned).zip(&slot.gpu);
        buffers
            .map(|((part, pinned), gpu)| {
                let rows = part.size()[0];
                let (mut pinned, gpu) = (pinned.narrow(0, 0, rows), gpu.narrow(0, 0, rows));
                pinned.f_copy_(part)?;
                let bytes = part.numel() * part.kind().elt_size_in_bytes();
                // SAFETY: both are contiguous (the first rows of contiguous tensors) and have `bytes` bytes. The pinned
                // buffer is next written or freed after `arrived`. The destination is neither read nor written until
                // then: libtorch's stream waits for it, and this stream has waited for libtorch's reads.
                unsafe { self.copy_stream.copy_to_gpu(gpu.data_ptr(), pinned.data_ptr(), bytes)? };
                Ok(gpu)
            })
            .collect()
    }
}

impl Drop for Staging {
    /// Waits for the copies, so that no memory in use is freed.
    fn drop(&mut self) {
        for slot in &self.slots {
            let _ = slot.arrived.synchronize();
        }
    }
}
