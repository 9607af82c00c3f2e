//! Residual block of NAS-Bench-201, which halves the resolution between two groups of cells.
//!
//! Shapes: N batch, C channels, H W (both even).

use super::ops::{AffineNorm, Pass, conv, pointwise};
use super::params::{Init, Specs, WeightId};
use tch::Tensor;

struct ReluConvNorm3x3 {
    weight: WeightId,
    norm: AffineNorm,
    stride: i64,
}

impl ReluConvNorm3x3 {
    fn new(specs: &mut Specs, name: &str, c_in: i64, c_out: i64, stride: i64) -> ReluConvNorm3x3 {
        let rows = vec![(format!("{name}.op.1.weight"), 0..c_out)];
        ReluConvNorm3x3 {
            weight: specs.weight(&[c_out, c_in, 3, 3], Init::FanIn(9 * c_in), rows),
            norm: AffineNorm::new(specs, &format!("{name}.op.2"), c_out),
            stride,
        }
    }

    fn forward(&self, pass: &Pass, x: &Tensor) -> Tensor {
        pass.affine_batch_norm(&conv(&x.relu(), &pass.weight(self.weight), self.stride, 1, 1, 1), &self.norm)
    }
}

/// Two ReLU-conv3x3-BN, the first of stride 2, with a shortcut of average pooling and a 1x1 convolution.
pub struct Residual {
    conv_a: ReluConvNorm3x3,
    conv_b: ReluConvNorm3x3,
    shortcut: WeightId,
}

impl Residual {
    /// Declares the block with the published name `name` (such as `cells.5`).
    pub fn new(specs: &mut Specs, name: &str, c_in: i64, c_out: i64) -> Residual {
        let rows = vec![(format!("{name}.downsample.1.weight"), 0..c_out)];
        Residual {
            conv_a: ReluConvNorm3x3::new(specs, &format!("{name}.conv_a"), c_in, c_out, 2),
            conv_b: ReluConvNorm3x3::new(specs, &format!("{name}.conv_b"), c_out, c_out, 1),
            shortcut: specs.weight(&[c_out, c_in, 1, 1], Init::FanIn(c_in), rows),
        }
    }

    /// Maps `x` [N, c_in, H, W] to [N, c_out, H/2, W/2].
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Tensor {
        let y = self.conv_b.forward(pass, &self.conv_a.forward(pass, x));
        let pooled = x.avg_pool2d([2, 2], [2, 2], [0, 0], false, false, None::<i64>);
        y + pointwise(&pooled, &pass.weight(self.shortcut), 1)
    }
}
