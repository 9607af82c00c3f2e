//! Network: the final network, built from a genotype: stem, fixed cells, classifier, auxiliary head.
//!
//! Shapes: N batch, C channels, H W input size, K classes. Sources: `NetworkImageNet` and `NetworkCIFAR` of the published
//! code, whose names the weights have.

use super::drop_path::DropPath;
use super::fixed_cell::{Edge, FixedCell, FixedCellPlace};
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

/// What a network is, apart from its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkShape {
    /// Which stem, and which auxiliary head.
    pub space: SearchSpace,
    /// The architecture of the cells.
    pub genotype: Genotype,
    /// Channels of the first cells, C.
    pub init_channels: i64,
    /// Number of cells.
    pub layers: usize,
    /// Number of classes.
    pub num_classes: i64,
    /// Side of the images that multiply-adds are counted for, pixels.
    pub px: i64,
    /// Whether it has an auxiliary head, for training.
    pub auxiliary: bool,
}

impl NetworkShape {
    /// Whether cell `index` halves the resolution.
    pub fn is_reduction(&self, index: usize) -> bool {
        index == self.layers / 3 || index == self.auxiliary_cell()
    }

    /// The cell behind which the auxiliary head stands: the second reduction.
    pub fn auxiliary_cell(&self) -> usize {
        2 * self.layers / 3
    }

    /// Side of the maps behind the stem, pixels.
    fn stem_side(&self) -> i64 {
        match self.space {
            SearchSpace::DartsImagenet => self.px / 8,
            SearchSpace::DartsCifar | SearchSpace::NasBench201 => self.px,
        }
    }
}

/// The second classifier, which helps the cells in the middle to learn.
struct AuxiliaryHead {
    stride: i64,
    first: WeightId,
    first_norm: AffineNorm,
    second: WeightId,
    /// The published ImageNet network has none here: left out by mistake once, and kept so.
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

    /// Rectified [N, C, H, W] to logits [N, K]. At the published sizes one pixel is left in the end; of more the mean is
    /// taken.
    fn forward(&self, pass: &Pass, x: &Tensor) -> Tensor {
        let y = x.avg_pool2d([5, 5], [self.stride; 2], [0, 0], false, false, None::<i64>);
        let y = conv(&y, pass.params.weight(self.first), 1, 0, 1, 1);
        let y = pass.affine_batch_norm(&y, &self.first_norm).relu_();
        let mut y = conv(&y, pass.params.weight(self.second), 1, 0, 1, 1);
        if let Some(norm) = &self.second_norm {
            y = pass.affine_batch_norm(&y, norm);
        }
        self.classifier.forward(pass, &y.relu_())
    }
}

/// What is computed one after another. States between parts: the outputs of the last two cells, and behind the auxiliary
/// head its logits.
enum NetworkPart {
    Stem(Stem),
    Cell(FixedCell),
    Auxiliary(AuxiliaryHead),
    Classifier(Classifier),
}

/// The final network, with its tensors on one rank.
pub struct Network {
    shape: NetworkShape,
    placement: Placement,
    parts: Vec<NetworkPart>,
    num_parameters: i64,
    multiply_adds: i64,
    /// Its tensors.
    pub params: Params,
}

impl Network {
    /// Builds the network with all weights zero: `params.initialise` or `params.load` follows. The genotype has been checked
    /// (see `Genotype::read`).
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
            let known = |name: &String| Operation::from_name(name).expect("the genotype has been checked");
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
            let place =
                FixedCellPlace { number: index, edges, concat, channels, side, reduction, reduction_prev };
            let cell = FixedCell::new(&mut specs, &place, c_prev_prev, c_prev);
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

    /// What it is.
    pub fn shape(&self) -> &NetworkShape {
        &self.shape
    }

    /// How and where it computes.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Learned scalars, without the auxiliary head, as papers count.
    pub fn num_parameters(&self) -> i64 {
        self.num_parameters
    }

    /// Multiply-adds of convolutions and linear layers for one image, without the auxiliary head.
    pub fn multiply_adds(&self) -> i64 {
        self.multiply_adds
    }

    /// The factors of drop path for `n` images of `replica` at `step`; `at`: seed, step, replica.
    pub fn drop_path(&self, probability: f64, at: (u64, u64, u64), n: i64) -> Option<DropPath> {
        let edges = self.shape.genotype.normal.len();
        let kind = self.placement.precision.activations();
        let size = [self.shape.layers as i64, edges as i64, n];
        DropPath::draw(probability, at, size, (kind, self.placement.device))
    }

    /// Logits [N, K] of images [N, 3, H, W], with the running statistics of local replica `replica`.
    pub fn logits(&self, images: &Tensor, replica: usize) -> Tensor {
        let mixing = Mixing::none();
        let pass = Pass::new(&self.params, &mixing, Mode::Eval, replica);
        let images = vec![self.placement.laid_out(images)];
        self.parts.iter().fold(images, |states, part| forward(part, &pass, None, states)).remove(0)
    }

    /// A training pass, ready to be differentiated; its results are the logits and, if there is such a head, the auxiliary
    /// logits.
    pub fn forward(&self, images: &Tensor, drop_path: Option<DropPath>, replica: usize) -> Tape<'_> {
        let mixing = Mixing::none();
        let pass = Pass::new(&self.params, &mixing, Mode::Train, replica);
        let images = self.placement.laid_out(images);
        let drop_path = Rc::new(drop_path);
        let shared = Rc::clone(&drop_path);
        let part = |part: usize, states| forward(&self.parts[part], &pass, (*drop_path).as_ref(), states);
        if !self.placement.checkpoint_cells {
            return Tape::record(&self.params, images, part);
        }
        let again = move |part: usize, states| {
            let mixing = Mixing::none();
            let pass = Pass::again(&self.params, &mixing, replica);
            forward(&self.parts[part], &pass, (*shared).as_ref(), states)
        };
        Tape::record_inputs(&self.params, self.params.segments(), images, part, again)
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
                // Published: the head rectifies in place, also for what follows. All cells rectify their inputs anyway; a
                // network whose last cell carries the head is another one in training than in evaluation.
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
