//! Bucket: flat buffers of one segment of the network: weights, gradients, momentum.
//!
//! The unit of all-reduce and optimiser steps. The tensors of the network are views of the flat weights, so the network
//! sees in-place updates without a copy.
//!
//! On CPUs, gradients are summed and reduced in float64, so that the split of a sum over ranks and the order of
//! summation in MPI do not affect float32 weights. (Rounding differences are not harmless: they flip single ReLUs, and
//! after ten steps the losses of two runs differ in the second digit.)

use std::cell::Cell;
use tch::{Device, Kind, Tensor};

/// Alignment of parameters in elements: 128 bytes or more. Vectorised kernels of cuDNN fail ("misaligned address") or
/// return different values if weights are unaligned.
const ALIGNMENT: i64 = 64;

/// Returns the kind in which gradients of weights of `kind` are summed.
pub fn sum_kind(kind: Kind, device: Device) -> Kind {
    if device == Device::Cpu { Kind::Double } else { kind }
}

/// Flat buffers of equal length: every parameter begins at a multiple of `ALIGNMENT`, the gaps are zero.
pub struct Bucket {
    /// Weights, `[length]`.
    pub weights: Tensor,
    /// Gradient, `[length]`, in the kind of sums: summed over the replicas of this rank, then averaged over the ranks.
    pub grads: Tensor,
    /// SGD momentum, `[length]`.
    pub momentum: Tensor,
    /// Offset and shape of each parameter.
    places: Vec<(i64, Vec<i64>)>,
    /// Whether `grads` contains gradients of this step.
    filled: Cell<bool>,
}

fn num_elements(shape: &[i64]) -> i64 {
    shape.iter().product()
}

/// Returns the number of padding elements after a parameter of this shape.
fn gap_after(shape: &[i64]) -> i64 {
    (ALIGNMENT - num_elements(shape) % ALIGNMENT) % ALIGNMENT
}

impl Bucket {
    /// Creates zero buffers for parameters of these shapes, in order.
    pub fn new(shapes: &[Vec<i64>], kind: Kind, device: Device) -> Bucket {
        let mut length = 0;
        let places = shapes
            .iter()
            .map(|shape| {
                let place = (length, shape.clone());
                length += num_elements(shape) + gap_after(shape);
                place
            })
            .collect();
        let zeros = |kind| Tensor::zeros([length], (kind, device));
        Bucket {
            weights: zeros(kind),
            grads: zeros(sum_kind(kind, device)),
            momentum: zeros(kind),
            places,
            filled: Cell::new(false),
        }
    }

    /// Number of parameters (tensors).
    pub fn num_params(&self) -> usize {
        self.places.len()
    }

    /// Number of parameters (elements).
    pub fn num_elements(&self) -> i64 {
        self.places.iter().map(|(_, shape)| num_elements(shape)).sum()
    }

    /// Returns the view of parameter `index` in a flat buffer, in its shape.
    pub fn view(&self, buffer: &Tensor, index: usize) -> Tensor {
        let (offset, shape) = &self.places[index];
        buffer.narrow(0, *offset, num_elements(shape)).view(shape.as_slice())
    }

    /// Returns an autograd leaf of parameter `index` that shares the memory of the flat weights.
    pub fn leaf(&self, index: usize) -> Tensor {
        self.view(&self.weights, index).detach().set_requires_grad(true)
    }

    /// Adds the gradients of one replica (one tensor per parameter, in order) to those of this step.
    pub fn add(&self, grads: &[Tensor]) {
        assert_eq!(grads.len(), self.places.len(), "one gradient per parameter");
        let mut sum = self.grads.shallow_clone();
        tch::no_grad(|| {
            // In the kind of the gradients: tensors of the same kind are concatenated by a single kernel.
            let zeros = Tensor::zeros([ALIGNMENT], (grads[0].kind(), self.grads.device()));
            let mut flat = Vec::with_capacity(2 * grads.len());
            for (grad, (_, shape)) in grads.iter().zip(&self.places) {
                flat.push(grad.reshape([-1]));
                let gap = gap_after(shape);
                if gap > 0 {
                    flat.push(zeros.narrow(0, 0, gap));
                }
            }
            let flat = Tensor::cat(&flat, 0);
            if self.filled.replace(true) {
                let _ = sum.g_add_(&flat);
            } else {
                sum.copy_(&flat);
            }
        });
    }

    /// Discards the gradients: the next `add` starts a new sum.
    pub fn clear(&self) {
        self.filled.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_begin_at_aligned_addresses() {
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
            let shapes = [vec![3, 1, 5, 5], vec![1], vec![64], vec![7, 3, 1, 1], vec![2]];
            let bucket = Bucket::new(&shapes, kind, Device::Cpu);
            assert_eq!(bucket.num_elements(), 75 + 1 + 64 + 21 + 2);
            let first = bucket.weights.data_ptr() as usize;
            for index in 0..shapes.len() {
                let place = bucket.leaf(index).data_ptr() as usize - first;
                assert_eq!(place % 128, 0, "{kind:?} parameter {index}");
            }
        }
    }

    #[test]
    fn leaves_see_updates_and_gradients_sum() {
        let mut bucket = Bucket::new(&[vec![2, 2], vec![3]], Kind::Double, Device::Cpu);
        let leaf = bucket.leaf(1);
        let _ = tch::no_grad(|| bucket.weights.g_add_scalar_(2.0));
        assert_eq!(leaf.double_value(&[0]), 2.0);
        assert!(leaf.requires_grad() && leaf.is_leaf());
        let grads =
            || vec![Tensor::ones([2, 2], (Kind::Double, Device::Cpu)), Tensor::from_slice(&[1.0, 2.0, 3.0])];
        bucket.add(&grads());
        bucket.add(&grads());
        let sums = |index| Vec::<f64>::try_from(&bucket.view(&bucket.grads, index).flatten(0, -1)).unwrap();
        assert_eq!((sums(0), sums(1)), (vec![2.0; 4], vec![2.0, 4.0, 6.0]));
        assert_eq!(bucket.grads.sum(Kind::Double).double_value(&[]), 20.0, "zeros in the gaps");
        bucket.clear();
        bucket.add(&grads());
        assert_eq!(bucket.view(&bucket.grads, 1).double_value(&[2]), 3.0);
        // With activations in bf16.
        let short = Bucket::new(&[vec![2], vec![1]], Kind::Float, Device::Cpu);
        assert_eq!((short.weights.kind(), short.grads.kind()), (Kind::Float, Kind::Double));
        let grads = [1.0, -3.0].map(|value| Tensor::full([2], value, (Kind::BFloat16, Device::Cpu)));
        short.add(&[grads[0].shallow_clone(), grads[1].narrow(0, 0, 1)]);
        assert_eq!(short.view(&short.grads, 1).double_value(&[0]), -3.0);
        assert_eq!(short.grads.sum(Kind::Double).double_value(&[]), -1.0);
    }
}
