//! Mixing weights drawn for one pass, and how their gradient returns to the architecture parameters.
//!
//! Shapes: T tables, E edges, O operations.

use super::dirichlet::ThetaSample;
use super::softmax::{edge_softmax_grad, softmax_grad};
use crate::net::mixing::{MixingWeights, SampledPath};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Mixing weights of one pass, one table per kind of cell, with what their gradient needs.
pub struct Sample {
    /// The mixing weights, constant.
    pub weights: MixingWeights,
    origin: Origin,
}

/// How the gradient of the mixing weights returns to the parameters.
enum Origin {
    /// The pathwise derivative of a Dirichlet sample, per table.
    Dirichlet(Vec<ThetaSample>),
    /// The derivative of softmax(... / tau), and of the softmax over the input edges of every node.
    Softmax { tau: f64, nodes: Vec<Range<i64>> },
    /// The derivative of softmax(... / tau) = q, one per table, at weights that are one-hot.
    StraightThrough { q: Vec<Tensor>, tau: f64 },
    /// The derivative of the log-probability of the operations drawn from `p`, one per table, times their credit.
    Categorical { p: Vec<Tensor> },
    /// The weights do not depend on the parameters.
    Constant,
}

impl Sample {
    /// Creates a sample of the Dirichlet distribution, one `ThetaSample` per table.
    pub fn dirichlet(tables: Vec<ThetaSample>) -> Sample {
        let theta = tables.iter().map(|sample| sample.theta.shallow_clone()).collect();
        Sample { weights: MixingWeights::of(theta), origin: Origin::Dirichlet(tables) }
    }

    /// Creates a softmax of temperature `tau`: `operations`, one [E, O] per table, and with edge weights `edges`, one
    /// `[E]` per table, whose `nodes` list the input edges of each node.
    pub fn softmax(operations: Vec<Tensor>, tau: f64, edges: Vec<Tensor>, nodes: Vec<Range<i64>>) -> Sample {
        let weights = MixingWeights { edges, ..MixingWeights::of(operations) };
        Sample { weights, origin: Origin::Softmax { tau, nodes } }
    }

    /// Creates one-hot weights `z` of the operations of `path`, which came from a Gumbel-softmax `q` of temperature `tau`.
    /// Source: GDAS (CVPR 2019).
    pub fn straight_through(z: Vec<Tensor>, path: SampledPath, q: Vec<Tensor>, tau: f64) -> Sample {
        let weights = MixingWeights { path: Some(path), ..MixingWeights::of(z) };
        Sample { weights, origin: Origin::StraightThrough { q, tau } }
    }

    /// Creates one-hot weights `z` of the operations of `path`, which were drawn with the probabilities `p`. Source: DSNAS
    /// (CVPR 2020).
    pub fn categorical(z: Vec<Tensor>, path: SampledPath, p: Vec<Tensor>) -> Sample {
        let weights = MixingWeights { path: Some(path), ..MixingWeights::of(z) };
        Sample { weights, origin: Origin::Categorical { p } }
    }

    /// Creates weights that do not depend on the parameters.
    pub fn constant(operations: Vec<Tensor>) -> Sample {
        Sample { weights: MixingWeights::of(operations), origin: Origin::Constant }
    }

    /// Adds `factor` times the gradient of the parameters to `sums`, given `grads`, the gradients with respect to
    /// [`MixingWeights::tensors`]. `values`, `sums`: one tensor per parameter.
    pub fn add_grads(&self, values: &[Tensor], grads: &[Tensor], factor: f64, sums: &[Tensor]) {
        let add = |parameter: usize, table: usize, grad: Tensor| {
            let grad = if factor == 1.0 { grad } else { grad * factor };
            let _ = sums[parameter].get(table as i64).g_add_(&grad);
        };
        let (operations, edges) = grads.split_at(self.weights.operations.len());
        match &self.origin {
            Origin::Dirichlet(tables) => {
                for (table, (sample, grad)) in tables.iter().zip(operations).enumerate() {
                    add(0, table, sample.grad_eta(&values[0].get(table as i64), grad));
                }
            }
            Origin::Softmax { tau, nodes } => {
                for (table, (p, grad)) in self.weights.operations.iter().zip(operations).enumerate() {
                    let grad = softmax_grad(p, grad);
                    add(0, table, if *tau == 1.0 { grad } else { grad / *tau });
                }
                for (table, (y, grad)) in self.weights.edges.iter().zip(edges).enumerate() {
                    add(1, table, edge_softmax_grad(y, grad, nodes));
                }
            }
            Origin::StraightThrough { q, tau } => {
                for (table, (q, grad)) in q.iter().zip(operations).enumerate() {
                    add(0, table, softmax_grad(q, grad) / *tau);
                }
            }
            Origin::Categorical { p } => {
                for (table, ((p, z), grad)) in
                    p.iter().zip(&self.weights.operations).zip(operations).enumerate()
                {
                    let credit = (z * grad).sum_dim_intlist(-1, true, None::<Kind>);
                    add(0, table, (z - p) * credit);
                }
            }
            Origin::Constant => {}
        }
    }
}
