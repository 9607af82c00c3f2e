//! Cell of an evaluation network: four nodes, each the sum of two operations.
//!
//! Shapes: N batch, I states that become ready together, C channels of the cell, H W (H' W' after the stride). As in
//! the mixed cell, out-edges of states that become ready together are computed together, and equal operations once.

use super::cell::Inputs;
use super::drop_path::DropPath;
use super::ops::{FactorizedReduce, Pass, cat, pool};
use super::params::{Specs, StatId};
use super::separable::{Branch, CHAINS, Separable};
use crate::space::genotype::EDGES_PER_NODE;
use crate::space::{NUM_INPUTS, NUM_NODES, Operation};
use std::ops::Range;
use tch::Tensor;

/// An edge of the cell: operation and input state. In the order of the genotype.
pub type Edge = (Operation, usize);

/// Shape of a fixed cell.
pub struct FixedCellShape<'a> {
    /// Index of the cell.
    pub number: usize,
    /// Edges, two per node.
    pub edges: &'a [Edge],
    /// States concatenated to the output.
    pub concat: &'a [usize],
    /// Channels of a node, C.
    pub channels: i64,
    /// Side of the maps of a node, pixels.
    pub side: i64,
    /// Whether the cell halves the resolution.
    pub reduction: bool,
    /// Whether the previous cell halves the resolution.
    pub reduction_prev: bool,
}

/// A fixed cell.
pub struct FixedCell {
    number: usize,
    inputs: Inputs,
    /// One per node: out-edges of the states that become ready before it: both inputs, or the previous node.
    ready: Vec<FixedOutEdges>,
    concat: Vec<usize>,
}

impl FixedCell {
    /// Declares the cell; `c_prev_prev`, `c_prev`: channels of the two previous cells.
    pub fn new(specs: &mut Specs, shape: &FixedCellShape, c_prev_prev: i64, c_prev: i64) -> FixedCell {
        let cell = format!("cells.{}", shape.number);
        specs.count_for(if shape.reduction { 2 * shape.side } else { shape.side });
        let inputs = Inputs::new(specs, &cell, (c_prev_prev, c_prev), shape.channels, shape.reduction_prev);
        specs.count_for(shape.side);
        let states = |node: usize| match node {
            0 => 0..NUM_INPUTS,
            _ => node + NUM_INPUTS - 1..node + NUM_INPUTS,
        };
        let ready =
            (0..NUM_NODES).map(|node| FixedOutEdges::new(specs, shape, &cell, states(node))).collect();
        FixedCell { number: shape.number, inputs, ready, concat: shape.concat.to_vec() }
    }

    /// Maps the outputs of the two previous cells to the output of this cell [N, concat*C, H', W'].
    pub fn forward(&self, pass: &Pass, drop_path: Option<&DropPath>, s0: &Tensor, s1: &Tensor) -> Tensor {
        let mut states = self.inputs.forward(pass, s0, s1);
        let mut sums: Vec<Option<Tensor>> = (0..NUM_NODES).map(|_| None).collect();
        for (node, out_edges) in self.ready.iter().enumerate() {
            for (edge, y) in out_edges.forward(pass, drop_path, self.number, &states) {
                let sum = &mut sums[edge / EDGES_PER_NODE];
                *sum = Some(match sum.take() {
                    Some(sum) => sum + y,
                    None => y,
                });
            }
            states.push(sums[node].take().expect("both edges of a node come from earlier states"));
        }
        cat(self.concat.iter().map(|&state| states[state].shallow_clone()).collect(), 1)
    }
}

/// An operation on a state, shared by several edges.
struct SharedOps<T> {
    /// Index among the states that become ready together.
    state: usize,
    what: T,
    edges: Vec<usize>,
}

/// Out-edges of the states that become ready together.
struct FixedOutEdges {
    states: Range<usize>,
    channels: i64,
    stride: i64,
    /// Pooling has no weights: computed once per state and kind.
    pools: Vec<SharedOps<(Operation, StatId)>>,
    identities: Vec<SharedOps<()>>,
    skips: Vec<SharedOps<FactorizedReduce>>,
    /// Chains of separable convolutions, with the edges of their results.
    chains: Vec<(Separable, Vec<usize>)>,
}

impl FixedOutEdges {
    fn new(specs: &mut Specs, shape: &FixedCellShape, cell: &str, states: Range<usize>) -> FixedOutEdges {
        let stride = if shape.reduction && states.start < NUM_INPUTS { 2 } else { 1 };
        let channels = shape.channels;
        let prefix = |edge: usize| format!("{cell}._ops.{edge}");
        let edges_of = |operation: Operation, state: usize| -> Vec<usize> {
            let from = states.start + state;
            let edges = shape.edges.iter().enumerate();
            edges.filter(|(_, edge)| **edge == (operation, from)).map(|(number, _)| number).collect()
        };
        let (mut pools, mut identities, mut skips) = (Vec::new(), Vec::new(), Vec::new());
        for state in 0..states.len() {
            for operation in [Operation::MaxPool3x3, Operation::AvgPool3x3] {
                let edges = edges_of(operation, state);
                if !edges.is_empty() {
                    let names =
                        edges.iter().map(|&edge| (format!("{}.op.1", prefix(edge)), 0..channels)).collect();
                    pools.push(SharedOps { state, what: (operation, specs.stat(channels, names)), edges });
                }
            }
            let edges = edges_of(Operation::SkipConnect, state);
            match stride {
                _ if edges.is_empty() => (),
                1 => identities.push(SharedOps { state, what: (), edges }),
                _ => {
                    let prefixes: Vec<String> = edges.iter().map(|&edge| prefix(edge)).collect();
                    let what = FactorizedReduce::new(specs, &prefixes, channels, channels);
                    skips.push(SharedOps { state, what, edges });
                }
            }
        }
        let mut chains = Vec::new();
        for chain in &CHAINS {
            let (mut branches, mut all) = (Vec::new(), Vec::new());
            for (operation, kernel) in chain.kernels {
                let edges: Vec<Vec<usize>> =
                    (0..states.len()).map(|state| edges_of(operation, state)).collect();
                let times: Vec<usize> = edges.iter().map(Vec::len).collect();
                let edges = edges.concat();
                if !edges.is_empty() {
                    branches.push(Branch {
                        kernel,
                        times,
                        prefixes: edges.iter().map(|&edge| prefix(edge)).collect(),
                        // Results are not summed, because each may be dropped separately.
                        positions: (all.len()..all.len() + edges.len()).collect(),
                    });
                    all.extend(edges);
                }
            }
            if !branches.is_empty() {
                chains.push((Separable::new(specs, branches, all.len(), channels, chain, stride), all));
            }
        }
        FixedOutEdges { states, channels, stride, pools, identities, skips, chains }
    }

    /// Maps `states`, all states of the cell so far, to the results of the edges, [N, C, H', W'] each.
    fn forward(
        &self,
        pass: &Pass,
        drop_path: Option<&DropPath>,
        cell: usize,
        states: &[Tensor],
    ) -> Vec<(usize, Tensor)> {
        let states = &states[self.states.clone()];
        let mut results: Vec<(usize, Tensor)> = Vec::new();
        for SharedOps { state, what: (operation, stat), edges } in &self.pools {
            let pooled = pass.batch_norm(&pool(*operation, &states[*state], self.stride), *stat, None);
            results.extend(edges.iter().map(|&edge| (edge, pooled.shallow_clone())));
        }
        for SharedOps { state, what, edges } in &self.skips {
            let y = what.forward(pass, &states[*state].relu(), None);
            results.extend(edges.iter().copied().zip(y.split(self.channels, 1)));
        }
        if !self.chains.is_empty() {
            let rectified = cat(states.iter().map(Tensor::shallow_clone).collect(), 1).relu();
            for (chain, edges) in &self.chains {
                let y = chain.forward(pass, &rectified, None);
                results.extend(edges.iter().copied().zip(y.split(self.channels, 1)));
            }
        }
        if let Some(drop_path) = drop_path {
            for (edge, y) in &mut results {
                *y = drop_path.apply(cell, *edge, y);
            }
        }
        for SharedOps { state, edges, .. } in &self.identities {
            results.extend(edges.iter().map(|&edge| (edge, states[*state].shallow_clone())));
        }
        results
    }
}
