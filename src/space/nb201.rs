//! Architectures of NAS-Bench-201: one operation on each of the six edges of the cell, as a string such as
//! `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|none~2|`.
//!
//! Source: NAS-Bench-201 (ICLR 2020); order of operations and edges as in DrNAS.

use super::{Operation, SearchSpace, argmax};
use crate::space::error::{Error, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Names of the operations, in the order of eta's columns.
pub const OPERATIONS: [&str; 5] = {
    let [a, b, c, d, e] = Operation::NAS_BENCH_201;
    [a.name(), b.name(), c.name(), d.name(), e.name()]
};
/// Edges of the cell as (node, input state), in the order of eta's rows; state 0 is the input of the cell.
pub const EDGES: [(usize, usize); 6] = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)];
/// Number of architectures in the space: every operation on every edge.
pub const NUM_ARCHITECTURES: usize = OPERATIONS.len().pow(EDGES.len() as u32);
/// The architecture reported in the DrNAS paper, the CIFAR-100 optimum of the benchmark.
pub const DRNAS: Architecture = Architecture([3, 3, 3, 1, 3, 3]);

/// Operation of each edge, as an index into [`OPERATIONS`] (below 5), in the order of [`EDGES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Architecture(pub [usize; 6]);

impl Architecture {
    /// Returns the code of this architecture, `0..NUM_ARCHITECTURES`: its operations as base-5 digits, the first edge
    /// most significant. It is not the index in the benchmark, which is arbitrary (see `nb201::Table`).
    pub fn code(self) -> usize {
        self.0.iter().fold(0, |code, operation| code * OPERATIONS.len() + operation)
    }

    /// Returns the architecture with a code, `None` from `NUM_ARCHITECTURES` on.
    pub fn from_code(code: usize) -> Option<Architecture> {
        let mut operations = [0; EDGES.len()];
        let mut rest = code;
        for operation in operations.iter_mut().rev() {
            *operation = rest % OPERATIONS.len();
            rest /= OPERATIONS.len();
        }
        (rest == 0).then_some(Architecture(operations))
    }

    /// Returns all architectures in the order of their codes.
    pub fn all() -> impl Iterator<Item = Architecture> {
        (0..NUM_ARCHITECTURES).filter_map(Architecture::from_code)
    }

    /// Returns the arg max of each row, the first of equal ones (as `TinyNetwork.genotype` of the published code).
    /// `operations`: the columns; `scores`: `[E][O]`, such as mixing weights or their mean, pruned entries 0.
    pub fn from_scores(operations: &[Operation], scores: &[Vec<f64>]) -> Architecture {
        assert_eq!(scores.len(), EDGES.len(), "rows of a NAS-Bench-201 table");
        Architecture(std::array::from_fn(|edge| {
            let row = &scores[edge];
            assert_eq!(row.len(), operations.len(), "columns of a NAS-Bench-201 table");
            operations[argmax(row)].number(SearchSpace::NasBench201).expect("an operation of the benchmark")
        }))
    }
}

/// Data set of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
pub enum Dataset {
    /// CIFAR-10.
    #[value(name = "cifar10")]
    #[serde(rename = "cifar10")]
    Cifar10,
    /// CIFAR-100.
    #[value(name = "cifar100")]
    #[serde(rename = "cifar100")]
    Cifar100,
    /// The first 120 classes of ImageNet at 16 x 16 pixels.
    #[value(name = "imagenet16-120")]
    #[serde(rename = "imagenet16-120")]
    ImageNet16,
}

impl Dataset {
    /// All data sets in the order in which papers report them.
    pub const ALL: [Dataset; 3] = [Dataset::Cifar10, Dataset::Cifar100, Dataset::ImageNet16];

    /// Returns the name on the command line and in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Dataset::Cifar10 => "cifar10",
            Dataset::Cifar100 => "cifar100",
            Dataset::ImageNet16 => "imagenet16-120",
        }
    }

    /// Returns the name for display.
    pub fn title(self) -> &'static str {
        match self {
            Dataset::Cifar10 => "CIFAR-10",
            Dataset::Cifar100 => "CIFAR-100",
            Dataset::ImageNet16 => "ImageNet16-120",
        }
    }

    /// Returns the column of the test accuracy after 200 epochs, percent, mean over the trained seeds.
    pub fn column(self) -> &'static str {
        match self {
            Dataset::Cifar10 => "c10_test_200",
            Dataset::Cifar100 => "c100_test_200",
            Dataset::ImageNet16 => "in16_test_200",
        }
    }

    /// Returns whether a column contains accuracies on this data set, such as "c10_valid_12".
    pub fn owns(self, column: &str) -> bool {
        let prefix = self.column().split('_').next().unwrap_or_default();
        column
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with("_test") || rest.starts_with("_valid"))
    }

    /// Returns the data set with a name.
    pub fn from_name(name: &str) -> Option<Dataset> {
        Dataset::ALL.into_iter().find(|dataset| dataset.name() == name)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, &(node, from)) in EDGES.iter().enumerate() {
            if from == 0 {
                f.write_str(if node == 1 { "|" } else { "+|" })?;
            }
            write!(f, "{}~{from}|", OPERATIONS[self.0[index]])?;
        }
        Ok(())
    }
}

impl FromStr for Architecture {
    type Err = Error;

    /// Parses the string; the edges of a node must be in order, as the benchmark writes them.
    fn from_str(text: &str) -> Result<Architecture> {
        let invalid = |what: String| Error::Nb201 { text: text.chars().take(200).collect(), what };
        let nodes: Vec<&str> = text.trim().split('+').collect();
        if nodes.len() != 3 {
            return Err(invalid(format!("expected 3 nodes joined by '+', found {}", nodes.len())));
        }
        let mut operations = Vec::with_capacity(EDGES.len());
        for (node, part) in (1..).zip(nodes) {
            let inside = part.strip_prefix('|').and_then(|part| part.strip_suffix('|'));
            let edges: Vec<&str> = inside
                .ok_or_else(|| invalid(format!("node {node}: expected '|' at both ends")))?
                .split('|')
                .collect();
            if edges.len() != node {
                return Err(invalid(format!("node {node}: expected {node} edges, found {}", edges.len())));
            }
            for (from, edge) in edges.into_iter().enumerate() {
                let name = edge.strip_suffix(&format!("~{from}")).ok_or_else(|| {
                    invalid(format!("node {node}: expected an operation and '~{from}', found '{edge}'"))
                })?;
                let operation = OPERATIONS.iter().position(|operation| *operation == name);
                operations.push(operation.ok_or_else(|| {
                    invalid(format!("unknown operation '{name}', expected one of {}", OPERATIONS.join(", ")))
                })?);
            }
        }
        Ok(Architecture(operations.try_into().expect("1 + 2 + 3 edges were counted")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|";

    #[test]
    fn text_and_code_are_invertible() {
        assert_eq!(TEXT.parse::<Architecture>().unwrap(), DRNAS);
        assert_eq!(DRNAS.to_string(), TEXT);
        let all: Vec<Architecture> = Architecture::all().collect();
        assert_eq!(all.len(), NUM_ARCHITECTURES);
        for (code, architecture) in all.into_iter().enumerate() {
            assert_eq!(architecture.code(), code);
            assert_eq!(architecture.to_string().parse::<Architecture>().unwrap(), architecture);
        }
        assert_eq!(Architecture::from_code(NUM_ARCHITECTURES), None);
    }

    #[test]
    fn invalid_architectures_are_refused() {
        for (text, what) in [
            ("", "expected 3 nodes"),
            ("|none~0|+|none~0|none~1|", "expected 3 nodes"),
            (&TEXT.replace("|+|n", "+|n"), "node 1: expected '|'"),
            (&TEXT.replace("|nor_conv_3x3~1|+", "|+"), "node 2: expected 2 edges, found 1"),
            (&TEXT.replace("|+|skip", "|none~2|+|skip"), "node 2: expected 2 edges, found 3"),
            (&TEXT.replace("skip_connect~0", "skip_connect~1"), "node 3: expected an operation and '~0'"),
            (&TEXT.replace("skip_connect", "sep_conv_9x9"), "unknown operation 'sep_conv_9x9'"),
            (&TEXT.replace("skip_connect~0", ""), "node 3: expected an operation and '~0', found ''"),
        ] {
            let error = text.parse::<Architecture>().unwrap_err().to_string();
            assert!(error.contains(what), "{what} is not in {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn the_first_of_equal_weights_is_selected() {
        let mut weights = vec![vec![0.2; 5]; 6];
        weights[3] = vec![0.0, 0.3, 0.1, 0.3, 0.3];
        assert_eq!(
            Architecture::from_scores(&Operation::NAS_BENCH_201, &weights),
            Architecture([0, 0, 0, 1, 0, 0])
        );
    }
}
