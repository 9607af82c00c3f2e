//! Tensors of a part of a network, as rows of the stacked tensors of the whole one.
//!
//! A pass over a path computes a network that keeps only the operations of the path. Its stacked tensors consist of rows of
//! those of the supernet, found by their published names.

use super::params::{Params, Pieces, Specs, StatId, WeightId};
use std::ops::Range;
use tch::Tensor;

/// Rows of one or more stacked tensors, in order.
struct Rows<Id>(Vec<(Id, Range<i64>)>);

/// Where the tensors of a part of a network are.
pub struct Gather {
    weights: Vec<Rows<WeightId>>,
    stats: Vec<Rows<StatId>>,
}

impl Gather {
    /// Finds the tensors of `specs` among those of `params`, which must contain all of them.
    pub fn new(specs: &Specs, params: &Params) -> Gather {
        let weights =
            specs.pieces_of_weights().map(|pieces| rows(pieces, |name| params.place_of_weight(name)));
        let stats = specs.pieces_of_stats().map(|pieces| rows(pieces, |name| params.place_of_stat(name)));
        Gather { weights: weights.collect(), stats: stats.collect() }
    }

    /// Returns weight `id` of the part, through which gradients reach the weights of the whole network.
    pub fn weight(&self, id: WeightId, params: &Params) -> Tensor {
        let rows = self.weights[id.0].0.iter().map(|(id, rows)| {
            let stacked = params.weight(*id);
            narrow(stacked, rows)
        });
        let mut rows: Vec<Tensor> = rows.collect();
        if rows.len() == 1 { rows.remove(0) } else { Tensor::cat(&rows, 0) }
    }

    /// Returns the running mean and variance of batch norm `id` of the part for local replica `replica`: views, in order.
    pub fn running(&self, id: StatId, params: &Params, replica: usize) -> Vec<(Tensor, Tensor)> {
        let views = self.stats[id.0].0.iter().map(|(id, rows)| {
            let (mean, var) = params.running(*id, replica);
            (narrow(mean, rows), narrow(var, rows))
        });
        views.collect()
    }
}

fn narrow(stacked: &Tensor, rows: &Range<i64>) -> Tensor {
    match stacked.size()[0] == rows.end - rows.start {
        true => stacked.shallow_clone(),
        false => stacked.narrow(0, rows.start, rows.end - rows.start),
    }
}

/// Returns the places of `pieces`. Several pieces may name the same rows (see [`Specs::stat`]); adjacent rows are joined.
fn rows<Id: Copy + PartialEq>(pieces: &Pieces, place: impl Fn(&str) -> (Id, Range<i64>)) -> Rows<Id> {
    let mut found: Vec<(Id, Range<i64>)> = Vec::new();
    let mut end = 0;
    for (name, rows) in pieces.iter() {
        if rows.start < end {
            continue;
        }
        end = rows.end;
        let (id, rows) = place(name);
        match found.last_mut() {
            Some((last, before)) if *last == id && before.end == rows.start => before.end = rows.end,
            _ => found.push((id, rows)),
        }
    }
    Rows(found)
}
