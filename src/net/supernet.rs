//! Supernet: stem, mixed cells, head, and its forward pass (the backward pass is in `tape`).
//!
//! Shapes: N batch, H W input size, K classes.

use super::cell::Cell;
use super::mixed_op::Place;
use super::mixing::{DeviceMasks, Mixing};
use super::ops::{AffineNorm, Mode, Pass, conv};
use super::params::{Init, Named, Params, Specs, WeightId};
pub use super::placement::Placement;
use super::tape::{Tape, ThetaTape};
use crate::error::Result;
use crate::space::{Mask, NUM_NODES, SearchSpace};
use std::ops::Range;
use tch::Tensor;

/// Channels of the stem per channel of the first cell.
const STEM_MULTIPLIER: i64 = 3;

/// What a supernet is, apart from its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The space.
    pub space: SearchSpace,
    /// Channels of the first cells, C.
    pub init_channels: i64,
    /// Number of cells.
    pub layers: usize,
    /// Number of classes.
    pub num_classes: i64,
    /// Partial-channel divisor.
    pub k: i64,
    /// Kept operations, one mask per eta table.
    pub masks: Vec<Mask>,
}

impl Shape {
    /// Whether cell `index` halves the resolution.
    pub fn is_reduction(&self, index: usize) -> bool {
        index == self.layers / 3 || index == 2 * self.layers / 3
    }

    /// Channels C of cell `index`.
    pub fn channels(&self, index: usize) -> i64 {
        (0..=index).filter(|&earlier| self.is_reduction(earlier)).fold(self.init_channels, |c, _| 2 * c)
    }
}

/// What a part hands on: the outputs of the last two parts; behind the head the second one is the logits.
pub(super) type States = [Tensor; 2];

struct ConvNorm {
    weight: WeightId,
    norm: AffineNorm,
    stride: i64,
}

impl ConvNorm {
    /// A 3x3 convolution at `name.at` and the batch norm behind it.
    fn new(specs: &mut Specs, name: &str, at: usize, c_in: i64, c_out: i64, stride: i64) -> ConvNorm {
        let piece = vec![(format!("{name}.{at}.weight"), 0..c_out)];
        ConvNorm {
            weight: specs.weight(&[c_out, c_in, 3, 3], Init::FanIn(9 * c_in), piece),
            norm: AffineNorm::new(specs, &format!("{name}.{}", at + 1), c_out),
            stride,
        }
    }

    fn forward(&self, pass: &Pass, x: &Tensor) -> Tensor {
        let y = conv(x, pass.params.weight(self.weight), self.stride, 1, 1, 1);
        pass.affine_batch_norm(&y, &self.norm)
    }
}

enum Stem {
    Cifar(ConvNorm),
    Imagenet([ConvNorm; 3]),
}

impl Stem {
    fn new(specs: &mut Specs, space: SearchSpace, c: i64) -> Stem {
        match space {
            SearchSpace::DartsCifar => Stem::Cifar(ConvNorm::new(specs, "stem", 0, 3, c, 1)),
            SearchSpace::DartsImagenet => Stem::Imagenet([
                ConvNorm::new(specs, "stem0", 0, 3, c / 2, 2),
                ConvNorm::new(specs, "stem0", 3, c / 2, c, 2),
                ConvNorm::new(specs, "stem1", 1, c, c, 2),
            ]),
        }
    }

    /// Images to the two inputs of the first cell.
    fn forward(&self, pass: &Pass, x: &Tensor) -> States {
        match self {
            Stem::Cifar(conv) => {
                let s = conv.forward(pass, x);
                [s.shallow_clone(), s]
            }
            Stem::Imagenet([first, second, third]) => {
                let s0 = second.forward(pass, &first.forward(pass, x).relu_());
                let s1 = third.forward(pass, &s0.relu());
                [s0, s1]
            }
        }
    }
}

/// The network of the search, with its tensors on one rank.
pub struct Supernet {
    shape: Shape,
    placement: Placement,
    stem: Stem,
    cells: Vec<Cell>,
    classifier: (WeightId, WeightId),
    masks: DeviceMasks,
    /// Its tensors.
    pub params: Params,
}

impl Supernet {
    /// Builds the network with all weights zero: `params.initialise` or `import` follows.
    pub fn new(shape: Shape, placement: Placement) -> Supernet {
        let mut specs = Specs::default();
        let stem_channels = STEM_MULTIPLIER * shape.init_channels;
        let stem = Stem::new(&mut specs, shape.space, stem_channels);
        specs.end_part();
        let (mut c_prev_prev, mut c_prev) = (stem_channels, stem_channels);
        // The ImageNet stem halves the resolution between its two outputs.
        let mut reduction_prev = shape.space == SearchSpace::DartsImagenet;
        let mut cells = Vec::with_capacity(shape.layers);
        for index in 0..shape.layers {
            let reduction = shape.is_reduction(index);
            let table = usize::from(reduction);
            let place = Place {
                space: shape.space,
                table,
                mask: &shape.masks[table],
                cell: format!("cells.{index}"),
                channels: shape.channels(index),
                k: shape.k,
                reduction,
            };
            cells.push(Cell::new(&mut specs, &place, c_prev_prev, c_prev, reduction_prev));
            specs.end_part();
            reduction_prev = reduction;
            (c_prev_prev, c_prev) = (c_prev, NUM_NODES as i64 * place.channels);
        }
        let classes = shape.num_classes;
        let rows = |name: &str| vec![(format!("classifier.{name}"), 0..classes)];
        let classifier = (
            specs.weight(&[classes, c_prev], Init::FanIn(c_prev), rows("weight")),
            specs.weight(&[classes], Init::FanIn(c_prev), rows("bias")),
        );
        specs.end_part();
        let masks = DeviceMasks::new(&shape.masks, placement.precision.weights(), placement.device);
        let params = Params::new(specs, &placement);
        Supernet { shape, placement, stem, cells, classifier, masks, params }
    }

    /// What it is.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// How and where it computes.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The masks on the device, for whoever draws theta.
    pub fn masks(&self) -> &DeviceMasks {
        &self.masks
    }

    /// Loads published weights and running statistics (every replica gets the same).
    pub fn load(&mut self, named: &Named) -> Result<()> {
        self.params.import(named, |bucket| &bucket.weights)?;
        for replica in 0..self.params.num_replicas() {
            self.params.import_running(replica, named)?;
        }
        Ok(())
    }

    /// Number of parts: stem, cells, head.
    pub(super) fn num_parts(&self) -> usize {
        self.cells.len() + 2
    }

    /// Logits [N, K] of images [N, 3, H, W], one graph.
    pub fn logits(&self, images: &Tensor, theta: &[Tensor], mode: Mode, replica: usize) -> Tensor {
        let mixing = Mixing::new(theta, &self.masks);
        let pass = Pass::new(&self.params, &mixing, mode, replica);
        let [_, logits] = self.run(&pass, 0..self.num_parts(), &self.laid_out(images), None);
        logits
    }

    /// A training pass whose graph is cut between buckets, so that the backward pass yields one bucket's gradients at
    /// a time. theta is a constant here.
    pub fn forward(&self, images: &Tensor, theta: &[Tensor], replica: usize) -> Tape<'_> {
        let theta: Vec<Tensor> = theta.iter().map(Tensor::detach).collect();
        let mixing = Mixing::new(&theta, &self.masks);
        let segments = self.params.segments().iter().cloned();
        Tape::record(self, self.laid_out(images), mixing, replica, segments)
    }

    /// A training pass for the gradients of `theta` (leaves that require one), not of the weights.
    pub fn forward_theta<'a>(
        &'a self,
        images: &Tensor,
        theta: &'a [Tensor],
        replica: usize,
    ) -> ThetaTape<'a> {
        if !self.placement.checkpoint_cells {
            return ThetaTape::whole(theta, self.logits(images, theta, Mode::Train, replica));
        }
        // Cell by cell: so the gradients of what cells share are summed in the order of the whole graph.
        let cells = (0..self.num_parts()).map(|part| part..part + 1);
        let mixing = Mixing::new(theta, &self.masks);
        ThetaTape::cells(theta, Tape::record(self, self.laid_out(images), mixing, replica, cells))
    }

    /// Runs consecutive parts: `inputs` (none for the stem) to what they hand on.
    pub(super) fn run(
        &self,
        pass: &Pass,
        parts: Range<usize>,
        images: &Tensor,
        inputs: Option<&States>,
    ) -> States {
        let mut states = inputs.map(|states| states.each_ref().map(Tensor::shallow_clone));
        for part in parts {
            states = Some(match states {
                None => self.stem.forward(pass, images),
                Some([s0, s1]) => {
                    let out = match self.cells.get(part - 1) {
                        Some(cell) => cell.forward(pass, &s0, &s1),
                        None => self.head(pass, &s1),
                    };
                    [s1, out]
                }
            });
        }
        states.expect("at least one part")
    }

    fn head(&self, pass: &Pass, s1: &Tensor) -> Tensor {
        let (weight, bias) = (pass.params.weight(self.classifier.0), pass.params.weight(self.classifier.1));
        s1.mean_dim([2i64, 3].as_slice(), false, weight.kind()).linear(weight, Some(bias))
    }

    fn laid_out(&self, images: &Tensor) -> Tensor {
        let images = images.to_kind(self.placement.precision.activations());
        if self.placement.channels_last {
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
