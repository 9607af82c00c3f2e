//! Supernet: stem, mixed cells (and residual blocks between them), head; its forward pass, and a backward pass cut into
//! segments.
//!
//! Shapes: N batch, H W input size, K classes.

use super::cell::Cell;
use super::mixed_op::Place;
use super::mixing::{DeviceMasks, Mixing};
use super::nb201::Nb201Cell;
use super::ops::{AffineNorm, Mode, Pass, conv};
use super::params::{Init, Named, Params, Specs, WeightId};
use super::residual::Residual;
use crate::error::Result;
use crate::space::{Mask, NUM_NODES, SearchSpace};
use tch::{Device, Kind, Tensor};

/// Channels of a DARTS stem per channel of the first cell.
const STEM_MULTIPLIER: i64 = 3;

/// What a supernet is, apart from its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The space.
    pub space: SearchSpace,
    /// Channels of the first cells, C.
    pub init_channels: i64,
    /// Number of cells; of NAS-Bench-201 the cells of each of the three groups, N.
    pub layers: usize,
    /// Number of classes.
    pub num_classes: i64,
    /// Partial-channel divisor.
    pub k: i64,
    /// Kept operations, one mask per eta table.
    pub masks: Vec<Mask>,
}

impl Shape {
    /// Cells and, of NAS-Bench-201, residual blocks: whatever is called `cells.N`.
    pub fn num_cells(&self) -> usize {
        match self.space {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => self.layers,
            SearchSpace::NasBench201 => 3 * self.layers + 2,
        }
    }

    /// Whether cell `index` halves the resolution; of NAS-Bench-201 that is a residual block.
    pub fn is_reduction(&self, index: usize) -> bool {
        match self.space {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => {
                index == self.layers / 3 || index == 2 * self.layers / 3
            }
            SearchSpace::NasBench201 => index == self.layers || index == 2 * self.layers + 1,
        }
    }

    /// Which eta table cell `index` uses.
    pub fn table(&self, index: usize) -> usize {
        match self.space {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => usize::from(self.is_reduction(index)),
            SearchSpace::NasBench201 => 0,
        }
    }

    /// Channels C of cell `index`.
    pub fn channels(&self, index: usize) -> i64 {
        (0..=index).filter(|&earlier| self.is_reduction(earlier)).fold(self.init_channels, |c, _| 2 * c)
    }
}

/// How and where the network computes.
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
    NasBench201(ConvNorm),
}

impl Stem {
    /// Declares the stem of `space` with `c` channels at its end.
    fn new(specs: &mut Specs, space: SearchSpace, c: i64) -> Stem {
        match space {
            SearchSpace::DartsCifar => Stem::Cifar(ConvNorm::new(specs, "stem", 0, 3, c, 1)),
            SearchSpace::NasBench201 => Stem::NasBench201(ConvNorm::new(specs, "stem", 0, 3, c, 1)),
            SearchSpace::DartsImagenet => Stem::Imagenet([
                ConvNorm::new(specs, "stem0", 0, 3, c / 2, 2),
                ConvNorm::new(specs, "stem0", 3, c / 2, c, 2),
                ConvNorm::new(specs, "stem1", 1, c, c, 2),
            ]),
        }
    }

    /// Images to the inputs of the first cell: two, of NAS-Bench-201 one.
    fn forward(&self, pass: &Pass, x: &Tensor) -> Vec<Tensor> {
        match self {
            Stem::Cifar(conv) => {
                let s = conv.forward(pass, x);
                vec![s.shallow_clone(), s]
            }
            Stem::NasBench201(conv) => vec![conv.forward(pass, x)],
            Stem::Imagenet([first, second, third]) => {
                let s0 = second.forward(pass, &first.forward(pass, x).relu_());
                let s1 = third.forward(pass, &s0.relu());
                vec![s0, s1]
            }
        }
    }
}

/// Global average pooling and the linear classifier; of NAS-Bench-201 behind a batch norm and a ReLU.
struct Head {
    norm: Option<AffineNorm>,
    weight: WeightId,
    bias: WeightId,
}

impl Head {
    fn new(specs: &mut Specs, space: SearchSpace, channels: i64, classes: i64) -> Head {
        let rows = |name: &str| vec![(format!("classifier.{name}"), 0..classes)];
        Head {
            norm: (space == SearchSpace::NasBench201).then(|| AffineNorm::new(specs, "lastact.0", channels)),
            weight: specs.weight(&[classes, channels], Init::FanIn(channels), rows("weight")),
            bias: specs.weight(&[classes], Init::FanIn(channels), rows("bias")),
        }
    }

    fn forward(&self, pass: &Pass, x: &Tensor) -> Tensor {
        let (weight, bias) = (pass.params.weight(self.weight), pass.params.weight(self.bias));
        let activated = self.norm.as_ref().map(|norm| pass.affine_batch_norm(x, norm).relu_());
        let x = activated.as_ref().unwrap_or(x);
        x.mean_dim([2i64, 3].as_slice(), false, None).linear(weight, Some(bias))
    }
}

/// What buckets are made of, in the order of the forward pass.
enum Part {
    Stem(Stem),
    Darts(Cell),
    NasBench201(Nb201Cell),
    Residual(Residual),
    Head(Head),
}

impl Part {
    /// What the parts before hand on (images; then the states that the next cell needs) to what this one does; the head
    /// hands on the logits.
    fn forward(&self, pass: &Pass, states: &[Tensor]) -> Vec<Tensor> {
        let newest = states.last().expect("a part has an input");
        match self {
            Part::Stem(stem) => stem.forward(pass, newest),
            Part::Darts(cell) => vec![newest.shallow_clone(), cell.forward(pass, &states[0], newest)],
            Part::NasBench201(cell) => vec![cell.forward(pass, newest)],
            Part::Residual(block) => vec![block.forward(pass, newest)],
            Part::Head(head) => vec![head.forward(pass, newest)],
        }
    }
}

/// The network of the search, with its tensors on one rank.
pub struct Supernet {
    shape: Shape,
    placement: Placement,
    /// Stem, cells, head.
    parts: Vec<Part>,
    masks: DeviceMasks,
    /// Its tensors.
    pub params: Params,
}

impl Supernet {
    /// Builds the network with all weights zero: `params.initialise` or `import` follows.
    pub fn new(shape: Shape, placement: Placement) -> Supernet {
        let mut specs = Specs::default();
        let parts = match shape.space {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => darts_parts(&mut specs, &shape),
            SearchSpace::NasBench201 => nas_bench_201_parts(&mut specs, &shape),
        };
        let masks = DeviceMasks::new(&shape.masks, placement.kind, placement.device);
        let params =
            Params::new(specs, placement.replicas, placement.bucket_bytes, placement.kind, placement.device);
        Supernet { shape, placement, parts, masks, params }
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

    /// Logits [N, K] of images [N, 3, H, W], one graph: for evaluation, and for gradients of theta alone.
    pub fn logits(&self, images: &Tensor, theta: &[Tensor], mode: Mode, replica: usize) -> Tensor {
        let mixing = Mixing::new(theta, &self.masks);
        let pass = Pass { params: &self.params, mixing: &mixing, mode, replica };
        let states = vec![self.laid_out(images)];
        let mut end = self.parts.iter().fold(states, |states, part| part.forward(&pass, &states));
        end.pop().expect("the head hands on the logits")
    }

    /// A training pass whose graph is cut between buckets, so that the backward pass yields one bucket's gradients at
    /// a time. theta is a constant here.
    pub fn forward(&self, images: &Tensor, theta: &[Tensor], replica: usize) -> Tape<'_> {
        let mixing = Mixing::new(theta, &self.masks);
        let pass = Pass { params: &self.params, mixing: &mixing, mode: Mode::Train, replica };
        let mut segments: Vec<Segment> = Vec::new();
        let mut states = vec![self.laid_out(images)];
        for parts in self.params.segments() {
            let inputs: Vec<Tensor> = match segments.is_empty() {
                true => Vec::new(),
                // The cut: a segment begins at leaves that share the values of the segment before.
                false => states.iter().map(|state| state.detach().set_requires_grad(true)).collect(),
            };
            if !inputs.is_empty() {
                states = inputs.iter().map(Tensor::shallow_clone).collect();
            }
            for part in &self.parts[parts.clone()] {
                states = part.forward(&pass, &states);
            }
            let outputs = states.iter().map(Tensor::shallow_clone).collect();
            segments.push(Segment { inputs, outputs });
        }
        let logits = states.pop().expect("the head hands on the logits");
        Tape { params: &self.params, segments, logits }
    }

    fn laid_out(&self, images: &Tensor) -> Tensor {
        let images = images.to_kind(self.placement.kind);
        if self.placement.channels_last {
            // tch has no memory-format argument.
            images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
        } else {
            images.contiguous()
        }
    }
}

/// Stem, cells with two inputs, head.
fn darts_parts(specs: &mut Specs, shape: &Shape) -> Vec<Part> {
    let stem_channels = STEM_MULTIPLIER * shape.init_channels;
    let mut parts = vec![Part::Stem(Stem::new(specs, shape.space, stem_channels))];
    specs.end_part();
    let (mut c_prev_prev, mut c_prev) = (stem_channels, stem_channels);
    // The ImageNet stem halves the resolution between its two outputs.
    let mut reduction_prev = shape.space == SearchSpace::DartsImagenet;
    for index in 0..shape.num_cells() {
        let reduction = shape.is_reduction(index);
        let table = shape.table(index);
        let place = Place {
            space: shape.space,
            table,
            mask: &shape.masks[table],
            cell: format!("cells.{index}"),
            channels: shape.channels(index),
            k: shape.k,
            reduction,
        };
        parts.push(Part::Darts(Cell::new(specs, &place, c_prev_prev, c_prev, reduction_prev)));
        specs.end_part();
        reduction_prev = reduction;
        (c_prev_prev, c_prev) = (c_prev, NUM_NODES as i64 * place.channels);
    }
    parts.push(Part::Head(Head::new(specs, shape.space, c_prev, shape.num_classes)));
    specs.end_part();
    parts
}

/// Stem, three groups of cells with residual blocks between them, head.
fn nas_bench_201_parts(specs: &mut Specs, shape: &Shape) -> Vec<Part> {
    let mut c = shape.init_channels;
    let mut parts = vec![Part::Stem(Stem::new(specs, shape.space, c))];
    specs.end_part();
    for index in 0..shape.num_cells() {
        let (name, channels) = (format!("cells.{index}"), shape.channels(index));
        parts.push(match shape.is_reduction(index) {
            true => Part::Residual(Residual::new(specs, &name, c, channels)),
            false => Part::NasBench201(Nb201Cell::new(specs, &name, channels, shape.k, &shape.masks[0])),
        });
        specs.end_part();
        c = channels;
    }
    parts.push(Part::Head(Head::new(specs, shape.space, c, shape.num_classes)));
    specs.end_part();
    parts
}

/// Mean cross entropy of `logits` `[N, K]` against `labels` `[N]`, in the kind of the logits.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    // tch's `cross_entropy_for_logits` computes in float32 whatever it is given.
    logits.log_softmax(-1, logits.kind()).nll_loss(labels)
}

struct Segment {
    /// Leaves it begins at; empty for the first segment.
    inputs: Vec<Tensor>,
    /// The states it hands on; of the last one the logits.
    outputs: Vec<Tensor>,
}

/// A forward pass, ready to be differentiated segment by segment.
pub struct Tape<'a> {
    params: &'a Params,
    segments: Vec<Segment>,
    logits: Tensor,
}

impl Tape<'_> {
    /// Logits [N, K].
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// Differentiates `loss` (a scalar made from `logits`): calls `done` with each segment's number (= its bucket)
    /// and gradients, one per leaf of the bucket, last segment first, as soon as they are there.
    pub fn backward(
        self,
        loss: &Tensor,
        mut done: impl FnMut(usize, Vec<Tensor>) -> Result<()>,
    ) -> Result<()> {
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
