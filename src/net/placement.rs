//! Placement: how and where a network computes, whatever network it is.

use crate::config::{Precision, Settings};
use tch::{Device, Tensor};

/// How and where a network computes.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Kinds of weights and activations.
    pub precision: Precision,
    /// Where.
    pub device: Device,
    /// Channels last in memory: several times faster on CPUs (pooling 10 times, depthwise convolutions 3 times).
    pub channels_last: bool,
    /// Keep only the inputs of cells for the backward pass, which computes the rest again: the same numbers, less memory,
    /// one more forward pass.
    pub checkpoint_cells: bool,
    /// Replicas that this rank computes one after another.
    pub replicas: usize,
    /// Bytes of weights after which a bucket is closed.
    pub bucket_bytes: usize,
}

impl Placement {
    /// As `settings` say, on `device`, with running statistics for `replicas`.
    pub fn of(settings: &impl Settings, device: Device, replicas: usize) -> Placement {
        Placement {
            precision: settings.precision(),
            device,
            channels_last: settings.channels_last(),
            checkpoint_cells: settings.checkpoint_cells(),
            replicas,
            bucket_bytes: (settings.run().bucket_mib * 1024.0 * 1024.0) as usize,
        }
    }

    /// One replica on the CPU, cut after every part.
    pub const fn on_cpu(precision: Precision) -> Placement {
        Placement {
            precision,
            device: Device::Cpu,
            channels_last: true,
            checkpoint_cells: false,
            replicas: 1,
            bucket_bytes: 1,
        }
    }

    /// Images [N, 3, H, W] in the kind and the layout that the network computes with.
    pub fn laid_out(&self, images: &Tensor) -> Tensor {
        let images = images.to_kind(self.precision.activations());
        if self.channels_last {
            // tch has no memory-format argument.
            images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
        } else {
            images.contiguous()
        }
    }
}
