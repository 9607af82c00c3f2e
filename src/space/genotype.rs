//! The chosen architecture as plain data: from eta, to JSON, to and from the one line that DARTS users paste.

use super::{Mask, NUM_INPUTS, NUM_NODES, Operation, SearchSpace, edge, heaviest};
use crate::space::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A cell's kept edges: per node two of (operation name, state it comes from), the heavier first.
pub type Edges = Vec<(String, usize)>;

/// An architecture. JSON form: the fields as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genotype {
    /// Edges of the normal cells.
    pub normal: Edges,
    /// States that a normal cell's output is made of.
    pub normal_concat: Vec<usize>,
    /// Edges of the reduction cells.
    pub reduce: Edges,
    /// States that a reduction cell's output is made of.
    pub reduce_concat: Vec<usize>,
}

/// Edges into a node of the final network.
pub const EDGES_PER_NODE: usize = 2;

impl Genotype {
    /// The architecture that the mean of the Dirichlet points at. `weights`: one [E, O] table for the normal, one for
    /// the reduction cells, pruned entries 0 (see [`mean_weights`]). Per node the two input edges with the largest
    /// weight, each with its heaviest operation; of equals the first.
    pub fn from_weights(space: SearchSpace, weights: &[Vec<Vec<f64>>]) -> Genotype {
        let cell = |table: &Vec<Vec<f64>>| -> Edges {
            let best = |edge: usize| heaviest(&table[edge]);
            (0..NUM_NODES)
                .flat_map(|node| {
                    let mut inputs: Vec<usize> = (0..node + NUM_INPUTS).collect();
                    let weight = |from: &usize| {
                        let edge = edge(node, *from);
                        table[edge][best(edge)]
                    };
                    inputs.sort_by(|a, b| weight(b).total_cmp(&weight(a))); // stable: first of equals
                    inputs.truncate(EDGES_PER_NODE);
                    inputs.into_iter().map(move |from| (from, edge(node, from))).collect::<Vec<_>>()
                })
                .map(|(from, edge)| (space.operations()[best(edge)].name().to_string(), from))
                .collect()
        };
        let concat: Vec<usize> = (NUM_INPUTS..NUM_INPUTS + NUM_NODES).collect();
        Genotype {
            normal: cell(&weights[0]),
            normal_concat: concat.clone(),
            reduce: cell(&weights[1]),
            reduce_concat: concat,
        }
    }

    /// The line that DARTS code holds: `Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), ...)`.
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

    /// Reads JSON, checking that every edge exists in the space and that outputs are made of nodes.
    pub fn from_json(text: &str) -> Result<Genotype> {
        let genotype: Genotype =
            serde_json::from_str(text).map_err(|source| Error::Genotype(source.to_string()))?;
        for (table, edges, concat) in [
            ("normal", &genotype.normal, &genotype.normal_concat),
            ("reduce", &genotype.reduce, &genotype.reduce_concat),
        ] {
            let nodes = NUM_INPUTS..NUM_INPUTS + NUM_NODES;
            let rising = concat.windows(2).all(|pair| pair[0] < pair[1]);
            if concat.is_empty() || !rising || !concat.iter().all(|state| nodes.contains(state)) {
                return Err(Error::Genotype(format!(
                    "{table}_concat = {concat:?}, expected some of the nodes 2, 3, 4, 5, rising"
                )));
            }
            if edges.len() != NUM_NODES * EDGES_PER_NODE {
                return Err(Error::Genotype(format!(
                    "{table} has {} edges, expected {}",
                    edges.len(),
                    NUM_NODES * EDGES_PER_NODE
                )));
            }
            for (index, (operation, from)) in edges.iter().enumerate() {
                let node = index / EDGES_PER_NODE;
                if Operation::from_name(operation).is_none() {
                    return Err(Error::Genotype(format!("{table} names an unknown operation '{operation}'")));
                }
                if *from >= node + NUM_INPUTS {
                    return Err(Error::Genotype(format!(
                        "{table}: node {node} cannot come from state {from}, only from 0..{}",
                        node + NUM_INPUTS - 1
                    )));
                }
            }
        }
        Ok(genotype)
    }
}

/// Weights of the mean architecture on the host: softmax of eta over the kept operations, 0 elsewhere.
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
    fn heavier_edge_first_and_first_of_equals() {
        let genotype = Genotype::from_weights(SearchSpace::DartsImagenet, &weights());
        assert_eq!(genotype.normal[0], ("sep_conv_5x5".into(), 1));
        assert_eq!(genotype.normal[1], ("sep_conv_3x3".into(), 0));
        assert_eq!(genotype.normal[2], ("max_pool_3x3".into(), 0));
        assert_eq!(genotype.normal[3], ("max_pool_3x3".into(), 1));
        assert_eq!(genotype.normal[6], ("dil_conv_5x5".into(), 4));
    }

    #[test]
    fn text_forms() {
        let genotype = Genotype::from_weights(SearchSpace::DartsImagenet, &weights());
        let line = genotype.to_line();
        assert!(line.starts_with("Genotype(normal=[('sep_conv_5x5', 1), ('sep_conv_3x3', 0), "), "{line}");
        assert!(line.contains("normal_concat=range(2, 6), reduce=["), "{line}");
        let json = serde_json::to_string(&genotype).unwrap();
        assert_eq!(Genotype::from_json(&json).unwrap(), genotype);
        let wrong = json.replacen("[\"sep_conv_5x5\",1]", "[\"sep_conv_5x5\",2]", 1);
        assert!(Genotype::from_json(&wrong).unwrap_err().to_string().contains("cannot come from state 2"));
        let wrong = json.replacen("sep_conv_5x5", "sep_conv_9x9", 1);
        assert!(Genotype::from_json(&wrong).unwrap_err().to_string().contains("sep_conv_9x9"));
        for concat in ["[]", "[2,3,4,6]", "[1,2]", "[3,2]", "[2,2]"] {
            let wrong = json.replacen("[2,3,4,5]", concat, 1);
            let error = Genotype::from_json(&wrong).unwrap_err().to_string();
            assert!(error.contains("normal_concat"), "{concat}: {error}");
        }
    }

    #[test]
    fn mean_is_a_softmax_over_the_kept() {
        let mut mask = Mask::full(1, 3);
        mask.0[0][1] = false;
        let weights = mean_weights(&[vec![0.0, 9.0, (3.0f64).ln()]], &mask);
        assert_eq!(weights[0][1], 0.0);
        assert!((weights[0][0] - 0.25).abs() < 1e-15 && (weights[0][2] - 0.75).abs() < 1e-15);
    }
}
