//! Search spaces: operations, edges, tables and masks.

pub mod edges;
pub(crate) mod error;
pub mod found;
pub mod genotype;
pub mod nb201;
pub mod published;

pub use error::{Error, Result};

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A search space. The two DARTS spaces share the cell and differ in stem and input size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchSpace {
    /// DARTS cells after three stride-2 convolutions (resolution / 8).
    DartsImagenet,
    /// DARTS cells after one 3x3 convolution.
    DartsCifar,
    /// NAS-Bench-201: one kind of cell with one input; residual blocks between three groups of cells.
    #[serde(rename = "nas-bench-201")]
    NasBench201,
}

/// An operation. Files and genotypes use its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "&str", try_from = "String")]
pub enum Operation {
    /// 3x3 max pooling, batch norm.
    MaxPool3x3,
    /// 3x3 average pooling, padding not counted; batch norm.
    AvgPool3x3,
    /// Identity; at stride 2 a factorized reduction.
    SkipConnect,
    /// Two separable 3x3 convolutions.
    SepConv3x3,
    /// Two separable 5x5 convolutions.
    SepConv5x5,
    /// One separable 3x3 convolution of dilation 2.
    DilConv3x3,
    /// One separable 5x5 convolution of dilation 2.
    DilConv5x5,
    /// No connection: zeros.
    None,
    /// Standard normal noise of the shape of the output (RobustDARTS, space S4).
    Noise,
    /// 1x1 convolution (NAS-Bench-201).
    NorConv1x1,
    /// 3x3 convolution (NAS-Bench-201).
    NorConv3x3,
}

impl Operation {
    /// The operations of DrNAS in the DARTS spaces, in the order of eta's columns. An operation with weights is
    /// numbered by its place in this list, whatever the columns of a search.
    pub const DARTS: [Operation; 7] = [
        Operation::MaxPool3x3,
        Operation::AvgPool3x3,
        Operation::SkipConnect,
        Operation::SepConv3x3,
        Operation::SepConv5x5,
        Operation::DilConv3x3,
        Operation::DilConv5x5,
    ];

    /// The NAS-Bench-201 operations, in the order of eta's columns. Pooling has no batch norm there.
    pub const NAS_BENCH_201: [Operation; 5] = [
        Operation::None,
        Operation::SkipConnect,
        Operation::NorConv1x1,
        Operation::NorConv3x3,
        Operation::AvgPool3x3,
    ];

    /// Returns the name used in papers and genotypes.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::MaxPool3x3 => "max_pool_3x3",
            Operation::AvgPool3x3 => "avg_pool_3x3",
            Operation::SkipConnect => "skip_connect",
            Operation::SepConv3x3 => "sep_conv_3x3",
            Operation::SepConv5x5 => "sep_conv_5x5",
            Operation::DilConv3x3 => "dil_conv_3x3",
            Operation::DilConv5x5 => "dil_conv_5x5",
            Operation::None => "none",
            Operation::Noise => "noise",
            Operation::NorConv1x1 => "nor_conv_1x1",
            Operation::NorConv3x3 => "nor_conv_3x3",
        }
    }

    /// Returns the DARTS operation with a name.
    pub fn from_name(name: &str) -> Option<Operation> {
        Operation::DARTS.into_iter().find(|operation| operation.name() == name)
    }

    /// Returns whether a genotype of the DARTS spaces can contain this operation.
    pub fn is_in_genotypes(self) -> bool {
        Operation::DARTS.contains(&self)
    }

    /// Returns the number in the published names of the tensors of this operation: its place among the operations of
    /// the published space. `None`: the operation has no tensors there.
    pub fn number(self, space: SearchSpace) -> Option<usize> {
        space.operations().iter().position(|&other| other == self)
    }
}

impl From<Operation> for &'static str {
    fn from(operation: Operation) -> &'static str {
        operation.name()
    }
}

impl TryFrom<String> for Operation {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Operation, String> {
        let all = [&Operation::DARTS[..], &[Operation::Noise], &Operation::NAS_BENCH_201].concat();
        let known = || all.iter().map(|operation| operation.name()).collect::<Vec<_>>().join(", ");
        all.iter()
            .copied()
            .find(|operation| operation.name() == name)
            .ok_or_else(|| format!("unknown operation '{name}', expected one of {}", known()))
    }
}

/// Inputs of a cell: the outputs of the two cells before it.
pub const NUM_INPUTS: usize = 2;
/// Nodes of a DARTS cell.
pub const NUM_NODES: usize = 4;
/// Edges of a DARTS cell: node i has one from each of the i + 2 preceding states.
pub const NUM_EDGES: usize = 14;

impl SearchSpace {
    /// Returns the name of the space.
    pub fn name(self) -> &'static str {
        match self {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => "DARTS",
            SearchSpace::NasBench201 => "NAS-Bench-201",
        }
    }

    /// Returns the names of the eta tables, one per kind of cell.
    pub fn tables(self) -> &'static [&'static str] {
        match self {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => &["normal", "reduce"],
            SearchSpace::NasBench201 => &["cell"],
        }
    }

    /// Returns the operations that DrNAS searches over, in the order of eta's columns.
    pub fn operations(self) -> &'static [Operation] {
        match self {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => &Operation::DARTS,
            SearchSpace::NasBench201 => &Operation::NAS_BENCH_201,
        }
    }

    /// Returns the stride of the 5x5 pooling in the auxiliary head of the evaluation network.
    pub fn auxiliary_stride(self) -> i64 {
        match self {
            SearchSpace::DartsImagenet => 2,
            SearchSpace::DartsCifar | SearchSpace::NasBench201 => 3,
        }
    }

    /// Returns the smallest map for an auxiliary head: its pooling must leave 2x2 pixels.
    pub fn smallest_auxiliary_side(self) -> i64 {
        5 + self.auxiliary_stride()
    }

    /// Returns the operations that a search can use.
    pub fn allowed_operations(self) -> Vec<Operation> {
        match self {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => {
                [&Operation::DARTS[..], &[Operation::None, Operation::Noise]].concat()
            }
            SearchSpace::NasBench201 => Operation::NAS_BENCH_201.to_vec(),
        }
    }

    /// Returns the input edges of every node, as rows of a table.
    pub fn nodes(self) -> Vec<Range<i64>> {
        let inputs: &[i64] = match self {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => &[2, 3, 4, 5],
            SearchSpace::NasBench201 => &[1, 2, 3],
        };
        let mut end = 0;
        let mut node = |inputs: &i64| {
            end += inputs;
            end - inputs..end
        };
        inputs.iter().map(&mut node).collect()
    }

    /// Returns the number of rows of a table.
    pub fn num_edges(self) -> usize {
        match self {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => NUM_EDGES,
            SearchSpace::NasBench201 => nb201::EDGES.len(),
        }
    }
}

/// Returns the edge from state `from` (0, 1: inputs; 2..: nodes) to node `node`; edges are numbered node by node.
pub fn edge(node: usize, from: usize) -> usize {
    debug_assert!(from < node + NUM_INPUTS);
    (0..node).map(|earlier| earlier + NUM_INPUTS).sum::<usize>() + from
}

/// Returns the nodes with an edge from state `from`: all from the nearest on.
pub fn nodes_fed_by(from: usize) -> Range<usize> {
    from.saturating_sub(NUM_INPUTS - 1)..NUM_NODES
}

/// Returns the column of the largest value, the first of equal ones.
fn argmax(row: &[f64]) -> usize {
    // `max_by` would return the last of equal ones.
    (0..row.len()).fold(0, |best, column| if row[column] > row[best] { column } else { best })
}

/// Kept operations, one row per edge; on the host, equal on all ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mask(pub Vec<Vec<bool>>);

impl Mask {
    /// Returns a mask that keeps everything.
    pub fn full(num_edges: usize, num_operations: usize) -> Mask {
        Mask(vec![vec![true; num_operations]; num_edges])
    }

    /// Returns whether `operation` (a column of eta) is kept on `edge`.
    pub fn keeps(&self, edge: usize, operation: usize) -> bool {
        self.0[edge][operation]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_numbered_node_by_node() {
        let all: Vec<usize> = (0..NUM_NODES)
            .flat_map(|node| (0..node + NUM_INPUTS).map(move |from| edge(node, from)))
            .collect();
        assert_eq!(all, (0..NUM_EDGES).collect::<Vec<_>>());
        let fed: usize = (0..NUM_INPUTS + NUM_NODES).map(|from| nodes_fed_by(from).len()).sum();
        assert_eq!(fed, NUM_EDGES);
        assert_eq!(nodes_fed_by(0), 0..4);
        assert_eq!(nodes_fed_by(1), 0..4);
        assert_eq!(nodes_fed_by(2), 1..4);
    }
}
