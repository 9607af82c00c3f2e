//! Mixed cell of NAS-Bench-201: one input, three nodes, every operation on every edge; all out-edges of a state are
//! computed at once.
//!
//! Shapes: N batch, C channels of a state, c = C/k of them computed, M nodes with an edge from the state, H W.
//! Pooling has no batch norm here and all strides are 1; `none` costs nothing. Source: `search_cells.py` of the
//! published code, `NAS201SearchCell_PartialChannel`.

use super::mixing::Entries;
use super::nodes::{Bypassed, Contribution, add_others, mix_nodes};
use super::ops::{Pass, average_pool, cat, conv, pointwise, stack};
use super::params::{Init, Specs, StatId, WeightId};
use super::separable::Slots;
use crate::space::nb201::EDGES;
use crate::space::{Mask, Operation, SearchSpace};
use tch::Tensor;

/// Nodes with inputs; state 0 is the input of the cell.
const NUM_NODES: usize = 3;

/// ReLU, convolution and batch norm of one kernel size on the out-edges that keep it (the ReLU is applied to the
/// state).
struct Convs {
    /// Width of the kernel, 1 or 3.
    kernel: i64,
    /// [edges*c, c, K, K].
    weight: WeightId,
    stat: StatId,
    slots: Slots,
    entries: Entries,
}

/// Out-edges of one state.
struct Nb201OutEdges {
    num_nodes: usize,
    /// Operations without weights: the state itself (skip_connect), the pooled state.
    plain: Vec<Operation>,
    /// M times `plain`.
    plain_entries: Entries,
    convs: Vec<Convs>,
    /// First column of the M edges.
    edges: Entries,
}

/// A mixed cell.
pub struct Nb201Cell {
    /// By state: the input, then every node except the last.
    edges: Vec<Nb201OutEdges>,
    channels: i64,
    k: i64,
}

impl Nb201Cell {
    /// Declares the cell with the published name `name` (such as `cells.3`) and `channels` channels.
    pub fn new(
        specs: &mut Specs,
        name: &str,
        (channels, k): (i64, i64),
        (operations, mask): (&[Operation], &Mask),
    ) -> Nb201Cell {
        let out_edges = |from| Nb201OutEdges::new(specs, name, channels / k, (operations, mask), from);
        let edges = (0..NUM_NODES).map(out_edges).collect();
        Nb201Cell { edges, channels, k }
    }

    /// Maps `x` [N, C, H, W] to the last node, of the same shape.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Tensor {
        let partial = self.channels / self.k;
        let mut nodes = mix_nodes(vec![x.shallow_clone()], NUM_NODES, partial, self.k, |state, ready| {
            // Split instead of narrow: the gradients of narrow views would be assembled channels first.
            let mut parts = ready[0].split_with_sizes([partial, self.channels - partial], 1);
            let bypass = parts.pop().filter(|bypass| bypass.size()[1] > 0);
            let out = &self.edges[state];
            let weights = || pass.mixing.has_edge_weights().then(|| pass.mixing.edge_weights(&out.edges));
            Contribution {
                mixed: out.forward(pass, &parts[0], partial),
                bypassed: bypass.map(|bypass| Bypassed::sum(&[bypass], weights())),
            }
        });
        nodes.pop().expect("a cell has nodes")
    }
}

impl Nb201OutEdges {
    fn new(
        specs: &mut Specs,
        cell: &str,
        partial: i64,
        (operations, mask): (&[Operation], &Mask),
        from: usize,
    ) -> Nb201OutEdges {
        // (position among the M nodes, edge)
        let out: Vec<(usize, usize)> =
            (0..EDGES.len()).filter(|&edge| EDGES[edge].1 == from).enumerate().collect();
        let column = |operation: Operation| operations.iter().position(|&other| other == operation);
        let keeping = |operation: Operation| -> Vec<(usize, usize)> {
            let Some(column) = column(operation) else { return Vec::new() };
            out.iter().copied().filter(|&(_, edge)| mask.keeps(edge, column)).collect()
        };
        let entries = |places: Vec<(usize, usize)>| Entries { table: 0, places };
        let prefix = |edge: usize, operation: Operation| {
            let (node, from) = EDGES[edge];
            let number = operation.number(SearchSpace::NasBench201).expect("an operation with tensors");
            format!("{cell}.edges.{node}<-{from}.{number}")
        };
        let mut plain = vec![Operation::SkipConnect, Operation::AvgPool3x3];
        plain.retain(|&operation| !keeping(operation).is_empty());
        let columns: Vec<usize> = plain.iter().filter_map(|&operation| column(operation)).collect();
        let places = out.iter().flat_map(|&(_, edge)| columns.iter().map(move |&column| (edge, column)));
        let plain_entries = entries(places.collect());

        let mut convs = Vec::new();
        for (operation, kernel) in [(Operation::NorConv1x1, 1), (Operation::NorConv3x3, 3)] {
            let kept = keeping(operation);
            let Some(column) = column(operation).filter(|_| !kept.is_empty()) else { continue };
            let prefixes: Vec<String> = kept.iter().map(|&(_, edge)| prefix(edge, operation)).collect();
            let rows = kept.len() as i64 * partial;
            convs.push(Convs {
                kernel,
                weight: specs.weight(
                    &[rows, partial, kernel, kernel],
                    Init::FanIn(partial * kernel * kernel),
                    stack(&prefixes, partial, ".op.1.weight"),
                ),
                stat: specs.stat(rows, stack(&prefixes, partial, ".op.2")),
                slots: Slots::new(kept.iter().map(|&(position, _)| position).collect(), out.len()),
                entries: entries(kept.iter().map(|&(_, edge)| (edge, column)).collect()),
            });
        }
        let edges = entries(out.iter().map(|&(_, edge)| (edge, 0)).collect());
        Nb201OutEdges { num_nodes: out.len(), plain, plain_entries, convs, edges }
    }

    /// Maps `x` [N, c, H, W] to the weighted sums on the out-edges [N, M*c, H, W], nearest node first.
    fn forward(&self, pass: &Pass, x: &Tensor, partial: i64) -> Tensor {
        let mut terms = Vec::new();
        if !self.plain.is_empty() {
            let plain = self.plain.iter().map(|operation| match operation {
                Operation::SkipConnect => x.shallow_clone(),
                _ => average_pool(x, 1),
            });
            let matrix = pass.mixing.matrix(&self.plain_entries, self.num_nodes, partial);
            terms.push(pointwise(&cat(plain.collect(), 1), &matrix.to_kind(x.kind()), 1));
        }
        if !self.convs.is_empty() {
            let rectified = x.relu();
            for Convs { kernel, weight, stat, slots, entries } in &self.convs {
                let weight = &pass.weight(*weight);
                let y = match kernel {
                    1 => pointwise(&rectified, weight, 1),
                    _ => conv(&rectified, weight, 1, 1, 1, 1),
                };
                let y = pass.batch_norm(&y, *stat, Some(&pass.mixing.scale(entries, partial)));
                terms.push(slots.sum(&y, partial));
            }
        }
        // No out-edge keeps an operation other than `none`: zeros through which the state and theta still get
        // gradients.
        let zeros = || {
            let weight = pass.mixing.scale(&self.edges, partial).view([1, -1, 1, 1]) * 0.0;
            x.repeat([1, self.num_nodes as i64, 1, 1]) * weight.to_kind(x.kind())
        };
        let mixed = terms.into_iter().reduce(|sum, term| sum + term).unwrap_or_else(zeros);
        add_others(pass, mixed, &self.edges, partial)
    }
}
