//! Stem and classifier.
//!
//! Shapes: N batch, C channels, H W input size, K classes.

use super::ops::{AffineNorm, Pass, conv};
use super::params::{Init, Specs, WeightId};
use crate::space::SearchSpace;
use tch::Tensor;

/// 3x3 convolution and batch norm: the stem of NAS-Bench-201, and a part of the other stems.
pub struct ConvNorm {
    weight: WeightId,
    norm: AffineNorm,
    stride: i64,
}

impl ConvNorm {
    /// Declares the convolution at `name.at` and the batch norm after it.
    pub fn new(specs: &mut Specs, name: &str, at: usize, c_in: i64, c_out: i64, stride: i64) -> ConvNorm {
        let piece = vec![(format!("{name}.{at}.weight"), 0..c_out)];
        ConvNorm {
            weight: specs.weight(&[c_out, c_in, 3, 3], Init::FanIn(9 * c_in), piece),
            norm: AffineNorm::new(specs, &format!("{name}.{}", at + 1), c_out),
            stride,
        }
    }

    /// Maps [N, c_in, H, W] to [N, c_out, H', W'].
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Tensor {
        let y = conv(x, &pass.weight(self.weight), self.stride, 1, 1, 1);
        pass.affine_batch_norm(&y, &self.norm)
    }
}

/// Stem of a DARTS network.
pub struct Stem(StemKind);

enum StemKind {
    Cifar(ConvNorm),
    Imagenet([ConvNorm; 3]),
}

impl Stem {
    /// Declares the stem of the DARTS space `space` with `c` output channels, for images of `px` (see
    /// `Specs::count_for`; 0 counts nothing).
    pub fn new(specs: &mut Specs, space: SearchSpace, c: i64, px: i64) -> Stem {
        let mut conv_norm = |name: &str, at: usize, c_in: i64, c_out: i64, side: i64, stride: i64| {
            specs.count_for(side);
            ConvNorm::new(specs, name, at, c_in, c_out, stride)
        };
        Stem(match space {
            SearchSpace::DartsCifar | SearchSpace::NasBench201 => {
                StemKind::Cifar(conv_norm("stem", 0, 3, c, px, 1))
            }
            SearchSpace::DartsImagenet => StemKind::Imagenet([
                conv_norm("stem0", 0, 3, c / 2, px / 2, 2),
                conv_norm("stem0", 3, c / 2, c, px / 4, 2),
                conv_norm("stem1", 1, c, c, px / 8, 2),
            ]),
        })
    }

    /// Maps images [N, 3, H, W] to the two inputs of the first cell.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> [Tensor; 2] {
        match &self.0 {
            StemKind::Cifar(conv) => {
                let s = conv.forward(pass, x);
                [s.shallow_clone(), s]
            }
            StemKind::Imagenet([first, second, third]) => {
                let s0 = second.forward(pass, &first.forward(pass, x).relu_());
                let s1 = third.forward(pass, &s0.relu());
                [s0, s1]
            }
        }
    }
}

/// Global average pooling and a linear layer.
pub struct Classifier {
    weight: WeightId,
    bias: WeightId,
}

impl Classifier {
    /// Declares the layer `name` from `c` channels to `classes`.
    pub fn new(specs: &mut Specs, name: &str, c: i64, classes: i64) -> Classifier {
        let rows = |suffix: &str| vec![(format!("{name}.{suffix}"), 0..classes)];
        Classifier {
            weight: specs.weight(&[classes, c], Init::FanIn(c), rows("weight")),
            bias: specs.weight(&[classes], Init::FanIn(c), rows("bias")),
        }
    }

    /// Maps [N, C, H, W] to logits [N, K], in the kind of the weights.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Tensor {
        let (weight, bias) = (pass.weight(self.weight), pass.weight(self.bias));
        x.mean_dim([2i64, 3].as_slice(), false, weight.kind()).linear(&weight, Some(&bias))
    }
}
