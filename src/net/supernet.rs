//! Supernet: stem, mixed cells (in NAS-Bench-201 with residual blocks between them), classifier.
//!
//! Shapes: N batch, H W input size, K classes.

use super::cell::Cell;
use super::gather::Gather;
use super::mixed_op::CellShape;
use super::mixing::{DeviceMasks, Mixing, MixingWeights};
use super::nb201::Nb201Cell;
use super::ops::{AffineNorm, Mode, Pass};
use super::params::{Params, Specs};
use super::placement::Placement;
use super::residual::Residual;
use super::stem::{Classifier, ConvNorm, Stem};
use super::tape::{Tape, ThetaTape};
use crate::space::{Mask, NUM_NODES, Operation, SearchSpace};
use std::ops::Range;
use std::rc::Rc;
use tch::Tensor;

/// Channels of a DARTS stem per channel of the first cell.
const STEM_MULTIPLIER: i64 = 3;

/// Shape of a supernet.
#[derive(Clone, Debug, PartialEq)]
pub struct SupernetShape {
    /// The search space.
    pub space: SearchSpace,
    /// The operations, one per column of a table.
    pub operations: Vec<Operation>,
    /// Channels of the first cells, C.
    pub init_channels: i64,
    /// Number of cells; in NAS-Bench-201, the number N of cells in each of the three groups.
    pub layers: usize,
    /// Number of classes.
    pub num_classes: i64,
    /// Partial-channel divisor.
    pub k: i64,
    /// Kept operations, one mask per table.
    pub masks: Vec<Mask>,
}

impl SupernetShape {
    /// Returns the number of modules called `cells.N`: cells and, in NAS-Bench-201, residual blocks.
    pub fn num_cells(&self) -> usize {
        match self.space {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => self.layers,
            SearchSpace::NasBench201 => 3 * self.layers + 2,
        }
    }

    /// Returns whether cell `index` halves the resolution; in NAS-Bench-201, these are the residual blocks.
    pub fn is_reduction(&self, index: usize) -> bool {
        match self.space {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => {
                index == self.layers / 3 || index == 2 * self.layers / 3
            }
            SearchSpace::NasBench201 => index == self.layers || index == 2 * self.layers + 1,
        }
    }

    /// Returns the index of the table of cell `index`.
    pub fn table(&self, index: usize) -> usize {
        match self.space {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => usize::from(self.is_reduction(index)),
            SearchSpace::NasBench201 => 0,
        }
    }

    /// Returns the channels C of cell `index`.
    pub fn channels(&self, index: usize) -> i64 {
        (0..=index).filter(|&earlier| self.is_reduction(earlier)).fold(self.init_channels, |c, _| 2 * c)
    }
}

/// A part of the network, the unit of which buckets consist; in the order of the forward pass.
enum SupernetPart {
    Stem(Stem),
    Cell(Cell),
    Nb201Stem(ConvNorm),
    Nb201Cell(Nb201Cell),
    Residual(Residual),
    /// In NAS-Bench-201, after a batch norm and a ReLU.
    Classifier(Option<AffineNorm>, Classifier),
}

impl SupernetPart {
    /// Computes the part. States between parts: the outputs of the last two DARTS cells, newest last, or of the last
    /// NAS-Bench-201 cell; the images before the first part, the logits after the last one.
    fn forward(&self, pass: &Pass, mut states: Vec<Tensor>) -> Vec<Tensor> {
        let newest = states.pop().expect("every part has an input");
        match self {
            SupernetPart::Stem(stem) => stem.forward(pass, &newest).into(),
            SupernetPart::Cell(cell) => {
                let out = cell.forward(pass, &states[0], &newest);
                vec![newest, out]
            }
            SupernetPart::Nb201Stem(stem) => vec![stem.forward(pass, &newest)],
            SupernetPart::Nb201Cell(cell) => vec![cell.forward(pass, &newest)],
            SupernetPart::Residual(block) => vec![block.forward(pass, &newest)],
            SupernetPart::Classifier(None, classifier) => vec![classifier.forward(pass, &newest)],
            SupernetPart::Classifier(Some(norm), classifier) => {
                vec![classifier.forward(pass, &pass.affine_batch_norm(&newest, norm).relu_())]
            }
        }
    }
}

/// The parts that a pass computes: those of the network, or of a path through it.
struct Route {
    parts: Vec<SupernetPart>,
    /// Where the tensors of a path are.
    gather: Option<Gather>,
}

impl Route {
    fn forward(&self, part: usize, pass: &Pass, states: Vec<Tensor>) -> Vec<Tensor> {
        self.parts[part].forward(pass, states)
    }
}

/// The supernet with its tensors on one rank.
pub struct Supernet {
    shape: SupernetShape,
    placement: Placement,
    /// All kept operations.
    whole: Rc<Route>,
    masks: DeviceMasks,
    /// Weights and running statistics.
    pub params: Params,
}

impl Supernet {
    /// Creates the network with zero weights; call `params.initialise` or `params.load` next.
    pub fn new(shape: SupernetShape, placement: Placement) -> Supernet {
        let mut specs = Specs::default();
        let whole = Rc::new(Route { parts: parts(&mut specs, &shape), gather: None });
        let masks = DeviceMasks::new(&shape.masks, placement.precision.weights(), placement.device);
        let params = Params::new(specs, &placement);
        Supernet { shape, placement, whole, masks, params }
    }

    /// Returns the shape.
    pub fn shape(&self) -> &SupernetShape {
        &self.shape
    }

    /// Returns the placement.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Returns the masks on the device, for drawing theta.
    pub fn masks(&self) -> &DeviceMasks {
        &self.masks
    }

    /// Returns the parts that a pass with these mixing weights computes.
    fn route(&self, theta: &MixingWeights) -> Rc<Route> {
        let Some(path) = &theta.path else { return Rc::clone(&self.whole) };
        let shape = SupernetShape { masks: path.masks.clone(), ..self.shape.clone() };
        let mut specs = Specs::default();
        let parts = parts(&mut specs, &shape);
        Rc::new(Route { parts, gather: Some(Gather::new(&specs, &self.params)) })
    }

    /// Computes the logits [N, K] of images [N, 3, H, W] in one graph.
    pub fn logits(&self, images: &Tensor, theta: &MixingWeights, mode: Mode, replica: usize) -> Tensor {
        let (mixing, route) = (Mixing::new(theta, &self.masks), self.route(theta));
        let pass = Pass::new(&self.params, &mixing, mode, replica);
        self.run(images, &route, &pass.gathered(route.gather.as_ref()))
    }

    /// Computes logits in training mode with trial weights, without updating running statistics.
    pub fn trial_logits(&self, images: &Tensor, theta: &MixingWeights) -> Tensor {
        self.params.refresh();
        let (mixing, route) = (Mixing::new(theta, &self.masks), self.route(theta));
        let pass = Pass::recompute(&self.params, &mixing, Mode::Train, 0);
        self.run(images, &route, &pass.gathered(route.gather.as_ref()))
    }

    fn run(&self, images: &Tensor, route: &Route, pass: &Pass) -> Tensor {
        let images = vec![self.placement.network_input(images)];
        route.parts.iter().fold(images, |states, part| part.forward(pass, states)).remove(0)
    }

    /// Runs a training pass, ready for differentiation with respect to the weights and, if `theta` consists of leaves (see
    /// [`MixingWeights::leaves`]), the mixing weights. Result: the logits.
    pub fn forward(&self, images: &Tensor, theta: &MixingWeights, replica: usize) -> Tape<'_> {
        let (mixing, route) = (Rc::new(Mixing::new(theta, &self.masks)), self.route(theta));
        if self.placement.checkpoint_cells {
            return self.record_inputs(images, self.params.segments(), (mixing, route), Mode::Train, replica);
        }
        let shared = Rc::clone(&mixing);
        let pass = Pass::new(&self.params, &shared, Mode::Train, replica).gathered(route.gather.as_ref());
        let images = self.placement.network_input(images);
        let part = |part: usize, states| route.forward(part, &pass, states);
        Tape::record(&self.params, images, Some(mixing), part)
    }

    /// Runs a pass for the gradients of `theta` (see [`MixingWeights::leaves`]), not of the weights.
    pub fn forward_theta<'a>(
        &'a self,
        images: &Tensor,
        theta: &'a MixingWeights,
        mode: Mode,
        replica: usize,
    ) -> ThetaTape<'a> {
        if !self.placement.checkpoint_cells {
            return ThetaTape::whole(theta, self.logits(images, theta, mode, replica));
        }
        // Part by part, so that gradients of shared tensors are summed in the order of the whole graph.
        let (mixing, route) = (Rc::new(Mixing::new(theta, &self.masks)), self.route(theta));
        let parts: Vec<Range<usize>> = (0..route.parts.len()).map(|part| part..part + 1).collect();
        ThetaTape::cells(theta, self.record_inputs(images, &parts, (mixing, route), mode, replica))
    }

    fn record_inputs(
        &self,
        images: &Tensor,
        segments: &[Range<usize>],
        (mixing, route): (Rc<Mixing>, Rc<Route>),
        mode: Mode,
        replica: usize,
    ) -> Tape<'_> {
        let (shared, cut) = (Rc::clone(&mixing), Some(Rc::clone(&mixing)));
        let first = Rc::clone(&route);
        let pass = Pass::new(&self.params, &shared, mode, replica).gathered(first.gather.as_ref());
        let recompute = move |part: usize, states| {
            let pass = Pass::recompute(&self.params, &mixing, mode, replica);
            route.forward(part, &pass.gathered(route.gather.as_ref()), states)
        };
        let images = self.placement.network_input(images);
        let part = |part: usize, states| first.forward(part, &pass, states);
        Tape::record_inputs(&self.params, segments, images, cut, part, recompute)
    }
}

/// Creates the parts of a network of any space.
fn parts(specs: &mut Specs, shape: &SupernetShape) -> Vec<SupernetPart> {
    match shape.space {
        SearchSpace::DartsImagenet | SearchSpace::DartsCifar => darts_parts(specs, shape),
        SearchSpace::NasBench201 => nb201_parts(specs, shape),
    }
}

/// Creates stem, cells and classifier.
fn darts_parts(specs: &mut Specs, shape: &SupernetShape) -> Vec<SupernetPart> {
    let stem_channels = STEM_MULTIPLIER * shape.init_channels;
    let mut parts = vec![SupernetPart::Stem(Stem::new(specs, shape.space, stem_channels, 0))];
    specs.end_part();
    let (mut c_prev_prev, mut c_prev) = (stem_channels, stem_channels);
    // The ImageNet stem halves the resolution between its two outputs.
    let mut reduction_prev = shape.space == SearchSpace::DartsImagenet;
    for index in 0..shape.num_cells() {
        let reduction = shape.is_reduction(index);
        let table = shape.table(index);
        let cell = CellShape {
            space: shape.space,
            operations: &shape.operations,
            table,
            mask: &shape.masks[table],
            name: format!("cells.{index}"),
            channels: shape.channels(index),
            k: shape.k,
            reduction,
        };
        parts.push(SupernetPart::Cell(Cell::new(specs, &cell, c_prev_prev, c_prev, reduction_prev)));
        specs.end_part();
        reduction_prev = reduction;
        (c_prev_prev, c_prev) = (c_prev, NUM_NODES as i64 * cell.channels);
    }
    parts.push(SupernetPart::Classifier(
        None,
        Classifier::new(specs, "classifier", c_prev, shape.num_classes),
    ));
    specs.end_part();
    parts
}

/// Creates the stem, three groups of cells with residual blocks between them, and the classifier.
fn nb201_parts(specs: &mut Specs, shape: &SupernetShape) -> Vec<SupernetPart> {
    let mut c = shape.init_channels;
    let mut parts = vec![SupernetPart::Nb201Stem(ConvNorm::new(specs, "stem", 0, 3, c, 1))];
    specs.end_part();
    for index in 0..shape.num_cells() {
        let (name, channels) = (format!("cells.{index}"), shape.channels(index));
        parts.push(match shape.is_reduction(index) {
            true => SupernetPart::Residual(Residual::new(specs, &name, c, channels)),
            false => {
                let kept = (&shape.operations[..], &shape.masks[0]);
                SupernetPart::Nb201Cell(Nb201Cell::new(specs, &name, (channels, shape.k), kept))
            }
        });
        specs.end_part();
        c = channels;
    }
    let norm = AffineNorm::new(specs, "lastact.0", c);
    parts.push(SupernetPart::Classifier(
        Some(norm),
        Classifier::new(specs, "classifier", c, shape.num_classes),
    ));
    specs.end_part();
    parts
}
