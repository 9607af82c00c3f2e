//! Mixed DARTS cell: two inputs, four nodes, every operation on every edge. Also the inputs of fixed cells.

use super::mixed_op::{CellShape, MixedOp};
use super::ops::{FactorizedReduce, Pass, ReluConvNorm};
use super::params::Specs;
use crate::space::{NUM_INPUTS, NUM_NODES};
use tch::Tensor;

/// Adapts the older input to the channels and resolution of the cell.
enum Preprocess {
    Conv(ReluConvNorm),
    /// After a reduction cell, the older input has twice the resolution.
    Reduce(FactorizedReduce),
}

/// Adapts both inputs of a cell to its channels and to the same resolution.
pub struct Inputs {
    preprocess0: Preprocess,
    preprocess1: ReluConvNorm,
}

impl Inputs {
    /// Declares the inputs of the cell named `cell` with `c` channels. `c_prev_prev`, `c_prev`: channels of the two
    /// previous cells; `reduction_prev`: whether the previous cell halved the resolution.
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

    /// Maps the outputs of the two previous cells to states 0 and 1, [N, C, H, W].
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
    /// One per node: out-edges of the states that become ready before it: both inputs, or the previous node.
    mixed: Vec<MixedOp>,
    k: i64,
    partial: i64,
}

impl Cell {
    /// Declares the cell; `c_prev_prev`, `c_prev`: channels of its inputs; `reduction_prev`: whether the previous cell
    /// halved the resolution.
    pub fn new(
        specs: &mut Specs,
        shape: &CellShape,
        c_prev_prev: i64,
        c_prev: i64,
        reduction_prev: bool,
    ) -> Cell {
        let c = shape.channels;
        let inputs = Inputs::new(specs, &shape.name, (c_prev_prev, c_prev), c, reduction_prev);
        let ready =
            |node: usize| if node == 0 { 0..NUM_INPUTS } else { node + NUM_INPUTS - 1..node + NUM_INPUTS };
        let mixed = (0..NUM_NODES).map(|node| MixedOp::new(specs, shape, ready(node))).collect();
        Cell { inputs, mixed, k: shape.k, partial: c / shape.k }
    }

    /// Maps the outputs of the two previous cells to the output of this cell [N, 4*C, H', W'].
    pub fn forward(&self, pass: &Pass, s0: &Tensor, s1: &Tensor) -> Tensor {
        let nodes =
            mix_nodes(self.inputs.forward(pass, s0, s1), NUM_NODES, self.partial, self.k, |node, ready| {
                self.mixed[node].forward(pass, ready)
            });
        Tensor::cat(&nodes, 1)
    }
}

/// Computes the nodes of a mixed cell in order. `mix(node, ready)` returns the contributions of the states that became
/// ready before `node` to all nodes with edges from them: sums of operations [N, nodes*c, H', W'], nearest node first,
/// and the bypassed channels [N, C - c, H', W'] (`None` for k = 1). `partial`: c.
pub(super) fn mix_nodes(
    inputs: Vec<Tensor>,
    num_nodes: usize,
    partial: i64,
    k: i64,
    mix: impl Fn(usize, &[Tensor]) -> (Tensor, Option<Tensor>),
) -> Vec<Tensor> {
    let mut ready = inputs;
    let mut nodes = Vec::with_capacity(num_nodes);
    // Sums over the edges into incomplete nodes, [N, nodes*c, H', W']; a state contributes to all of them.
    let mut mixed: Option<Tensor> = None;
    let mut bypassed: Option<Tensor> = None;
    for node in 0..num_nodes {
        let (out, bypass) = mix(node, &ready);
        let sum = plus(mixed.take(), out);
        bypassed = bypass.map(|bypass| plus(bypassed.take(), bypass));
        // The nearest node is complete.
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
/// g*c + i goes to i*k + g. The shuffle is linear, so it is applied once per node, after the sum over its inputs. It
/// preserves the memory format.
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

/// Returns `sum + term`, or `term` if there is no sum yet.
fn plus(sum: Option<Tensor>, term: Tensor) -> Tensor {
    match sum {
        Some(sum) => sum + term,
        None => term,
    }
}
