//! SGD for the weights, Adam for eta, and gradient clipping, on flat buffers; no scalar is read back from the device.

use crate::config::WeightsSection;
use crate::net::bucket::Bucket;
use tch::Tensor;

/// Added to a norm before dividing by it (as `torch.nn.utils.clip_grad_norm_`).
const CLIP_EPS: f64 = 1e-6;
/// Added to the denominator of Adam.
const ADAM_EPS: f64 = 1e-8;

/// Returns the factor, at most 1, that reduces the total norm of `grads` to `max_norm`, as a scalar on their device.
/// `max_norm` = 0: no clipping.
pub fn clip_coefficient<'a>(grads: impl Iterator<Item = &'a Tensor>, max_norm: f64) -> Tensor {
    let norms: Vec<Tensor> = grads.map(Tensor::norm).collect();
    let norm = Tensor::stack(&norms, 0).norm();
    if max_norm == 0.0 {
        return norm.ones_like();
    }
    ((norm + CLIP_EPS).reciprocal() * max_norm).clamp_max(1.0)
}

/// SGD with momentum and weight decay, as `torch.optim.SGD`, with or without Nesterov; the momentum buffers are in the buckets.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Momentum factor.
    pub momentum: f64,
    /// Whether a step looks ahead along the momentum (Nesterov), as in PyTorch.
    pub nesterov: bool,
    /// Weight decay, added to the gradient (L2).
    pub weight_decay: f64,
}

impl Sgd {
    /// Returns the optimiser that `weights` describes.
    pub fn of(weights: &WeightsSection) -> Sgd {
        Sgd { momentum: weights.momentum, nesterov: weights.nesterov, weight_decay: weights.weight_decay }
    }

    /// Takes a step with the gradients times `coefficient` (see [`clip_coefficient`]) and clears the gradients. Local:
    /// identical on all ranks, because the gradients are.
    pub fn step(&self, buckets: &mut [Bucket], coefficient: &Tensor, lr: f64) {
        tch::no_grad(|| {
            for bucket in buckets {
                let grads = (&bucket.grads * coefficient).to_kind(bucket.weights.kind());
                let grads = grads + &bucket.weights * self.weight_decay;
                let _ = bucket.momentum.g_mul_scalar_(self.momentum).g_add_(&grads);
                let direction = match self.nesterov {
                    true => grads + &bucket.momentum * self.momentum,
                    false => bucket.momentum.shallow_clone(),
                };
                let _ = bucket.weights.g_sub_(&(direction * lr));
                bucket.clear();
            }
        });
    }
}

/// Adam with L2 weight decay, as `torch.optim.Adam`, for one tensor.
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the moments.
    pub betas: [f64; 2],
    /// Weight decay, added to the gradient (L2).
    pub weight_decay: f64,
    /// Steps done.
    pub steps: u64,
    /// First moment: running mean of gradients.
    pub mean: Tensor,
    /// Second moment: running mean of squared gradients.
    pub square: Tensor,
}

impl Adam {
    /// Creates the optimiser with zero moments of the shape of `value`.
    pub fn new(value: &Tensor, lr: f64, betas: [f64; 2], weight_decay: f64) -> Adam {
        Adam { lr, betas, weight_decay, steps: 0, mean: value.zeros_like(), square: value.zeros_like() }
    }

    /// Updates `value` in place.
    pub fn step(&mut self, value: &mut Tensor, grad: &Tensor) {
        self.steps += 1;
        let [beta1, beta2] = self.betas;
        let correction = |beta: f64| 1.0 - beta.powi(self.steps as i32);
        let grad = grad + &*value * self.weight_decay;
        let _ = self.mean.g_mul_scalar_(beta1).g_add_(&(&grad * (1.0 - beta1)));
        let _ = self.square.g_mul_scalar_(beta2).g_add_(&(&grad * &grad * (1.0 - beta2)));
        let denominator = self.square.sqrt() / correction(beta2).sqrt() + ADAM_EPS;
        let _ = value.g_sub_(&(&self.mean / denominator * (self.lr / correction(beta1))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn sgd_matches_the_textbook() {
        for nesterov in [false, true] {
            compare_sgd(nesterov);
        }
    }

    fn compare_sgd(nesterov: bool) {
        let bucket = Bucket::new(&[vec![2]], Kind::Double, Device::Cpu);
        bucket.view(&bucket.weights, 0).copy_(&Tensor::from_slice(&[1.0, -2.0]));
        let (mut w, mut v) = ([1.0, -2.0], [0.0, 0.0]);
        let sgd = Sgd { momentum: 0.9, nesterov, weight_decay: 0.01 };
        let mut buckets = [bucket];
        for step in 0..5 {
            let grad = [0.3 * step as f64, -4.0];
            buckets[0].add(&[Tensor::from_slice(&grad)]);
            let coefficient = clip_coefficient(buckets.iter().map(|bucket| &bucket.grads), 2.0);
            sgd.step(&mut buckets, &coefficient, 0.1);
            let norm = (grad[0] * grad[0] + grad[1] * grad[1]).sqrt();
            let clip = (2.0 / (norm + 1e-6)).min(1.0);
            for i in 0..2 {
                let g = grad[i] * clip + 0.01 * w[i];
                v[i] = 0.9 * v[i] + g;
                w[i] -= 0.1 * if nesterov { g + 0.9 * v[i] } else { v[i] };
                assert!((buckets[0].weights.double_value(&[i as i64]) - w[i]).abs() < 1e-14);
            }
        }
    }

    #[test]
    fn adam_matches_the_textbook() {
        let mut value = Tensor::from_slice(&[0.5, -1.5]);
        let mut adam = Adam::new(&value, 6e-3, [0.5, 0.999], 1e-3);
        let (mut p, mut m, mut s) = ([0.5, -1.5], [0.0; 2], [0.0; 2]);
        for step in 1..=4 {
            let grad = [0.1 * step as f64, -0.02];
            adam.step(&mut value, &Tensor::from_slice(&grad));
            for i in 0..2 {
                let g = grad[i] + 1e-3 * p[i];
                m[i] = 0.5 * m[i] + 0.5 * g;
                s[i] = 0.999 * s[i] + 0.001 * g * g;
                let (mh, sh): (f64, f64) =
                    (m[i] / (1.0 - 0.5f64.powi(step)), s[i] / (1.0 - 0.999f64.powi(step)));
                p[i] -= 6e-3 * mh / (sh.sqrt() + 1e-8);
                assert!((value.double_value(&[i as i64]) - p[i]).abs() < 1e-14);
            }
        }
    }

    #[test]
    fn small_gradients_are_not_clipped() {
        let grads = [Tensor::from_slice(&[0.3]), Tensor::from_slice(&[0.4])];
        assert_eq!(clip_coefficient(grads.iter(), 5.0).double_value(&[]), 1.0);
        assert_eq!(clip_coefficient(grads.iter(), 0.0).double_value(&[]), 1.0);
        assert!((clip_coefficient(grads.iter(), 0.25).double_value(&[]) - 0.5).abs() < 1e-5);
    }
}
