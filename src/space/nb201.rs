//! An architecture of NAS-Bench-201: one operation on each of the six edges of the cell, and its text
//! `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|none~2|`.
//!
//! Source: NAS-Bench-201 (ICLR 2020); order of operations and edges as DrNAS has them.

use super::{Operation, heaviest};
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
/// Edges of the cell as (node, state it comes from), in the order of eta's rows; state 0 is the cell's input.
pub const EDGES: [(usize, usize); 6] = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)];
/// Architectures of the space: every operation on every edge.
pub const NUM_ARCHITECTURES: usize = OPERATIONS.len().pow(EDGES.len() as u32);
/// The architecture that the DrNAS paper reports: the CIFAR-100 optimum of the benchmark.
pub const DRNAS: Architecture = Architecture([3, 3, 3, 1, 3, 3]);

/// The operation of each edge, as an index into [`OPERATIONS`], edges as in [`EDGES`]. Indices are below 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Architecture(pub [usize; 6]);

impl Architecture {
    /// The number of this architecture, `0..NUM_ARCHITECTURES`: its operations read as digits, the first edge's the
    /// highest. Not the index that the benchmark gives it, which follows no rule (see `nb201::Table`).
    pub fn code(self) -> usize {
        self.0.iter().fold(0, |code, operation| code * OPERATIONS.len() + operation)
    }

    /// The architecture of that code; none from `NUM_ARCHITECTURES` on.
    pub fn from_code(code: usize) -> Option<Architecture> {
        let mut operations = [0; EDGES.len()];
        let mut rest = code;
        for operation in operations.iter_mut().rev() {
            *operation = rest % OPERATIONS.len();
            rest /= OPERATIONS.len();
        }
        (rest == 0).then_some(Architecture(operations))
    }

    /// Every architecture, by code.
    pub fn all() -> impl Iterator<Item = Architecture> {
        (0..NUM_ARCHITECTURES).filter_map(Architecture::from_code)
    }

    /// The arg max of each row, of equals the first (as in `TinyNetwork.genotype` of the published code). `weights`:
    /// `[E][O]`, mixing weights or their mean, pruned entries 0.
    pub fn from_weights(weights: &[Vec<f64>]) -> Architecture {
        assert_eq!(weights.len(), EDGES.len(), "rows of a NAS-Bench-201 table");
        Architecture(std::array::from_fn(|edge| {
            let row = &weights[edge];
            assert_eq!(row.len(), OPERATIONS.len(), "columns of a NAS-Bench-201 table");
            heaviest(row)
        }))
    }
}

/// What the benchmark's networks were trained on.
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
    /// The three, in the order in which papers report them.
    pub const ALL: [Dataset; 3] = [Dataset::Cifar10, Dataset::Cifar100, Dataset::ImageNet16];

    /// The name on the command line and in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Dataset::Cifar10 => "cifar10",
            Dataset::Cifar100 => "cifar100",
            Dataset::ImageNet16 => "imagenet16-120",
        }
    }

    /// The name that people write.
    pub fn title(self) -> &'static str {
        match self {
            Dataset::Cifar10 => "CIFAR-10",
            Dataset::Cifar100 => "CIFAR-100",
            Dataset::ImageNet16 => "ImageNet16-120",
        }
    }

    /// The table's column of the test accuracy after 200 epochs, percent, mean over the trained seeds.
    pub fn column(self) -> &'static str {
        match self {
            Dataset::Cifar10 => "c10_test_200",
            Dataset::Cifar100 => "c100_test_200",
            Dataset::ImageNet16 => "in16_test_200",
        }
    }

    /// Whether a column of that name holds accuracies of this data set: "c10_valid_12", "in16_test_12".
    pub fn owns(self, column: &str) -> bool {
        let prefix = self.column().split('_').next().unwrap_or_default();
        column
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with("_test") || rest.starts_with("_valid"))
    }

    /// The data set of that name.
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

    /// Reads the text; the edges of a node have to stand in order, as the benchmark writes them.
    fn from_str(text: &str) -> Result<Architecture> {
        let bad = |what: String| Error::Nb201 { text: text.chars().take(200).collect(), what };
        let nodes: Vec<&str> = text.trim().split('+').collect();
        if nodes.len() != 3 {
            return Err(bad(format!("3 nodes, joined by '+', expected, {} found", nodes.len())));
        }
        let mut operations = Vec::with_capacity(EDGES.len());
        for (node, part) in (1..).zip(nodes) {
            let inside = part.strip_prefix('|').and_then(|part| part.strip_suffix('|'));
            let edges: Vec<&str> = inside
                .ok_or_else(|| bad(format!("node {node}: '|' expected at both ends")))?
                .split('|')
                .collect();
            if edges.len() != node {
                return Err(bad(format!("node {node}: {node} edges expected, {} found", edges.len())));
            }
            for (from, edge) in edges.into_iter().enumerate() {
                let name = edge.strip_suffix(&format!("~{from}")).ok_or_else(|| {
                    bad(format!("node {node}: an operation and '~{from}' expected, '{edge}' found"))
                })?;
                let operation = OPERATIONS.iter().position(|operation| *operation == name);
                operations.push(operation.ok_or_else(|| {
                    bad(format!("unknown operation '{name}', known are {}", OPERATIONS.join(", ")))
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
    fn text_and_code_go_there_and_back() {
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
    fn what_is_no_architecture_is_refused_with_the_place() {
        for (text, what) in [
            ("", "3 nodes"),
            ("|none~0|+|none~0|none~1|", "3 nodes"),
            (&TEXT.replace("|+|n", "+|n"), "node 1: '|' expected"),
            (&TEXT.replace("|nor_conv_3x3~1|+", "|+"), "node 2: 2 edges expected, 1 found"),
            (&TEXT.replace("|+|skip", "|none~2|+|skip"), "node 2: 2 edges expected, 3 found"),
            (&TEXT.replace("skip_connect~0", "skip_connect~1"), "node 3: an operation and '~0' expected"),
            (&TEXT.replace("skip_connect", "sep_conv_9x9"), "unknown operation 'sep_conv_9x9'"),
            (&TEXT.replace("skip_connect~0", ""), "node 3: an operation and '~0' expected, '' found"),
        ] {
            let error = text.parse::<Architecture>().unwrap_err().to_string();
            assert!(error.contains(what), "{what} is not in {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn the_first_of_equals_is_taken() {
        let mut weights = vec![vec![0.2; 5]; 6];
        weights[3] = vec![0.0, 0.3, 0.1, 0.3, 0.3];
        assert_eq!(Architecture::from_weights(&weights), Architecture([0, 0, 0, 1, 0, 0]));
    }
}
