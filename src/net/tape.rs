//! Tape: a forward pass cut into segments, one per bucket, so that the backward pass yields one bucket's gradients at a
//! time. What every network is run with.
//!
//! A network is a chain of parts (stem, cells, head). A part turns the states that the part before handed on (the images
//! for the first one) into the states that it hands on; the last part hands on the results.
//!
//! Shapes: N batch, H W input size, K classes.

use super::params::Params;
use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// How and where a network computes.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Float; Double for checks.
    pub kind: Kind,
    /// Where.
    pub device: Device,
    /// Channels last in memory: several times faster on CPUs (pooling 10 times, depthwise convolutions 3 times).
    pub channels_last: bool,
    /// Replicas that this rank computes one after another.
    pub replicas: usize,
    /// Bytes of weights after which a bucket is closed.
    pub bucket_bytes: usize,
}

impl Placement {
    /// Images [N, 3, H, W] in the kind and the layout that the network computes with.
    pub fn laid_out(&self, images: &Tensor) -> Tensor {
        let images = images.to_kind(self.kind);
        if self.channels_last {
            // tch has no memory-format argument.
            images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
        } else {
            images.contiguous()
        }
    }
}

/// Mean cross entropy of `logits` `[N, K]` against `labels` `[N]`, in the kind of the logits.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    // tch's `cross_entropy_for_logits` computes in float32 whatever it is given.
    logits.log_softmax(-1, logits.kind()).nll_loss(labels)
}

struct Segment {
    /// Leaves it begins at, one per state; empty for the first segment.
    inputs: Vec<Tensor>,
    /// The states it hands on.
    outputs: Vec<Tensor>,
}

/// A forward pass, ready to be differentiated segment by segment.
pub struct Tape<'a> {
    params: &'a Params,
    segments: Vec<Segment>,
    results: Vec<Tensor>,
}

impl<'a> Tape<'a> {
    /// Runs the parts of `params`' segments, in order: `part` gets a part's number and what the part before handed on.
    pub fn record(
        params: &'a Params,
        images: Tensor,
        mut part: impl FnMut(usize, Vec<Tensor>) -> Vec<Tensor>,
    ) -> Tape<'a> {
        let mut segments = Vec::new();
        let mut states = vec![images];
        for parts in params.segments() {
            // The cut: a segment begins at leaves that share the values of the segment before.
            let cut = |state: &Tensor| state.detach().set_requires_grad(true);
            let inputs: Vec<Tensor> =
                if parts.start == 0 { Vec::new() } else { states.iter().map(cut).collect() };
            if parts.start > 0 {
                states = shared(&inputs);
            }
            for number in parts.clone() {
                states = part(number, states);
            }
            segments.push(Segment { inputs, outputs: shared(&states) });
        }
        Tape { params, segments, results: states }
    }

    /// What the last part handed on.
    pub fn results(&self) -> &[Tensor] {
        &self.results
    }

    /// The first result: logits [N, K].
    pub fn logits(&self) -> &Tensor {
        &self.results[0]
    }

    /// Differentiates `loss` (a scalar made from the results): calls `done` with each segment's number (= its bucket)
    /// and gradients, one per leaf of the bucket, last segment first, as soon as they are there.
    pub fn backward(
        self,
        loss: &Tensor,
        mut done: impl FnMut(usize, Vec<Tensor>) -> Result<()>,
    ) -> Result<()> {
        drop(self.results);
        // Gradients of what the segment hands on; the last one hands on nothing, it ends in the loss.
        let mut upstream: Vec<Tensor> = Vec::new();
        for (number, segment) in self.segments.into_iter().enumerate().rev() {
            // Root and ones: autograd starts from ones, so d(y * g) starts the segment with g.
            let roots = if upstream.is_empty() {
                vec![loss.shallow_clone()]
            } else {
                let handed_on = segment.outputs.iter().zip(&upstream);
                // The head does not use the older state: no gradient comes back for it.
                handed_on.filter(|(_, grad)| grad.defined()).map(|(output, grad)| output * grad).collect()
            };
            let leaves = self.params.leaves(number);
            let wanted: Vec<&Tensor> = leaves.iter().chain(&segment.inputs).collect();
            let mut grads = Tensor::f_run_backward(&roots, &wanted, false, false)?;
            upstream = grads.split_off(leaves.len());
            drop(segment);
            done(number, grads)?;
        }
        Ok(())
    }
}

fn shared(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(Tensor::shallow_clone).collect()
}
