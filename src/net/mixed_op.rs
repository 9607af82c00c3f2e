//! MixedOp: all out-edges of one state at once: partial channels, every kept operation, weighted sum.
//!
//! Shapes: N batch, C channels of a state, c = C/k of them computed with, M out-edges, H W (H' W' after the stride).

use super::ops::{ConvOp, Pass};
use super::params::{Specs, StatId};
use crate::space::{Mask, Operation, SearchSpace, edge, nodes_fed_by};
use std::collections::HashMap;
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

/// An operation with weights on those out-edges that keep it.
struct Convolved {
    op: ConvOp,
    operation: usize,
    /// Positions among the out-edges, and their numbers in the table.
    positions: Vec<usize>,
    edges: Vec<usize>,
}

/// The out-edges of one state.
pub struct MixedOp {
    table: usize,
    /// Numbers of all out-edges, in node order.
    edges: Vec<usize>,
    channels: i64,
    partial: i64,
    stride: i64,
    /// Pooling, computed once for all edges: (column of eta, operation, statistics).
    pools: Vec<(usize, Operation, StatId)>,
    /// Column of the skip connection when it is the identity.
    identity: Option<usize>,
    convolved: Vec<Convolved>,
}

impl MixedOp {
    /// Declares the out-edges of state `from`.
    pub fn new(specs: &mut Specs, place: &Place, from: usize) -> MixedOp {
        let nodes = nodes_fed_by(from);
        let edges: Vec<usize> = nodes.map(|node| edge(node, from)).collect();
        let stride = if place.reduction && from < crate::space::NUM_INPUTS { 2 } else { 1 };
        let partial = place.channels / place.k;
        let mut mixed = MixedOp {
            table: place.table,
            edges,
            channels: place.channels,
            partial,
            stride,
            pools: Vec::new(),
            identity: None,
            convolved: Vec::new(),
        };
        let prefix = |edge: usize, column: usize| format!("{}._ops.{edge}._ops.{column}", place.cell);
        for (column, &operation) in place.space.operations().iter().enumerate() {
            let positions: Vec<usize> =
                (0..mixed.edges.len()).filter(|&at| place.mask.keeps(mixed.edges[at], column)).collect();
            if positions.is_empty() {
                continue;
            }
            let edges: Vec<usize> = positions.iter().map(|&at| mixed.edges[at]).collect();
            match operation {
                Operation::MaxPool3x3 | Operation::AvgPool3x3 => {
                    let pieces = mixed
                        .edges
                        .iter()
                        .map(|&edge| (format!("{}.op.1", prefix(edge, column)), 0..partial))
                        .collect();
                    mixed.pools.push((column, operation, specs.stat(partial, pieces)));
                }
                _ => {
                    let prefixes: Vec<String> = edges.iter().map(|&edge| prefix(edge, column)).collect();
                    match ConvOp::new(specs, operation, &prefixes, partial, stride) {
                        Some(op) => {
                            mixed.convolved.push(Convolved { op, operation: column, positions, edges })
                        }
                        None => mixed.identity = Some(column),
                    }
                }
            }
        }
        mixed
    }

    /// `x` [N, C, H, W] to the weighted sum of operations on every out-edge [N, M*c, H', W'] (nearest node first) and
    /// the channels that bypass them [N, C - c, H', W'], `None` for k = 1.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> (Tensor, Option<Tensor>) {
        let head = x.narrow(1, 0, self.partial);
        let bypass = (self.partial < self.channels).then(|| {
            let rest = x.narrow(1, self.partial, self.channels - self.partial);
            if self.stride == 2 { rest.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false) } else { rest }
        });
        let mut sum = self.without_weights(pass, &head);
        // Terms on some of the edges only: summed edge by edge.
        let mut single: Vec<Option<Tensor>> = self.edges.iter().map(|_| None).collect();
        if !self.convolved.is_empty() {
            let rectified = head.relu();
            // The state once per edge, by number of edges (operations kept on as many edges share it).
            let mut repeated: HashMap<usize, Tensor> = HashMap::new();
            for part in &self.convolved {
                let m = part.edges.len();
                let stacked =
                    repeated.entry(m).or_insert_with(|| Tensor::cat(&vec![&rectified; m], 1)).shallow_clone();
                let scale = pass.mixing.scale(self.table, &part.edges, part.operation, self.partial);
                let y = part.op.forward(pass, &rectified, &stacked, m as i64, &scale);
                if m == self.edges.len() {
                    sum = Some(plus(sum, y));
                } else {
                    for (&at, term) in part.positions.iter().zip(y.split(self.partial, 1)) {
                        single[at] = Some(plus(single[at].take(), term));
                    }
                }
            }
        }
        if let Some(shape) = single.iter().flatten().next().map(Tensor::zeros_like) {
            let terms: Vec<Tensor> =
                single.into_iter().map(|term| term.unwrap_or_else(|| shape.shallow_clone())).collect();
            sum = Some(plus(sum, Tensor::cat(&terms, 1)));
        }
        (sum.expect("every edge keeps an operation"), bypass)
    }

    /// The kept operations without weights: each computed once, then mixed into all edges by one product.
    fn without_weights(&self, pass: &Pass, head: &Tensor) -> Option<Tensor> {
        let (mut tensors, mut operations) = (Vec::new(), Vec::new());
        for &(column, operation, stat) in &self.pools {
            let stride = [self.stride, self.stride];
            let pooled = match operation {
                Operation::MaxPool3x3 => head.max_pool2d([3, 3], stride, [1, 1], [1, 1], false),
                _ => head.avg_pool2d([3, 3], stride, [1, 1], false, false, None::<i64>),
            };
            tensors.push(pass.batch_norm(&pooled, stat, None));
            operations.push(column);
        }
        if let Some(column) = self.identity {
            tensors.push(head.shallow_clone());
            operations.push(column);
        }
        (!tensors.is_empty()).then(|| {
            let matrix = pass.mixing.matrix(self.table, &self.edges, &operations, self.partial);
            super::ops::conv(&Tensor::cat(&tensors, 1), &matrix, 1, 0, 1, 1)
        })
    }
}

/// `sum + term`, or the term when there is no sum yet.
pub fn plus(sum: Option<Tensor>, term: Tensor) -> Tensor {
    match sum {
        Some(sum) => sum + term,
        None => term,
    }
}
