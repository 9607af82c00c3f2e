//! Mixed DARTS cell: two inputs, four nodes, every operation on every edge. Also the inputs of fixed cells.

use super::mixed_op::{CellShape, MixedOp};
use super::nodes::mix_nodes;
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
        let inputs = self.inputs.forward(pass, s0, s1);
        let nodes = mix_nodes(inputs, NUM_NODES, self.partial, self.k, |node, ready| {
            self.mixed[node].forward(pass, ready)
        });
        Tensor::cat(&nodes, 1)
    }
}
