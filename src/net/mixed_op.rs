//! MixedOp: computes all out-edges of the states that become ready together: partial channels, every kept operation,
//! weighted sum.
//!
//! Shapes: N batch, I states (both inputs of a cell, or one node), C channels of a state, c = C/k of them computed, M
//! nodes with an edge from each of the states, H W (H' W' after the stride).

use super::mixing::Entries;
use super::nodes::{Bypassed, Contribution, add_others};
use super::ops::{FactorizedReduce, Pass, average_pool, cat, pointwise, pool};
use super::params::{Specs, StatId};
use super::separable::{Branch, CHAINS, Separable, Slots};
use crate::random::{Purpose, seed_of, torch_seeded};
use crate::space::{Mask, NUM_INPUTS, Operation, SearchSpace, edge, nodes_fed_by};
use std::ops::Range;
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_64;

/// Shape of a mixed cell.
pub struct CellShape<'a> {
    /// The search space.
    pub space: SearchSpace,
    /// The operations, one per column of the table.
    pub operations: &'a [Operation],
    /// Index of the table.
    pub table: usize,
    /// Kept operations of the table.
    pub mask: &'a Mask,
    /// Published name of the cell, such as `cells.3`.
    pub name: String,
    /// Channels of the cell, C.
    pub channels: i64,
    /// Partial-channel divisor.
    pub k: i64,
    /// Whether the cell halves the resolution.
    pub reduction: bool,
}

/// Pooling, computed once for all out-edges of a state.
struct Pools {
    operations: Vec<Operation>,
    /// Statistics of all pooled states, concatenated.
    stat: StatId,
    /// M times operations times I.
    entries: Entries,
}

/// Skip connections of stride 2 from one state.
struct Skip {
    /// Index of the state.
    state: usize,
    reduce: FactorizedReduce,
    slots: Slots,
    entries: Entries,
}

/// Out-edges of the states that become ready together.
pub struct MixedOp {
    num_nodes: usize,
    channels: i64,
    partial: i64,
    stride: i64,
    pools: Option<Pools>,
    /// Skip connections of stride 1, M times I.
    identity: Option<Entries>,
    /// Chains of separable convolutions: plain (3x3, 5x5) and dilated (3x3, 5x5).
    separable: Vec<(Separable, Entries)>,
    skips: Vec<Skip>,
    noise: Option<Noise>,
    /// One per node and state, for the weights of edges.
    edges: Entries,
}

/// `noise` on some edges.
struct Noise {
    /// Distinguishes the noise of the mixed operations of a network.
    stream: u64,
    slots: Slots,
    entries: Entries,
}

/// Edges that keep an operation, by state.
struct Kept {
    column: usize,
    /// Per state: (position among the M nodes, edge).
    edges: Vec<Vec<(usize, usize)>>,
}

impl MixedOp {
    /// Declares the out-edges of `states`, which have edges to the same nodes.
    pub fn new(specs: &mut Specs, cell: &CellShape, states: Range<usize>) -> MixedOp {
        let nodes = nodes_fed_by(states.start);
        debug_assert!(states.clone().all(|from| nodes_fed_by(from) == nodes));
        let stride = if cell.reduction && states.start < NUM_INPUTS { 2 } else { 1 };
        let partial = cell.channels / cell.k;
        let kept = |operation: Operation| -> Option<Kept> {
            let column = cell.operations.iter().position(|&other| other == operation)?;
            let out_edges = |from| {
                let edges = nodes.clone().map(|node| edge(node, from)).enumerate();
                edges.filter(|&(_, edge)| cell.mask.keeps(edge, column)).collect()
            };
            let edges: Vec<Vec<_>> = states.clone().map(out_edges).collect();
            edges.iter().any(|edges| !edges.is_empty()).then_some(Kept { column, edges })
        };
        let prefix = |edge: usize, operation: Operation| {
            let number = operation.number(cell.space).expect("an operation with tensors");
            format!("{}._ops.{edge}._ops.{number}", cell.name)
        };
        let entries = |places: Vec<(usize, usize)>| Entries { table: cell.table, places };

        // Entries of operations without weights, which are mixed by a matrix product: per node, the given operations of
        // all states.
        let product = |columns: &[usize]| {
            let mut places = Vec::new();
            for node in nodes.clone() {
                for &column in columns {
                    places.extend(states.clone().map(|from| (edge(node, from), column)));
                }
            }
            entries(places)
        };
        let (mut operations, mut columns, mut names) = (Vec::new(), Vec::new(), Vec::new());
        let mut rows = 0..partial;
        for operation in [Operation::MaxPool3x3, Operation::AvgPool3x3] {
            if let Some(Kept { column, .. }) = kept(operation) {
                operations.push(operation);
                columns.push(column);
                for from in states.clone() {
                    let edges = nodes.clone().map(|node| edge(node, from));
                    names.extend(
                        edges.map(|edge| (format!("{}.op.1", prefix(edge, operation)), rows.clone())),
                    );
                    rows = rows.end..rows.end + partial;
                }
            }
        }
        let pools = (!operations.is_empty()).then(|| Pools {
            operations,
            stat: specs.stat(rows.start, names),
            entries: product(&columns),
        });
        let skip = kept(Operation::SkipConnect);
        let identity = skip.as_ref().filter(|_| stride == 1).map(|skip| product(&[skip.column]));
        let mut skips = Vec::new();
        if let Some(skip) = skip.filter(|_| stride == 2) {
            for (state, edges) in skip.edges.iter().enumerate().filter(|(_, edges)| !edges.is_empty()) {
                let prefixes: Vec<String> =
                    edges.iter().map(|&(_, edge)| prefix(edge, Operation::SkipConnect)).collect();
                skips.push(Skip {
                    state,
                    reduce: FactorizedReduce::new(specs, &prefixes, partial, partial),
                    slots: Slots::new(edges.iter().map(|&(node, _)| node).collect(), nodes.len()),
                    entries: entries(edges.iter().map(|&(_, edge)| (edge, skip.column)).collect()),
                });
            }
        }
        let mut separable = Vec::new();
        for chain in &CHAINS {
            let (mut branches, mut places) = (Vec::new(), Vec::new());
            for (operation, kernel) in chain.kernels {
                if let Some(Kept { column, edges }) = kept(operation) {
                    let times = edges.iter().map(Vec::len).collect();
                    let edges = edges.concat();
                    places.extend(edges.iter().map(|&(_, edge)| (edge, column)));
                    branches.push(Branch {
                        kernel,
                        times,
                        prefixes: edges.iter().map(|&(_, edge)| prefix(edge, operation)).collect(),
                        positions: edges.iter().map(|&(node, _)| node).collect(),
                    });
                }
            }
            if !branches.is_empty() {
                let chain = Separable::new(specs, branches, nodes.len(), partial, chain, stride);
                separable.push((chain, entries(places)));
            }
        }
        let noise = kept(Operation::Noise).map(|Kept { column, edges }| {
            let edges = edges.concat();
            Noise {
                stream: xxh3_64(format!("{}.{}", cell.name, states.start).as_bytes()),
                slots: Slots::new(edges.iter().map(|&(node, _)| node).collect(), nodes.len()),
                entries: entries(edges.iter().map(|&(_, edge)| (edge, column)).collect()),
            }
        });
        MixedOp {
            num_nodes: nodes.len(),
            channels: cell.channels,
            partial,
            stride,
            pools,
            identity,
            separable,
            skips,
            noise,
            edges: product(&[0]),
        }
    }

    /// Maps `states`, I of [N, C, H, W], to their contributions.
    pub(super) fn forward(&self, pass: &Pass, states: &[Tensor]) -> Contribution {
        let bypass = self.channels - self.partial;
        // Split instead of narrow: the gradients of narrow views would be assembled channels first.
        let parts: Vec<Vec<Tensor>> =
            states.iter().map(|x| x.split_with_sizes([self.partial, bypass], 1)).collect();
        let bypassed = (bypass > 0).then(|| {
            let bypass = parts.iter().map(|parts| match self.stride {
                2 => parts[1].max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false),
                _ => parts[1].shallow_clone(),
            });
            let weights = pass.mixing.has_edge_weights().then(|| pass.mixing.edge_weights(&self.edges));
            Bypassed::sum(&bypass.collect::<Vec<_>>(), weights)
        });
        let heads = cat(parts.iter().map(|parts| parts[0].shallow_clone()).collect(), 1);
        let mut terms = Vec::new();
        let mix = |x: &Tensor, entries| {
            let matrix = pass.mixing.matrix(entries, self.num_nodes, self.partial);
            pointwise(x, &matrix.to_kind(x.kind()), 1)
        };
        if let Some(Pools { operations, stat, entries }) = &self.pools {
            let pooled =
                cat(operations.iter().map(|&operation| pool(operation, &heads, self.stride)).collect(), 1);
            terms.push(mix(&pass.batch_norm(&pooled, *stat, None), entries));
        }
        // A separate product: after a concatenation, the gradient of the batch norm would be a view, which is 5 times
        // slower.
        terms.extend(self.identity.as_ref().map(|entries| mix(&heads, entries)));
        if !(self.skips.is_empty() && self.separable.is_empty()) {
            let rectified = heads.relu();
            let scale = |entries| pass.mixing.scale(entries, self.partial);
            for Skip { state, reduce, slots, entries } in &self.skips {
                let x = &rectified.split(self.partial, 1)[*state];
                let y = reduce.forward(pass, x, Some(&scale(entries)));
                terms.push(slots.sum(&y, self.partial));
            }
            for (chain, entries) in &self.separable {
                terms.push(chain.forward(pass, &rectified, Some(&scale(entries))));
            }
        }
        if let Some(Noise { stream, slots, entries }) = &self.noise {
            let scale = pass.mixing.scale(entries, self.partial).to_kind(heads.kind());
            let (n, _, h, w) = heads.size4().expect("four dimensions");
            let shape = [n, scale.size()[0], h / self.stride, w / self.stride];
            let seed = seed_of(pass.mixing.noise_seed, Purpose::Noise, &[*stream]);
            let noise = torch_seeded(seed, || Tensor::randn(shape, (heads.kind(), heads.device())));
            terms.push(slots.sum(&(noise * scale.view([1, -1, 1, 1])), self.partial));
        }
        // No out-edge keeps an operation other than `none`: zeros, through which the states still get gradients.
        let zeros = || {
            let x = heads.narrow(1, 0, self.partial) * 0.0;
            let x = if self.stride == 2 { average_pool(&x, 2) } else { x };
            x.repeat([1, self.num_nodes as i64, 1, 1])
        };
        let mixed = terms.into_iter().reduce(|sum, term| sum + term).unwrap_or_else(zeros);
        Contribution { mixed: add_others(pass, mixed, &self.edges, self.partial), bypassed }
    }
}
