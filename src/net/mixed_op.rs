//! MixedOp: all out-edges of one state at once: partial channels, every kept operation, weighted sum.
//!
//! Shapes: N batch, C channels of a state, c = C/k of them computed with, M out-edges, H W (H' W' after the stride).

use super::mixing::Entries;
use super::ops::{FactorizedReduce, Pass, conv};
use super::params::{Specs, StatId};
use super::separable::{Branch, Separable, Slots};
use crate::space::{Mask, NUM_INPUTS, Operation, SearchSpace, edge, nodes_fed_by};
use tch::Tensor;

/// Where a cell's operations stand: what every state's `MixedOp` is built from.
pub struct Place<'a> {
    /// The space.
    pub space: SearchSpace,
    /// Which eta table the cell uses.
    pub table: usize,
    /// The table's kept operations.
    pub mask: &'a Mask,
    /// Published name of the cell, as `cells.3`.
    pub cell: String,
    /// Channels of the cell, C.
    pub channels: i64,
    /// Partial-channel divisor.
    pub k: i64,
    /// Whether the cell halves the resolution.
    pub reduction: bool,
}

/// The operations without weights, each computed once for all out-edges.
struct Shared {
    /// Pooling and its statistics.
    pools: Vec<(Operation, StatId)>,
    /// Whether the skip connection (the identity here) is kept anywhere.
    identity: bool,
    /// M times (pools, identity).
    entries: Entries,
}

/// The out-edges of one state.
pub struct MixedOp {
    num_edges: usize,
    channels: i64,
    partial: i64,
    stride: i64,
    shared: Option<Shared>,
    /// Chains of separable convolutions: plain ones (3x3, 5x5), dilated ones (3x3, 5x5).
    separable: Vec<(Separable, Entries)>,
    /// The skip connection of stride 2.
    reduce: Option<(FactorizedReduce, Slots, Entries)>,
}

impl MixedOp {
    /// Declares the out-edges of state `from`.
    pub fn new(specs: &mut Specs, place: &Place, from: usize) -> MixedOp {
        let edges: Vec<usize> = nodes_fed_by(from).map(|node| edge(node, from)).collect();
        let num_edges = edges.len();
        let stride = if place.reduction && from < NUM_INPUTS { 2 } else { 1 };
        let partial = place.channels / place.k;
        let column = |operation: Operation| {
            let mut operations = place.space.operations().iter();
            operations.position(|&other| other == operation)
        };
        let prefix = |edge: usize, column: usize| format!("{}._ops.{edge}._ops.{column}", place.cell);
        // Positions of the out-edges that keep an operation, and its names there.
        let kept = |operation: Operation| -> Option<(usize, Vec<usize>, Vec<String>)> {
            let column = column(operation)?;
            let positions: Vec<usize> =
                (0..num_edges).filter(|&at| place.mask.keeps(edges[at], column)).collect();
            let prefixes = positions.iter().map(|&at| prefix(edges[at], column)).collect();
            (!positions.is_empty()).then_some((column, positions, prefixes))
        };
        let entries = |places: Vec<(usize, usize)>| Entries { table: place.table, places };

        let mut pools = Vec::new();
        let mut columns = Vec::new();
        for operation in [Operation::MaxPool3x3, Operation::AvgPool3x3] {
            if let Some((column, ..)) = kept(operation) {
                let names = edges.iter().map(|&edge| (format!("{}.op.1", prefix(edge, column)), 0..partial));
                pools.push((operation, specs.stat(partial, names.collect())));
                columns.push(column);
            }
        }
        let skip = kept(Operation::SkipConnect);
        let identity = stride == 1 && skip.is_some();
        if let Some((column, ..)) = skip.as_ref().filter(|_| identity) {
            columns.push(*column);
        }
        let shared = (!columns.is_empty()).then(|| {
            let places = edges.iter().flat_map(|&edge| columns.iter().map(move |&column| (edge, column)));
            Shared { pools, identity, entries: entries(places.collect()) }
        });
        let reduce = skip.filter(|_| stride == 2).map(|(column, positions, prefixes)| {
            let places = positions.iter().map(|&at| (edges[at], column)).collect();
            let reduce = FactorizedReduce::new(specs, &prefixes, partial, partial);
            (reduce, Slots::new(positions, num_edges), entries(places))
        });
        let mut separable = Vec::new();
        for (kernels, at, dilation) in [
            ([(Operation::SepConv3x3, 3), (Operation::SepConv5x5, 5)], [1, 5].as_slice(), 1),
            ([(Operation::DilConv3x3, 3), (Operation::DilConv5x5, 5)], [1].as_slice(), 2),
        ] {
            let (mut branches, mut places) = (Vec::new(), Vec::new());
            for (operation, kernel) in kernels {
                if let Some((column, positions, prefixes)) = kept(operation) {
                    places.extend(positions.iter().map(|&at| (edges[at], column)));
                    branches.push(Branch { kernel, prefixes, positions });
                }
            }
            if !branches.is_empty() {
                let chain = Separable::new(specs, branches, num_edges, partial, at, stride, dilation);
                separable.push((chain, entries(places)));
            }
        }
        MixedOp { num_edges, channels: place.channels, partial, stride, shared, separable, reduce }
    }

    /// `x` [N, C, H, W] to the weighted sum of operations on every out-edge [N, M*c, H', W'] (nearest node first) and
    /// the channels that bypass them [N, C - c, H', W'], `None` for k = 1.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> (Tensor, Option<Tensor>) {
        let head = x.narrow(1, 0, self.partial);
        let bypass = (self.partial < self.channels).then(|| {
            let rest = x.narrow(1, self.partial, self.channels - self.partial);
            if self.stride == 2 { rest.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false) } else { rest }
        });
        let mut terms = Vec::new();
        if let Some(shared) = &self.shared {
            terms.push(self.mix(pass, shared, &head));
        }
        if self.reduce.is_some() || !self.separable.is_empty() {
            let rectified = head.relu();
            let scale = |entries| pass.mixing.scale(entries, self.partial);
            if let Some((reduce, slots, entries)) = &self.reduce {
                let y = reduce.forward(pass, &rectified, Some(&scale(entries)));
                terms.push(slots.sum(&y, self.partial));
            }
            for (chain, entries) in &self.separable {
                terms.push(chain.forward(pass, &rectified, &scale(entries)));
            }
        }
        let sum = terms.into_iter().reduce(|sum, term| sum + term);
        (sum.expect("every edge keeps an operation"), bypass)
    }

    /// Operations without weights: computed once, then mixed into all edges by one product.
    fn mix(&self, pass: &Pass, shared: &Shared, head: &Tensor) -> Tensor {
        let stride = [self.stride, self.stride];
        let pool = |&(operation, stat): &(Operation, StatId)| {
            let pooled = match operation {
                Operation::MaxPool3x3 => head.max_pool2d([3, 3], stride, [1, 1], [1, 1], false),
                _ => head.avg_pool2d([3, 3], stride, [1, 1], false, false, None::<i64>),
            };
            pass.batch_norm(&pooled, stat, None)
        };
        let mut tensors: Vec<Tensor> = shared.pools.iter().map(pool).collect();
        tensors.extend(shared.identity.then(|| head.shallow_clone()));
        let matrix = pass.mixing.matrix(&shared.entries, self.num_edges, self.partial);
        conv(&Tensor::cat(&tensors, 1), &matrix, 1, 0, 1, 1)
    }
}
