//! Tape: a forward pass split into segments, one per bucket, so that the backward pass returns the gradients of one
//! bucket at a time.
//!
//! A network is a chain of parts (stem, cells, head). A part maps the output states of the previous part (the images
//! for the first part) to its own output states; those of the last part are the results.
//!
//! A tape keeps all activations, or only the inputs of each segment: then segments are recomputed in the backward pass.
//! The last segment, which is differentiated first, is always kept.
//!
//! Shapes: N batch, K classes.

use super::mixing::{Cuts, Mixing, MixingWeights};
use super::params::Params;
use crate::net::error::Result;
use std::ops::Range;
use std::rc::Rc;
use tch::Tensor;

struct Segment {
    parts: Range<usize>,
    /// Leaves at which the segment begins, one per state; empty for the first segment.
    inputs: Vec<Tensor>,
    /// Output states with their graph, and the leaves of the mixing weights in it, if kept.
    outputs: Option<(Vec<Tensor>, Cuts)>,
}

/// Recomputes a part from its index and input states; the outputs are bit-identical to the first time.
type Recompute<'a> = Box<dyn Fn(usize, Vec<Tensor>) -> Vec<Tensor> + 'a>;

/// A forward pass, ready for differentiation segment by segment.
pub struct Tape<'a> {
    params: &'a Params,
    images: Tensor,
    segments: Vec<Segment>,
    results: Vec<Tensor>,
    recompute: Option<Recompute<'a>>,
    /// Mixing weights of the parts; none in networks without them.
    mixing: Option<Rc<Mixing>>,
}

impl<'a> Tape<'a> {
    /// Runs the parts of the segments of `params` in order; `part` gets the index of a part and its input states.
    pub fn record(
        params: &'a Params,
        images: Tensor,
        mixing: Option<Rc<Mixing>>,
        part: impl FnMut(usize, Vec<Tensor>) -> Vec<Tensor>,
    ) -> Tape<'a> {
        Tape::run(params, params.segments(), images, mixing, part, None)
    }

    /// The same, but keeps only the inputs of `segments`; `recompute` computes a part again, without repeating side
    /// effects.
    pub fn record_inputs(
        params: &'a Params,
        segments: &[Range<usize>],
        images: Tensor,
        mixing: Option<Rc<Mixing>>,
        part: impl FnMut(usize, Vec<Tensor>) -> Vec<Tensor>,
        recompute: impl Fn(usize, Vec<Tensor>) -> Vec<Tensor> + 'a,
    ) -> Tape<'a> {
        Tape::run(params, segments, images, mixing, part, Some(Box::new(recompute)))
    }

    fn run(
        params: &'a Params,
        segments: &[Range<usize>],
        images: Tensor,
        mixing: Option<Rc<Mixing>>,
        mut part: impl FnMut(usize, Vec<Tensor>) -> Vec<Tensor>,
        recompute: Option<Recompute<'a>>,
    ) -> Tape<'a> {
        let mut done = Vec::with_capacity(segments.len());
        let mut states = vec![images.shallow_clone()];
        for (number, parts) in segments.iter().enumerate() {
            // A segment begins at leaves that share the values of the previous segment.
            let leaf = |state: &Tensor| state.detach().set_requires_grad(true);
            let inputs: Vec<Tensor> =
                if parts.start == 0 { Vec::new() } else { states.iter().map(leaf).collect() };
            if parts.start > 0 {
                states = shared(&inputs);
            }
            let run =
                || parts.clone().fold(std::mem::take(&mut states), |states, number| part(number, states));
            let kept = recompute.is_none() || number + 1 == segments.len();
            let outputs = match kept {
                true => {
                    let (out, cuts) = cut(mixing.as_deref(), run);
                    states = shared(&out);
                    Some((out, cuts))
                }
                false => {
                    states = tch::no_grad(run);
                    None
                }
            };
            done.push(Segment { parts: parts.clone(), inputs, outputs });
        }
        Tape { params, images, segments: done, results: states, recompute, mixing }
    }

    /// Returns the output states of the last part.
    pub fn results(&self) -> &[Tensor] {
        &self.results
    }

    /// Returns the first result: logits [N, K].
    pub fn logits(&self) -> &Tensor {
        &self.results[0]
    }

    /// Differentiates `loss` (a scalar computed from the results). Yields for each segment its index (= its bucket) and
    /// its gradients, one per leaf of the bucket (zeros where the loss does not depend on it), last segment first.
    /// Segments are differentiated lazily, so that the caller can start the reduction of one segment before the next is
    /// computed.
    pub fn backward<'l>(mut self, loss: &'l Tensor) -> Backward<'a, 'l> {
        self.results.clear();
        Backward { tape: self, upstream: Upstream::Loss(loss), cuts: Vec::new() }
    }

    /// Returns the output states of a segment and the leaves of the mixing weights in it, recomputed if they were not
    /// kept.
    fn outputs(&self, segment: &mut Segment) -> (Vec<Tensor>, Cuts) {
        if let Some(outputs) = segment.outputs.take() {
            return outputs;
        }
        let recompute = self.recompute.as_ref().expect("segments that are not kept can be recomputed");
        let inputs = if segment.parts.start == 0 {
            vec![self.images.shallow_clone()]
        } else {
            shared(&segment.inputs)
        };
        let run = || segment.parts.clone().fold(inputs, |states, number| recompute(number, states));
        cut(self.mixing.as_deref(), run)
    }
}

/// Runs a part of the network on leaves instead of tensors derived from the mixing weights; see [`Mixing::cut`].
fn cut<T>(mixing: Option<&Mixing>, part: impl FnOnce() -> T) -> (T, Cuts) {
    match mixing {
        Some(mixing) => mixing.cut(part),
        None => (part(), Cuts::default()),
    }
}

/// The backward pass of a tape, segment by segment.
pub struct Backward<'a, 'l> {
    tape: Tape<'a>,
    upstream: Upstream<'l>,
    /// Leaves of the mixing weights with their gradients, of the segments done.
    cuts: Vec<(Cuts, Vec<Tensor>)>,
}

impl Backward<'_, '_> {
    fn gradients(&mut self, number: usize, mut segment: Segment) -> Result<Vec<Tensor>> {
        let (outputs, cuts) = self.tape.outputs(&mut segment);
        let leaves = self.tape.params.leaves(number);
        let (mut grads, of_cuts) =
            differentiate(outputs, &segment.inputs, leaves, cuts.leaves(), &mut self.upstream)?;
        if !of_cuts.is_empty() {
            self.cuts.push((cuts, of_cuts));
        }
        // The weights of a node without effect on the result. (PyTorch leaves them unchanged; here they decay.)
        for (grad, leaf) in grads.iter_mut().zip(leaves).filter(|(grad, _)| !grad.defined()) {
            *grad = leaf.zeros_like();
        }
        Ok(grads)
    }

    /// Returns the gradients of the mixing weights `theta` of this pass, in the order of [`MixingWeights::tensors`], after
    /// the last segment.
    pub fn theta_grads(self, theta: &MixingWeights) -> Result<Vec<Tensor>> {
        debug_assert!(self.tape.segments.is_empty(), "segments are left");
        let mixing = self.tape.mixing.as_deref().expect("a network with mixing weights");
        mixing.grads(&theta.tensors(), self.cuts)
    }
}

impl Iterator for Backward<'_, '_> {
    type Item = Result<(usize, Vec<Tensor>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let segment = self.tape.segments.pop()?;
        let number = self.tape.segments.len();
        Some(self.gradients(number, segment).map(|grads| (number, grads)))
    }
}

/// Starting point of the backward pass of a segment.
enum Upstream<'a> {
    /// The loss, for the last segment.
    Loss(&'a Tensor),
    /// Gradients of the output states of the segment.
    Grads(Vec<Tensor>),
}

/// Returns the gradients of `leaves` and of `cuts`, and sets `upstream` to the gradients of `inputs`. Frees the graph.
fn differentiate(
    outputs: Vec<Tensor>,
    inputs: &[Tensor],
    leaves: &[Tensor],
    cuts: &[Tensor],
    upstream: &mut Upstream,
) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let roots: Vec<Tensor> = match upstream {
        Upstream::Loss(loss) => vec![loss.shallow_clone()],
        // Autograd starts from ones, so the gradient of y * g starts with g. The head does not use the older state,
        // which therefore has no gradient.
        Upstream::Grads(grads) => {
            let used = outputs.iter().zip(grads.iter()).filter(|(_, grad)| grad.defined());
            used.map(|(output, grad)| output * grad).collect()
        }
    };
    let wanted: Vec<&Tensor> = leaves.iter().chain(cuts).chain(inputs).collect();
    let mut grads = Tensor::f_run_backward(&roots, &wanted, false, false)?;
    *upstream = Upstream::Grads(grads.split_off(leaves.len() + cuts.len()));
    let of_cuts = grads.split_off(leaves.len());
    Ok((grads, of_cuts))
}

fn shared(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(Tensor::shallow_clone).collect()
}

/// A forward pass for the gradients of the mixing weights alone.
pub struct ThetaTape<'a> {
    theta: &'a MixingWeights,
    pass: ThetaPass<'a>,
}

enum ThetaPass<'a> {
    /// A single graph from theta to the logits.
    Whole(Tensor),
    /// Cell by cell, if activations are not kept.
    Cells(Tape<'a>),
}

impl<'a> ThetaTape<'a> {
    /// Creates a tape of a single graph. `theta`: leaves that require gradients.
    pub fn whole(theta: &'a MixingWeights, logits: Tensor) -> ThetaTape<'a> {
        ThetaTape { theta, pass: ThetaPass::Whole(logits) }
    }

    /// Creates a tape from one that keeps the inputs of every part, with the mixing weights `theta`, which all parts except
    /// the first and the last use.
    pub fn cells(theta: &'a MixingWeights, tape: Tape<'a>) -> ThetaTape<'a> {
        ThetaTape { theta, pass: ThetaPass::Cells(tape) }
    }

    /// Returns the logits [N, K].
    pub fn logits(&self) -> &Tensor {
        match &self.pass {
            ThetaPass::Whole(logits) => logits,
            ThetaPass::Cells(tape) => tape.logits(),
        }
    }

    /// Returns the gradients of `loss` (a scalar computed from the logits) with respect to the mixing weights, in the
    /// order of [`MixingWeights::tensors`].
    pub fn backward(self, loss: &Tensor) -> Result<Vec<Tensor>> {
        let mut tape = match self.pass {
            ThetaPass::Whole(_) => {
                return Ok(Tensor::f_run_backward(&[loss], &self.theta.tensors(), false, false)?);
            }
            ThetaPass::Cells(tape) => tape,
        };
        tape.results.clear();
        let mut upstream = Upstream::Loss(loss);
        let mut parts: Vec<(Cuts, Vec<Tensor>)> = Vec::with_capacity(tape.segments.len());
        // The first part does not depend on theta.
        while tape.segments.len() > 1 {
            let mut segment = tape.segments.pop().expect("two segments at least");
            let (outputs, cuts) = tape.outputs(&mut segment);
            let (_, grads) = differentiate(outputs, &segment.inputs, &[], cuts.leaves(), &mut upstream)?;
            parts.push((cuts, grads));
        }
        tape.mixing.as_deref().expect("a supernet").grads(&self.theta.tensors(), parts)
    }
}
