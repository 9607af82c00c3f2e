//! SGD of the weights, Adam of eta, and the clipping of their gradients; all on flat buffers, no scalar is read back.

use crate::net::bucket::Bucket;
use tch::Tensor;

/// What is added to a norm before dividing by it (`torch.nn.utils.clip_grad_norm_`).
const CLIP_EPS: f64 = 1e-6;
/// What is added to the denominator of Adam.
const ADAM_EPS: f64 = 1e-8;

/// The factor that brings the common norm of `grads` down to `max_norm`, at most 1: a scalar on their device. A `max_norm`
/// of 0 does not clip.
pub fn clip_coefficient<'a>(grads: impl Iterator<Item = &'a Tensor>, max_norm: f64) -> Tensor {
    let norms: Vec<Tensor> = grads.map(Tensor::norm).collect();
    let norm = Tensor::stack(&norms, 0).norm();
    if max_norm == 0.0 {
        return norm.ones_like();
    }
    ((norm + CLIP_EPS).reciprocal() * max_norm).clamp_max(1.0)
}

/// Stochastic gradient descent with momentum and weight decay, as `torch.optim.SGD`; the momentum is the buckets'.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Part of the momentum that stays at each step.
    pub momentum: f64,
    /// Added to the gradient, times the weight.
    pub weight_decay: f64,
}

impl Sgd {
    /// One step with gradients times `coefficient` (see [`clip_coefficient`]); the next ones may be added then. Local: every
    /// rank has the same gradients and does the same.
    pub fn step(&self, buckets: &mut [Bucket], coefficient: &Tensor, lr: f64) {
        tch::no_grad(|| {
            for bucket in buckets {
                let grads = (&bucket.grads * coefficient).to_kind(bucket.weights.kind());
                let grads = grads + &bucket.weights * self.weight_decay;
                let _ = bucket.momentum.g_mul_scalar_(self.momentum).g_add_(&grads);
                let _ = bucket.weights.g_sub_(&(&bucket.momentum * lr));
                bucket.clear();
            }
        });
    }
}

/// Adam with weight decay added to the gradient, as `torch.optim.Adam`, for one tensor.
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the two means.
    pub betas: [f64; 2],
    /// Added to the gradient, times the value.
    pub weight_decay: f64,
    /// Steps done.
    pub steps: u64,
    /// Mean of gradients.
    pub mean: Tensor,
    /// Mean of squared gradients.
    pub square: Tensor,
}

impl Adam {
    /// No steps done; the means have the shape of `value`.
    pub fn new(value: &Tensor, lr: f64, betas: [f64; 2], weight_decay: f64) -> Adam {
        Adam { lr, betas, weight_decay, steps: 0, mean: value.zeros_like(), square: value.zeros_like() }
    }

    /// One step of `value`, in place.
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
    fn sgd_is_the_textbook_one() {
        let bucket = Bucket::new(&[vec![2]], Kind::Double, Device::Cpu);
        bucket.view(&bucket.weights, 0).copy_(&Tensor::from_slice(&[1.0, -2.0]));
        let (mut w, mut v) = ([1.0, -2.0], [0.0, 0.0]);
        let sgd = Sgd { momentum: 0.9, weight_decay: 0.01 };
        let mut buckets = [bucket];
        for step in 0..5 {
            let grad = [0.3 * step as f64, -4.0];
            buckets[0].add(&[Tensor::from_slice(&grad)]);
            let coefficient = clip_coefficient(buckets.iter().map(|bucket| &bucket.grads), 2.0);
            sgd.step(&mut buckets, &coefficient, 0.1);
            let norm = (grad[0] * grad[0] + grad[1] * grad[1]).sqrt();
            let clip = (2.0 / (norm + 1e-6)).min(1.0);
            for i in 0..2 {
                v[i] = 0.9 * v[i] + grad[i] * clip + 0.01 * w[i];
                w[i] -= 0.1 * v[i];
                assert!((buckets[0].weights.double_value(&[i as i64]) - w[i]).abs() < 1e-14);
            }
        }
    }

    #[test]
    fn adam_is_the_textbook_one() {
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
