//! Supernet: stem, mixed cells, classifier.
//!
//! Shapes: N batch, H W input size, K classes.

use super::cell::Cell;
use super::mixed_op::Place;
use super::mixing::{DeviceMasks, Mixing};
use super::ops::{Mode, Pass};
use super::params::{Named, Params, Specs};
use super::stem::{Classifier, Stem};
use super::tape::{Tape, ThetaTape};
use crate::error::Result;
use crate::space::{Mask, NUM_NODES, SearchSpace};
use std::ops::Range;
use std::rc::Rc;
use tch::Tensor;

pub use super::loss::cross_entropy;
pub use super::tape::Placement;

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

/// The network of the search, with its tensors on one rank.
pub struct Supernet {
    shape: Shape,
    placement: Placement,
    stem: Stem,
    cells: Vec<Cell>,
    classifier: Classifier,
    masks: DeviceMasks,
    /// Its tensors.
    pub params: Params,
}

impl Supernet {
    /// Builds the network with all weights zero: `params.initialise` or `import` follows.
    pub fn new(shape: Shape, placement: Placement) -> Supernet {
        let mut specs = Specs::default();
        let stem_channels = STEM_MULTIPLIER * shape.init_channels;
        let stem = Stem::new(&mut specs, shape.space, stem_channels, 0);
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
        let classifier = Classifier::new(&mut specs, "classifier", c_prev, shape.num_classes);
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

    /// Logits [N, K] of images [N, 3, H, W], one graph.
    pub fn logits(&self, images: &Tensor, theta: &[Tensor], mode: Mode, replica: usize) -> Tensor {
        let mixing = Mixing::new(theta, &self.masks);
        let pass = Pass::new(&self.params, &mixing, mode, replica);
        let images = vec![self.placement.laid_out(images)];
        (0..self.num_parts()).fold(images, |states, part| self.part(&pass, part, states)).remove(0)
    }

    /// A training pass, ready to be differentiated; its result is the logits. theta is a constant here.
    pub fn forward(&self, images: &Tensor, theta: &[Tensor], replica: usize) -> Tape<'_> {
        let mixing = Rc::new(Mixing::new(theta, &self.masks));
        if self.placement.checkpoint_cells {
            return self.record_inputs(images, self.params.segments(), mixing, replica);
        }
        let pass = Pass::new(&self.params, &mixing, Mode::Train, replica);
        let images = self.placement.laid_out(images);
        Tape::record(&self.params, images, |part, states| self.part(&pass, part, states))
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
        // Part by part: so the gradients of what cells share are summed in the order of the whole graph.
        let parts: Vec<Range<usize>> = (0..self.num_parts()).map(|part| part..part + 1).collect();
        let mixing = Rc::new(Mixing::new(theta, &self.masks));
        ThetaTape::cells(theta, self.record_inputs(images, &parts, Rc::clone(&mixing), replica), mixing)
    }

    fn record_inputs(
        &self,
        images: &Tensor,
        segments: &[Range<usize>],
        mixing: Rc<Mixing>,
        replica: usize,
    ) -> Tape<'_> {
        let shared = Rc::clone(&mixing);
        let pass = Pass::new(&self.params, &shared, Mode::Train, replica);
        let again = move |part, states| self.part(&Pass::again(&self.params, &mixing, replica), part, states);
        let images = self.placement.laid_out(images);
        let part = |part, states| self.part(&pass, part, states);
        Tape::record_inputs(&self.params, segments, images, part, again)
    }

    /// Stem, cells, classifier.
    fn num_parts(&self) -> usize {
        self.cells.len() + 2
    }

    /// States between the parts: the outputs of the last two cells, the newer one last.
    fn part(&self, pass: &Pass, number: usize, mut states: Vec<Tensor>) -> Vec<Tensor> {
        let newest = states.pop().expect("the images, or two states");
        if number == 0 {
            self.stem.forward(pass, &newest).into()
        } else if number <= self.cells.len() {
            let out = self.cells[number - 1].forward(pass, &states[0], &newest);
            vec![newest, out]
        } else {
            vec![self.classifier.forward(pass, &newest)]
        }
    }
}
