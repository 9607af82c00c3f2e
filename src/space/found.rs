//! Result of a search in any space.

use super::genotype::Genotype;
use super::nb201::Architecture;
use super::{NUM_EDGES, Operation, SearchSpace};
use crate::space::error::{Error, Result};
use serde_json::json;

/// An architecture found by a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Two DARTS cells.
    Darts(Genotype),
    /// One NAS-Bench-201 cell.
    NasBench201(Architecture),
}

impl Found {
    /// Selects the architecture with the largest scores. `operations`: the columns; `scores`: one `[E][O]` per table, such
    /// as the mean mixing weights, pruned entries 0.
    pub fn from_scores(space: SearchSpace, operations: &[Operation], scores: &[Vec<Vec<f64>>]) -> Found {
        match space {
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => {
                debug_assert_eq!(scores[0].len(), NUM_EDGES);
                Found::Darts(Genotype::from_scores(operations, scores))
            }
            SearchSpace::NasBench201 => Found::NasBench201(Architecture::from_scores(operations, &scores[0])),
        }
    }

    /// Returns the notation of the original code: `Genotype(normal=...)`, or `|nor_conv_3x3~0|+|...`.
    pub fn to_line(&self) -> String {
        match self {
            Found::Darts(genotype) => genotype.to_line(),
            Found::NasBench201(architecture) => architecture.to_string(),
        }
    }

    /// Returns JSON: the fields of a genotype, or `{"space": "nas-bench-201", "architecture": "|..."}`.
    pub fn to_json(&self) -> Result<String> {
        let text = match self {
            Found::Darts(genotype) => serde_json::to_string_pretty(genotype),
            Found::NasBench201(architecture) => serde_json::to_string_pretty(
                &json!({ "space": "nas-bench-201", "architecture": architecture.to_string() }),
            ),
        };
        text.map_err(|error| Error::Genotype(error.to_string()))
    }

    /// Returns the architecture if the space is NAS-Bench-201.
    pub fn architecture(&self) -> Option<Architecture> {
        match self {
            Found::Darts(_) => None,
            Found::NasBench201(architecture) => Some(*architecture),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::nb201::DRNAS;
    use super::*;

    #[test]
    fn both_spaces_have_text_and_json() {
        let mut rows = vec![vec![0.1; 5]; 6];
        for (row, operation) in rows.iter_mut().zip(DRNAS.0) {
            row[operation] = 0.6;
        }
        let found = Found::from_scores(SearchSpace::NasBench201, &Operation::NAS_BENCH_201, &[rows]);
        assert_eq!(found.architecture(), Some(DRNAS));
        let read: serde_json::Value = serde_json::from_str(&found.to_json().unwrap()).unwrap();
        assert_eq!(read["architecture"], found.to_line());
        assert!(found.to_line().starts_with("|nor_conv_3x3~0|+|"));

        let table = vec![vec![0.1; 7]; 14];
        let found = Found::from_scores(SearchSpace::DartsCifar, &Operation::DARTS, &[table.clone(), table]);
        assert!(found.to_line().starts_with("Genotype(") && found.architecture().is_none());
        assert!(Genotype::from_json(&found.to_json().unwrap()).is_ok());
    }
}
