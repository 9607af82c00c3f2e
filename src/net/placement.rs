//! Placement of a network: precision, device, memory format, recomputation, buckets.

use crate::config::{Precision, Settings};
use tch::{Device, Tensor};

/// Placement of a network.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Numerical precision.
    pub precision: Precision,
    /// Device.
    pub device: Device,
    /// Channels-last memory format: several times faster on CPUs (pooling 10 times, depthwise convolutions 3 times).
    pub channels_last: bool,
    /// Keep only the inputs of cells for the backward pass and recompute the rest: the same values and less memory, for
    /// one more forward pass.
    pub checkpoint_cells: bool,
    /// Number of replicas that this rank computes one after another.
    pub replicas: usize,
    /// Size of the weights at which a bucket is complete, bytes.
    pub bucket_bytes: usize,
}

impl Placement {
    /// Placement of `settings` on `device`, with running statistics for `replicas`.
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

    /// Placement of one replica on the CPU, with one bucket per part.
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

    /// Converts images [N, 3, H, W] to the kind and memory format of the network.
    pub fn network_input(&self, images: &Tensor) -> Tensor {
        let images = images.to_kind(self.precision.activations());
        if self.channels_last {
            // tch has no memory-format argument.
            images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
        } else {
            images.contiguous()
        }
    }
}
