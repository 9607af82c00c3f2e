//! Cell: the mixed cell of the search: two inputs, four nodes, every operation on every edge. And the inputs of any cell.

use super::mixed_op::{CellPlace, MixedOp};
use super::ops::{FactorizedReduce, Pass, ReluConvNorm};
use super::params::Specs;
use crate::space::{NUM_INPUTS, NUM_NODES};
use tch::Tensor;

/// How the older input reaches the cell's channels and resolution.
enum Preprocess {
    Conv(ReluConvNorm),
    /// When the cell before was a reduction, the older input has twice the resolution.
    Reduce(FactorizedReduce),
}

/// The two inputs of a cell, brought to its channels and one resolution.
pub struct Inputs {
    preprocess0: Preprocess,
    preprocess1: ReluConvNorm,
}

impl Inputs {
    /// Declares them for the cell `cell` of `c` channels. `c_prev_prev`, `c_prev`: channels of the two cells before;
    /// `reduction_prev`: whether the cell before halved the resolution.
    pub fn new(
        specs: &mut Specs,
        cell: &str,
        (c_prev_prev, c_prev): (i64, i64),
        c: i64,
        reduction_prev: bool,
    ) -> Inputs {
        let older = format!("{cell}.preprocess0");
        let preprocess0 = if reduction_prev {
            Preprocess::Reduce(FactorizedReduce::new(specs, &[older], c_prev_prev, c))
        } else {
            Preprocess::Conv(ReluConvNorm::new(specs, &older, c_prev_prev, c))
        };
        let preprocess1 = ReluConvNorm::new(specs, &format!("{cell}.preprocess1"), c_prev, c);
        Inputs { preprocess0, preprocess1 }
    }

    /// Outputs of the two cells before to states 0 and 1, [N, C, H, W].
    pub fn forward(&self, pass: &Pass, s0: &Tensor, s1: &Tensor) -> Vec<Tensor> {
        let s0 = match &self.preprocess0 {
            Preprocess::Conv(conv) => conv.forward(pass, s0),
            Preprocess::Reduce(reduce) => reduce.forward(pass, &s0.relu(), None),
        };
        vec![s0, self.preprocess1.forward(pass, s1)]
    }
}

/// A mixed cell.
pub struct Cell {
    inputs: Inputs,
    /// One per node: the out-edges of the states that become ready before it, both inputs or the node before.
    mixed: Vec<MixedOp>,
    k: i64,
    partial: i64,
}

impl Cell {
    /// Declares the cell at `place`; `c_prev_prev`, `c_prev`: channels of its inputs; `reduction_prev`: whether the
    /// cell before halved the resolution.
    pub fn new(
        specs: &mut Specs,
        place: &CellPlace,
        c_prev_prev: i64,
        c_prev: i64,
        reduction_prev: bool,
    ) -> Cell {
        let c = place.channels;
        let inputs = Inputs::new(specs, &place.cell, (c_prev_prev, c_prev), c, reduction_prev);
        let ready =
            |node: usize| if node == 0 { 0..NUM_INPUTS } else { node + NUM_INPUTS - 1..node + NUM_INPUTS };
        let mixed = (0..NUM_NODES).map(|node| MixedOp::new(specs, place, ready(node))).collect();
        Cell { inputs, mixed, k: place.k, partial: c / place.k }
    }

    /// Outputs of the two cells before to this cell's output [N, 4*C, H', W'].
    pub fn forward(&self, pass: &Pass, s0: &Tensor, s1: &Tensor) -> Tensor {
        let nodes =
            mix_nodes(self.inputs.forward(pass, s0, s1), NUM_NODES, self.partial, self.k, |node, ready| {
                self.mixed[node].forward(pass, ready)
            });
        Tensor::cat(&nodes, 1)
    }
}

/// The nodes of a mixed cell, in order. `mix(node, ready)`: what the states that became ready before `node` give to all
/// nodes that they feed: sums of operations [N, nodes*c, H', W'], nearest node first, and the channels that bypass them
/// [N, C - c, H', W'] (`None` for k = 1). `partial`: c.
pub(super) fn mix_nodes(
    inputs: Vec<Tensor>,
    num_nodes: usize,
    partial: i64,
    k: i64,
    mix: impl Fn(usize, &[Tensor]) -> (Tensor, Option<Tensor>),
) -> Vec<Tensor> {
    let mut ready = inputs;
    let mut nodes = Vec::with_capacity(num_nodes);
    // Sums over the edges into the nodes that are not complete, [N, nodes*c, H', W']; a state feeds all of them.
    let mut mixed: Option<Tensor> = None;
    let mut bypassed: Option<Tensor> = None;
    for node in 0..num_nodes {
        let (out, bypass) = mix(node, &ready);
        let sum = plus(mixed.take(), out);
        bypassed = bypass.map(|bypass| plus(bypassed.take(), bypass));
        // The nearest node has all its inputs.
        let open = sum.size()[1] - partial;
        let done = if open == 0 {
            sum
        } else {
            let mut parts = sum.split_with_sizes([partial, open], 1);
            mixed = parts.pop();
            parts.remove(0)
        };
        let complete = match &bypassed {
            None => done,
            Some(bypassed) => shuffle(&done, bypassed, k),
        };
        nodes.push(complete.shallow_clone());
        ready = vec![complete];
    }
    nodes
}

/// Concatenates mixed [N, c, H, W] and bypassed [N, C - c, H, W] channels and shuffles them with k groups: channel
/// g*c + i goes to i*k + g. The shuffle is linear, so it follows the sum over a node's inputs, once per node. It is
/// done in the layout of the input (channels last, when they are).
fn shuffle(mixed: &Tensor, bypassed: &Tensor, k: i64) -> Tensor {
    let x = Tensor::cat(&[mixed, bypassed], 1);
    let (n, channels, h, w) = x.size4().expect("four dimensions");
    if x.stride()[1] == 1 {
        x.permute([0, 2, 3, 1])
            .view([n, h, w, k, channels / k])
            .transpose(3, 4)
            .reshape([n, h, w, channels])
            .permute([0, 3, 1, 2])
    } else {
        x.view([n, k, channels / k, h, w]).transpose(1, 2).reshape([n, channels, h, w])
    }
}

/// `sum + term`, or the term when there is no sum yet.
fn plus(sum: Option<Tensor>, term: Tensor) -> Tensor {
    match sum {
        Some(sum) => sum + term,
        None => term,
    }
}
