//! Edges that are restricted to some of the operations, as RobustDARTS' spaces S1 to S4 do.

use super::{Mask, NUM_INPUTS, NUM_NODES, Operation, SearchSpace, edge, nb201};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The operations of one edge: `normal 2<-0: skip_connect, dil_conv_5x5` (table, node, input state, operations). States
/// 0 and 1 are the inputs of a DARTS cell, 2 to 5 its nodes; in NAS-Bench-201, state 0 is the input and 1 to 3 the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct EdgeOperations {
    table: String,
    node: usize,
    from: usize,
    operations: Vec<Operation>,
}

impl fmt::Display for EdgeOperations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.operations.iter().map(|operation| operation.name()).collect();
        write!(f, "{} {}<-{}: {}", self.table, self.node, self.from, names.join(", "))
    }
}

impl From<EdgeOperations> for String {
    fn from(edge: EdgeOperations) -> String {
        edge.to_string()
    }
}

impl TryFrom<String> for EdgeOperations {
    type Error = String;

    fn try_from(text: String) -> Result<EdgeOperations, String> {
        let parts = || {
            let (place, operations) = text.split_once(':')?;
            let (table, ends) = place.trim().split_once(' ')?;
            let (node, from) = ends.trim().split_once("<-")?;
            Some((table, node.trim().parse().ok()?, from.trim().parse().ok()?, operations))
        };
        let (table, node, from, operations) = parts().ok_or_else(|| {
            format!("expected an edge such as \"normal 2<-0: skip_connect, dil_conv_5x5\", found \"{text}\"")
        })?;
        let operations: Result<_, String> =
            operations.split(',').map(|name| Operation::try_from(name.trim().to_owned())).collect();
        Ok(EdgeOperations { table: table.to_owned(), node, from, operations: operations? })
    }
}

impl EdgeOperations {
    /// Returns table and row of this edge in `space`.
    fn place(&self, space: SearchSpace) -> Option<(usize, usize)> {
        let table = space.tables().iter().position(|table| *table == self.table)?;
        let row = match space {
            SearchSpace::NasBench201 => {
                nb201::EDGES.iter().position(|&ends| ends == (self.node, self.from))?
            }
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => {
                let node = self.node.checked_sub(NUM_INPUTS).filter(|node| *node < NUM_NODES)?;
                (self.from < self.node).then(|| edge(node, self.from))?
            }
        };
        Some((table, row))
    }
}

/// Returns the operations of every edge, one mask per table: `operations` (the columns), or what `edges` leaves of them.
/// Errors: an edge that `space` does not have or that appears twice, an operation that is not a column.
pub fn masks(
    space: SearchSpace,
    operations: &[Operation],
    edges: &[EdgeOperations],
) -> Result<Vec<Mask>, String> {
    let mut masks = vec![Mask::full(space.num_edges(), operations.len()); space.tables().len()];
    let mut seen = Vec::new();
    for edge in edges {
        let place = edge.place(space).ok_or_else(|| format!("\"{edge}\": the space has no such edge"))?;
        if seen.contains(&place) {
            return Err(format!("\"{edge}\": this edge appears twice"));
        }
        seen.push(place);
        if let Some(other) = edge.operations.iter().find(|operation| !operations.contains(operation)) {
            return Err(format!("\"{edge}\": {} is not in model.operations", other.name()));
        }
        let row = &mut masks[place.0].0[place.1];
        for (kept, operation) in row.iter_mut().zip(operations) {
            *kept = edge.operations.contains(operation);
        }
    }
    Ok(masks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<EdgeOperations, String> {
        EdgeOperations::try_from(text.to_owned())
    }

    #[test]
    fn edges_are_read_and_written() {
        let text = "reduce 5<-4: sep_conv_3x3, noise";
        assert_eq!(parse(text).unwrap().to_string(), text);
        assert_eq!(parse(" reduce  5 <- 4 :sep_conv_3x3,noise").unwrap().to_string(), text);
        for (text, error) in [
            ("reduce 5<-4", "expected an edge such as"),
            ("5<-4: none", "expected an edge such as"),
            ("reduce 5<-4: sep_conv_9x9", "unknown operation 'sep_conv_9x9'"),
        ] {
            let found = parse(text).unwrap_err();
            assert!(found.contains(error), "{found}");
        }
    }

    #[test]
    fn masks_keep_the_operations_of_each_edge() {
        let space = SearchSpace::DartsCifar;
        let columns = [Operation::SepConv3x3, Operation::Noise, Operation::None];
        let of = |edges: &[&str]| {
            masks(space, &columns, &edges.iter().map(|text| parse(text).unwrap()).collect::<Vec<_>>())
        };
        let masks = of(&["normal 2<-1: noise", "reduce 5<-4: none, sep_conv_3x3"]).unwrap();
        assert_eq!(masks[0].0[1], [false, true, false]);
        assert_eq!(masks[1].0[13], [true, false, true]);
        assert_eq!(masks.iter().flat_map(|mask| mask.0.iter().flatten()).filter(|kept| !**kept).count(), 3);
        for (edges, error) in [
            (&["normal 2<-2: noise"][..], "no such edge"),
            (&["normal 6<-0: noise"], "no such edge"),
            (&["normal 1<-0: noise"], "no such edge"),
            (&["cell 2<-0: noise"], "no such edge"),
            (&["normal 2<-0: noise", "normal 2<-0: none"], "appears twice"),
            (&["normal 2<-0: skip_connect"], "skip_connect is not in model.operations"),
        ] {
            let found = of(edges).unwrap_err();
            assert!(found.contains(error), "{found}");
        }
        let cell = masks_of_nb201();
        assert_eq!(cell[0].0[4], [false, true, false, false, false]);
    }

    fn masks_of_nb201() -> Vec<Mask> {
        let edges = [parse("cell 3<-1: skip_connect").unwrap()];
        masks(SearchSpace::NasBench201, &Operation::NAS_BENCH_201, &edges).unwrap()
    }
}
