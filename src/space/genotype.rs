//! Genotype of a DARTS architecture: selected from eta, as JSON, and in the one-line notation of the DARTS code.

use super::{Mask, NUM_INPUTS, NUM_NODES, Operation, argmax, edge};
use crate::space::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Edges of a cell: two (operation name, input state) per node, the one with the larger weight first.
pub type Edges = Vec<(String, usize)>;

/// A DARTS architecture. JSON: its fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genotype {
    /// Edges of the normal cells.
    pub normal: Edges,
    /// States concatenated to the output of a normal cell.
    pub normal_concat: Vec<usize>,
    /// Edges of the reduction cells.
    pub reduce: Edges,
    /// States concatenated to the output of a reduction cell.
    pub reduce_concat: Vec<usize>,
}

/// Edges into a node of the evaluation network.
pub const EDGES_PER_NODE: usize = 2;

impl Genotype {
    /// Selects the architecture with the largest scores. `operations`: the columns; `scores`: one [E, O] table for the
    /// normal and one for the reduction cells, pruned entries 0. Keeps for every node the two input edges with the largest
    /// score, each with the operation of the largest score; `none` and `noise` do not count; the first of equal ones.
    /// Source: `genotype` of the published DARTS code.
    pub fn from_scores(operations: &[Operation], scores: &[Vec<Vec<f64>>]) -> Genotype {
        let columns: Vec<usize> =
            (0..operations.len()).filter(|&column| operations[column].is_in_genotypes()).collect();
        let cell = |table: &Vec<Vec<f64>>| -> Edges {
            let best = |edge: usize| {
                let scores: Vec<f64> = columns.iter().map(|&column| table[edge][column]).collect();
                columns[argmax(&scores)]
            };
            (0..NUM_NODES)
                .flat_map(|node| {
                    let mut inputs: Vec<usize> = (0..node + NUM_INPUTS).collect();
                    let weight = |from: &usize| {
                        let edge = edge(node, *from);
                        table[edge][best(edge)]
                    };
                    inputs.sort_by(|a, b| weight(b).total_cmp(&weight(a))); // stable: the first of equal ones
                    inputs.truncate(EDGES_PER_NODE);
                    inputs.into_iter().map(move |from| (from, edge(node, from))).collect::<Vec<_>>()
                })
                .map(|(from, edge)| (operations[best(edge)].name().to_string(), from))
                .collect()
        };
        let concat: Vec<usize> = (NUM_INPUTS..NUM_INPUTS + NUM_NODES).collect();
        Genotype {
            normal: cell(&scores[0]),
            normal_concat: concat.clone(),
            reduce: cell(&scores[1]),
            reduce_concat: concat,
        }
    }

    /// Returns the notation of the DARTS code: `Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6),
    /// ...)`.
    pub fn to_line(&self) -> String {
        let edges = |edges: &Edges| {
            let items: Vec<String> =
                edges.iter().map(|(operation, from)| format!("('{operation}', {from})")).collect();
            format!("[{}]", items.join(", "))
        };
        let concat = |states: &[usize]| match (states.first(), states.last()) {
            (Some(first), Some(last)) if last + 1 - first == states.len() => {
                format!("range({first}, {})", last + 1)
            }
            _ => format!("{states:?}"),
        };
        format!(
            "Genotype(normal={}, normal_concat={}, reduce={}, reduce_concat={})",
            edges(&self.normal),
            concat(&self.normal_concat),
            edges(&self.reduce),
            concat(&self.reduce_concat)
        )
    }

    /// Parses JSON and checks that every edge exists in the space and that outputs consist of nodes.
    pub fn from_json(text: &str) -> Result<Genotype> {
        let genotype: Genotype =
            serde_json::from_str(text).map_err(|source| Error::Genotype(source.to_string()))?;
        for (table, edges, concat) in [
            ("normal", &genotype.normal, &genotype.normal_concat),
            ("reduce", &genotype.reduce, &genotype.reduce_concat),
        ] {
            let nodes = NUM_INPUTS..NUM_INPUTS + NUM_NODES;
            let ascending = concat.windows(2).all(|pair| pair[0] < pair[1]);
            if concat.is_empty() || !ascending || !concat.iter().all(|state| nodes.contains(state)) {
                return Err(Error::Genotype(format!(
                    "{table}_concat: expected some of the nodes 2, 3, 4, 5 in ascending order, found {concat:?}"
                )));
            }
            if edges.len() != NUM_NODES * EDGES_PER_NODE {
                return Err(Error::Genotype(format!(
                    "{table}: expected {} edges, found {}",
                    NUM_NODES * EDGES_PER_NODE,
                    edges.len()
                )));
            }
            for (index, (operation, from)) in edges.iter().enumerate() {
                let node = index / EDGES_PER_NODE;
                if Operation::from_name(operation).is_none() {
                    return Err(Error::Genotype(format!("{table}: unknown operation '{operation}'")));
                }
                if *from >= node + NUM_INPUTS {
                    return Err(Error::Genotype(format!(
                        "{table}: node {node}: expected an input state from 0 to {}, found {from}",
                        node + NUM_INPUTS - 1
                    )));
                }
            }
        }
        Ok(genotype)
    }
}

/// Computes the mean mixing weights on the host: softmax of eta over the kept operations, 0 elsewhere.
/// `eta`: `[E][O]`. Source: `process_step_matrix(.., 'softmax', mask)` of the published code.
pub fn mean_weights(eta: &[Vec<f64>], mask: &Mask) -> Vec<Vec<f64>> {
    eta.iter()
        .enumerate()
        .map(|(edge, row)| {
            let kept = |column: usize| mask.keeps(edge, column);
            let peak = (0..row.len()).filter(|&o| kept(o)).map(|o| row[o]).fold(f64::NEG_INFINITY, f64::max);
            let exp: Vec<f64> =
                (0..row.len()).map(|o| if kept(o) { (row[o] - peak).exp() } else { 0.0 }).collect();
            let sum: f64 = exp.iter().sum();
            exp.into_iter().map(|value| value / sum).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights() -> Vec<Vec<Vec<f64>>> {
        let mut table = vec![vec![0.1; 7]; 14];
        table[edge(0, 0)][3] = 0.5;
        table[edge(0, 1)][4] = 0.6;
        table[edge(3, 4)][6] = 0.9;
        vec![table.clone(), table]
    }

    #[test]
    fn edges_are_ordered_by_weight() {
        let genotype = Genotype::from_scores(&Operation::DARTS, &weights());
        assert_eq!(genotype.normal[0], ("sep_conv_5x5".into(), 1));
        assert_eq!(genotype.normal[1], ("sep_conv_3x3".into(), 0));
        assert_eq!(genotype.normal[2], ("max_pool_3x3".into(), 0));
        assert_eq!(genotype.normal[3], ("max_pool_3x3".into(), 1));
        assert_eq!(genotype.normal[6], ("dil_conv_5x5".into(), 4));
    }

    #[test]
    fn text_and_json_are_read_back() {
        let genotype = Genotype::from_scores(&Operation::DARTS, &weights());
        let line = genotype.to_line();
        assert!(line.starts_with("Genotype(normal=[('sep_conv_5x5', 1), ('sep_conv_3x3', 0), "), "{line}");
        assert!(line.contains("normal_concat=range(2, 6), reduce=["), "{line}");
        let json = serde_json::to_string(&genotype).unwrap();
        assert_eq!(Genotype::from_json(&json).unwrap(), genotype);
        let wrong = json.replacen("[\"sep_conv_5x5\",1]", "[\"sep_conv_5x5\",2]", 1);
        assert!(
            Genotype::from_json(&wrong)
                .unwrap_err()
                .to_string()
                .contains("expected an input state from 0 to 1, found 2")
        );
        let wrong = json.replacen("sep_conv_5x5", "sep_conv_9x9", 1);
        assert!(Genotype::from_json(&wrong).unwrap_err().to_string().contains("sep_conv_9x9"));
        for concat in ["[]", "[2,3,4,6]", "[1,2]", "[3,2]", "[2,2]"] {
            let wrong = json.replacen("[2,3,4,5]", concat, 1);
            let error = Genotype::from_json(&wrong).unwrap_err().to_string();
            assert!(error.contains("normal_concat"), "{concat}: {error}");
        }
    }

    #[test]
    fn mean_weights_are_a_softmax_over_kept_operations() {
        let mut mask = Mask::full(1, 3);
        mask.0[0][1] = false;
        let weights = mean_weights(&[vec![0.0, 9.0, (3.0f64).ln()]], &mask);
        assert_eq!(weights[0][1], 0.0);
        assert!((weights[0][0] - 0.25).abs() < 1e-15 && (weights[0][2] - 0.75).abs() < 1e-15);
    }
}
