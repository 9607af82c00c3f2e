//! Bucket: the flat buffers of one segment of the network: weights, gradients, momentum.
//!
//! What one all-reduce carries and one optimiser step walks over. The tensors the network computes with are views of
//! the flat weights, so that an update in place is seen by the network without a copy.
//!
//! On CPUs gradients are summed and reduced in float64: how a sum is split over ranks then does not show in float32
//! weights, whatever order MPI adds in. (A difference of one rounding is not harmless: it flips a ReLU here and there, and
//! after ten steps the losses of two such runs differ in the second digit.)

use std::cell::Cell;
use tch::{Device, Kind, Tensor};

/// Elements at whose multiples parameters begin: 128 bytes or more. Kernels of cuDNN read several elements at a time;
/// with weights at odd addresses they fail ("misaligned address") or compute other numbers.
const ALIGNMENT: i64 = 64;

/// The kind in which gradients of weights of `kind` are summed.
pub fn sum_kind(kind: Kind, device: Device) -> Kind {
    if device == Device::Cpu { Kind::Double } else { kind }
}

/// Flat buffers, all of one length: every parameter begins at a multiple of `ALIGNMENT`, the gaps are zero.
pub struct Bucket {
    /// Weights, `[length]`.
    pub weights: Tensor,
    /// Gradient, summed over the replicas of this rank, then averaged over the ranks; `[length]`, of the kind in which
    /// sums are made.
    pub grads: Tensor,
    /// SGD momentum, `[length]`.
    pub momentum: Tensor,
    /// Where each parameter lies: offset and shape.
    places: Vec<(i64, Vec<i64>)>,
    /// Whether `grads` holds something of this step.
    filled: Cell<bool>,
}

fn num_elements(shape: &[i64]) -> i64 {
    shape.iter().product()
}

/// Elements between a parameter of this shape and the next.
fn gap_after(shape: &[i64]) -> i64 {
    (ALIGNMENT - num_elements(shape) % ALIGNMENT) % ALIGNMENT
}

impl Bucket {
    /// Zero buffers for parameters of these shapes, one after another.
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

    /// Number of learned scalars.
    pub fn num_elements(&self) -> i64 {
        self.places.iter().map(|(_, shape)| num_elements(shape)).sum()
    }

    /// The part of a flat buffer that belongs to parameter `index`, in its shape; shares memory.
    pub fn view(&self, buffer: &Tensor, index: usize) -> Tensor {
        let (offset, shape) = &self.places[index];
        buffer.narrow(0, *offset, num_elements(shape)).view(shape.as_slice())
    }

    /// A leaf that autograd differentiates for: parameter `index`, in the memory of the flat weights.
    pub fn leaf(&self, index: usize) -> Tensor {
        self.view(&self.weights, index).detach().set_requires_grad(true)
    }

    /// Adds one replica's gradients (one tensor per parameter, in order) to those of this step.
    pub fn add(&self, grads: &[Tensor]) {
        assert_eq!(grads.len(), self.places.len(), "one gradient per parameter");
        let mut sum = self.grads.shallow_clone();
        tch::no_grad(|| {
            // Of the gradients' kind: tensors of one kind are put together by one kernel, of several by one each.
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

    /// Forgets the gradients: the next `add` begins a new sum.
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
        // Of activations in bf16.
        let short = Bucket::new(&[vec![2], vec![1]], Kind::Float, Device::Cpu);
        assert_eq!((short.weights.kind(), short.grads.kind()), (Kind::Float, Kind::Double));
        let grads = [1.0, -3.0].map(|value| Tensor::full([2], value, (Kind::BFloat16, Device::Cpu)));
        short.add(&[grads[0].shallow_clone(), grads[1].narrow(0, 0, 1)]);
        assert_eq!(short.view(&short.grads, 1).double_value(&[0]), -3.0);
        assert_eq!(short.grads.sum(Kind::Double).double_value(&[]), -1.0);
    }
}
