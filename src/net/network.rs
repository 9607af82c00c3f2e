//! Evaluation network of a genotype: stem, fixed cells, classifier, auxiliary head.
//!
//! Shapes: N batch, C channels, H W input size, K classes. Sources: `NetworkImageNet` and `NetworkCIFAR` of the
//! published code; the weights have the names used there.

use super::drop_path::DropPath;
use super::fixed_cell::{Edge, FixedCell, FixedCellShape};
use super::mixing::Mixing;
use super::ops::{AffineNorm, Mode, Pass, conv};
use super::params::{Init, Params, Specs, WeightId};
use super::placement::Placement;
use super::stem::{Classifier, Stem};
use super::tape::Tape;
use crate::space::genotype::Genotype;
use crate::space::{Operation, SearchSpace};
use std::rc::Rc;
use tch::Tensor;

/// Shape of an evaluation network.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkShape {
    /// Determines the stem and the auxiliary head.
    pub space: SearchSpace,
    /// The architecture of the cells.
    pub genotype: Genotype,
    /// Channels of the first cells, C.
    pub init_channels: i64,
    /// Number of cells.
    pub layers: usize,
    /// Number of classes.
    pub num_classes: i64,
    /// Side of the images for which multiply-adds are counted, pixels.
    pub px: i64,
    /// Whether the network has an auxiliary head, used in training.
    pub auxiliary: bool,
}

impl NetworkShape {
    /// Returns whether cell `index` halves the resolution.
    pub fn is_reduction(&self, index: usize) -> bool {
        index == self.layers / 3 || index == self.auxiliary_cell()
    }

    /// Returns the cell after which the auxiliary head is attached: the second reduction cell.
    pub fn auxiliary_cell(&self) -> usize {
        2 * self.layers / 3
    }

    /// Returns the side of the maps after the stem, pixels.
    fn stem_side(&self) -> i64 {
        match self.space {
            SearchSpace::DartsImagenet => self.px / 8,
            SearchSpace::DartsCifar | SearchSpace::NasBench201 => self.px,
        }
    }
}

/// Second classifier, whose loss helps to train the cells in the middle.
struct AuxiliaryHead {
    stride: i64,
    first: WeightId,
    first_norm: AffineNorm,
    second: WeightId,
    /// The published ImageNet network has none here, originally by mistake.
    second_norm: Option<AffineNorm>,
    classifier: Classifier,
}

impl AuxiliaryHead {
    fn new(specs: &mut Specs, space: SearchSpace, c: i64, classes: i64) -> AuxiliaryHead {
        let (narrow, wide) = (128, 768);
        let name = |at: usize| format!("auxiliary_head.features.{at}");
        let rows = |at: usize, rows: i64| vec![(format!("{}.weight", name(at)), 0..rows)];
        AuxiliaryHead {
            stride: space.auxiliary_stride(),
            first: specs.weight(&[narrow, c, 1, 1], Init::FanIn(c), rows(2, narrow)),
            first_norm: AffineNorm::new(specs, &name(3), narrow),
            second: specs.weight(&[wide, narrow, 2, 2], Init::FanIn(4 * narrow), rows(5, wide)),
            second_norm: (space == SearchSpace::DartsCifar).then(|| AffineNorm::new(specs, &name(6), wide)),
            classifier: Classifier::new(specs, "auxiliary_head.classifier", wide, classes),
        }
    }

    /// Maps rectified [N, C, H, W] to logits [N, K]. At the published sizes one pixel is left at the end; larger maps
    /// are averaged.
    fn forward(&self, pass: &Pass, x: &Tensor) -> Tensor {
        let y = x.avg_pool2d([5, 5], [self.stride; 2], [0, 0], false, false, None::<i64>);
        let y = conv(&y, &pass.weight(self.first), 1, 0, 1, 1);
        let y = pass.affine_batch_norm(&y, &self.first_norm).relu_();
        let mut y = conv(&y, &pass.weight(self.second), 1, 0, 1, 1);
        if let Some(norm) = &self.second_norm {
            y = pass.affine_batch_norm(&y, norm);
        }
        self.classifier.forward(pass, &y.relu_())
    }
}

/// A part of the network. States between parts: the outputs of the last two cells and, after the auxiliary head, its
/// logits.
enum NetworkPart {
    Stem(Stem),
    Cell(FixedCell),
    Auxiliary(AuxiliaryHead),
    Classifier(Classifier),
}

/// The evaluation network with its tensors on one rank.
pub struct Network {
    shape: NetworkShape,
    placement: Placement,
    parts: Vec<NetworkPart>,
    num_parameters: i64,
    multiply_adds: i64,
    /// Weights and running statistics.
    pub params: Params,
}

impl Network {
    /// Creates the network with zero weights; call `params.initialise` or `params.load` next. The genotype must be
    /// valid (see `Genotype::read`).
    pub fn new(shape: NetworkShape, placement: Placement) -> Network {
        let mut specs = Specs::affine();
        let mut parts = Vec::new();
        let mut end_part = |specs: &mut Specs, part: NetworkPart| {
            specs.end_part();
            parts.push(part);
        };
        let c = shape.init_channels;
        let imagenet = shape.space == SearchSpace::DartsImagenet;
        let stem_channels = if imagenet { c } else { 3 * c };
        let stem = Stem::new(&mut specs, shape.space, stem_channels, shape.px);
        end_part(&mut specs, NetworkPart::Stem(stem));
        let (mut c_prev_prev, mut c_prev) = (stem_channels, stem_channels);
        // The ImageNet stem halves the resolution between its two outputs.
        let mut reduction_prev = imagenet;
        let (mut channels, mut side) = (c, shape.stem_side());
        let kinds = [&shape.genotype.normal, &shape.genotype.reduce].map(|edges| -> Vec<Edge> {
            let known = |name: &String| Operation::from_name(name).expect("the genotype was checked");
            edges.iter().map(|(name, from)| (known(name), *from)).collect()
        });
        let mut auxiliary_elements = 0;
        for index in 0..shape.layers {
            let reduction = shape.is_reduction(index);
            if reduction {
                (channels, side) = (2 * channels, side / 2);
            }
            let concat =
                if reduction { &shape.genotype.reduce_concat } else { &shape.genotype.normal_concat };
            let edges = &kinds[usize::from(reduction)];
            let cell_shape =
                FixedCellShape { number: index, edges, concat, channels, side, reduction, reduction_prev };
            let cell = FixedCell::new(&mut specs, &cell_shape, c_prev_prev, c_prev);
            end_part(&mut specs, NetworkPart::Cell(cell));
            reduction_prev = reduction;
            (c_prev_prev, c_prev) = (c_prev, concat.len() as i64 * channels);
            if shape.auxiliary && index == shape.auxiliary_cell() {
                let before = specs.num_elements();
                specs.count_for(0);
                let head = AuxiliaryHead::new(&mut specs, shape.space, c_prev, shape.num_classes);
                auxiliary_elements = specs.num_elements() - before;
                end_part(&mut specs, NetworkPart::Auxiliary(head));
            }
        }
        specs.count_for(1);
        let classifier = Classifier::new(&mut specs, "classifier", c_prev, shape.num_classes);
        end_part(&mut specs, NetworkPart::Classifier(classifier));
        Network {
            num_parameters: specs.num_elements() - auxiliary_elements,
            multiply_adds: specs.multiply_adds(),
            params: Params::new(specs, &placement),
            shape,
            placement,
            parts,
        }
    }

    /// Returns the shape.
    pub fn shape(&self) -> &NetworkShape {
        &self.shape
    }

    /// Returns the placement.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Returns the number of parameters without the auxiliary head, as papers count them.
    pub fn num_parameters(&self) -> i64 {
        self.num_parameters
    }

    /// Returns the multiply-adds of convolutions and linear layers for one image, without the auxiliary head.
    pub fn multiply_adds(&self) -> i64 {
        self.multiply_adds
    }

    /// Draws the drop-path factors for `n` images; `at`: seed, step, replica.
    pub fn drop_path(&self, probability: f64, at: (u64, u64, u64), n: i64) -> Option<DropPath> {
        let edges = self.shape.genotype.normal.len();
        let kind = self.placement.precision.activations();
        let size = [self.shape.layers as i64, edges as i64, n];
        DropPath::draw(probability, at, size, (kind, self.placement.device))
    }

    /// Computes the logits [N, K] of images [N, 3, H, W] with the running statistics of local replica `replica`.
    pub fn logits(&self, images: &Tensor, replica: usize) -> Tensor {
        let mixing = Mixing::none();
        let pass = Pass::new(&self.params, &mixing, Mode::Eval, replica);
        let images = vec![self.placement.network_input(images)];
        self.parts.iter().fold(images, |states, part| forward(part, &pass, None, states)).remove(0)
    }

    /// Runs a training pass, ready for differentiation. Results: the logits and, with an auxiliary head, its logits.
    pub fn forward(&self, images: &Tensor, drop_path: Option<DropPath>, replica: usize) -> Tape<'_> {
        let mixing = Mixing::none();
        let pass = Pass::new(&self.params, &mixing, Mode::Train, replica);
        let images = self.placement.network_input(images);
        let drop_path = Rc::new(drop_path);
        let shared = Rc::clone(&drop_path);
        let part = |part: usize, states| forward(&self.parts[part], &pass, (*drop_path).as_ref(), states);
        if !self.placement.checkpoint_cells {
            return Tape::record(&self.params, images, None, part);
        }
        let recompute = move |part: usize, states| {
            let mixing = Mixing::none();
            let pass = Pass::recompute(&self.params, &mixing, Mode::Train, replica);
            forward(&self.parts[part], &pass, (*shared).as_ref(), states)
        };
        Tape::record_inputs(&self.params, self.params.segments(), images, None, part, recompute)
    }
}

fn forward(
    part: &NetworkPart,
    pass: &Pass,
    drop_path: Option<&DropPath>,
    mut states: Vec<Tensor>,
) -> Vec<Tensor> {
    match part {
        NetworkPart::Stem(stem) => stem.forward(pass, &states[0]).into(),
        NetworkPart::Cell(cell) => {
            let out = cell.forward(pass, drop_path, &states[0], &states[1]);
            states[0] = std::mem::replace(&mut states[1], out);
            states
        }
        NetworkPart::Auxiliary(head) => {
            if pass.mode == Mode::Train {
                // As published: the in-place ReLU of the head also affects the following parts. Cells rectify their
                // inputs anyway, but if the head follows the last cell, the network differs between training and
                // evaluation.
                states[1] = states[1].relu();
                states.push(head.forward(pass, &states[1]));
            }
            states
        }
        NetworkPart::Classifier(classifier) => {
            let logits = classifier.forward(pass, &states[1]);
            std::iter::once(logits).chain(states.into_iter().skip(2)).collect()
        }
    }
}
