//! Mixing weights from a softmax: DARTS, PC-DARTS, and with Gumbel noise SNAS and GDAS.
//!
//! Shapes: E edges, O operations; alpha, noise, masks (0 or 1) and the result are all [E, O]; beta is `[E]`.

use rand::Rng;
use rand_distr::{Distribution, Gumbel};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Returns the softmax of every row over the kept operations; pruned entries are 0.
pub fn softmax(alpha: &Tensor, mask: &Tensor) -> Tensor {
    alpha.masked_fill(&mask.eq(0.0), f64::NEG_INFINITY).softmax(-1, alpha.kind())
}

/// Returns dL/d logits of a softmax `p`, given `grad` = dL/dp: p (grad - sum(p grad)).
pub fn softmax_grad(p: &Tensor, grad: &Tensor) -> Tensor {
    p * (grad - (p * grad).sum_dim_intlist(-1, true, None::<Kind>))
}

/// Returns softmax((alpha + g) / tau) over the kept operations, with `gumbel` noise g: a sample of the concrete
/// distribution. Source: SNAS (ICLR 2019), equation 5; adding log-softmax(alpha) instead gives the same.
pub fn concrete(alpha: &Tensor, gumbel: &Tensor, tau: f64, mask: &Tensor) -> Tensor {
    softmax(&((alpha + gumbel) / tau), mask)
}

/// Draws standard Gumbel noise of `shape` in double precision on the host.
pub fn gumbel(shape: &[i64], random: &mut impl Rng) -> Tensor {
    let standard = Gumbel::new(0.0, 1.0).expect("a positive scale");
    let count: i64 = shape.iter().product();
    let values: Vec<f64> = standard.sample_iter(random).take(count as usize).collect();
    Tensor::from_slice(&values).view(shape)
}

/// Returns the softmax of beta over the input edges of every node. `nodes`: the edges of each node.
/// Source: PC-DARTS (ICLR 2020), equation 3.
pub fn edge_softmax(beta: &Tensor, nodes: &[Range<i64>]) -> Tensor {
    let node =
        |edges: &Range<i64>| beta.narrow(0, edges.start, edges.end - edges.start).softmax(0, beta.kind());
    Tensor::cat(&nodes.iter().map(node).collect::<Vec<_>>(), 0)
}

/// Returns dL/d beta, given the result `y` of [`edge_softmax`] and `grad` = dL/dy.
pub fn edge_softmax_grad(y: &Tensor, grad: &Tensor, nodes: &[Range<i64>]) -> Tensor {
    let of = |tensor: &Tensor, edges: &Range<i64>| tensor.narrow(0, edges.start, edges.end - edges.start);
    let node = |edges: &Range<i64>| softmax_grad(&of(y, edges), &of(grad, edges));
    Tensor::cat(&nodes.iter().map(node).collect::<Vec<_>>(), 0)
}
