//! Tape: a forward pass cut into segments, one per bucket, so that the backward pass yields one bucket's gradients at a
//! time. What every network is run with.
//!
//! A network is a chain of parts (stem, cells, head). A part turns the states that the part before handed on (the images
//! for the first one) into the states that it hands on; the last part hands on the results.
//!
//! A tape keeps all activations, or only the inputs of each segment: then a segment is computed again when its turn
//! comes. The last segment, whose turn comes at once, is always kept.
//!
//! Shapes: N batch, K classes.

use super::mixing::{Cuts, Mixing};
use super::params::Params;
use crate::net::error::Result;
use std::ops::Range;
use std::rc::Rc;
use tch::Tensor;

struct Segment {
    parts: Range<usize>,
    /// Leaves it begins at, one per state; empty for the first segment.
    inputs: Vec<Tensor>,
    /// The states it hands on, with their graph, if that is kept.
    outputs: Option<Vec<Tensor>>,
}

/// Computes a part again: number and what the part before handed on, to the very same outputs as the first time.
type Again<'a> = Box<dyn Fn(usize, Vec<Tensor>) -> Vec<Tensor> + 'a>;

/// A forward pass, ready to be differentiated segment by segment.
pub struct Tape<'a> {
    params: &'a Params,
    images: Tensor,
    segments: Vec<Segment>,
    results: Vec<Tensor>,
    again: Option<Again<'a>>,
}

impl<'a> Tape<'a> {
    /// Runs the parts of `params`' segments, in order: `part` gets a part's number and what the part before handed on.
    pub fn record(
        params: &'a Params,
        images: Tensor,
        part: impl FnMut(usize, Vec<Tensor>) -> Vec<Tensor>,
    ) -> Tape<'a> {
        Tape::run(params, params.segments(), images, part, None)
    }

    /// The same, but keeps only the inputs of `segments`; `again` computes a part once more, and must not change anything
    /// that the first time has changed.
    pub fn record_inputs(
        params: &'a Params,
        segments: &[Range<usize>],
        images: Tensor,
        part: impl FnMut(usize, Vec<Tensor>) -> Vec<Tensor>,
        again: impl Fn(usize, Vec<Tensor>) -> Vec<Tensor> + 'a,
    ) -> Tape<'a> {
        Tape::run(params, segments, images, part, Some(Box::new(again)))
    }

    fn run(
        params: &'a Params,
        segments: &[Range<usize>],
        images: Tensor,
        mut part: impl FnMut(usize, Vec<Tensor>) -> Vec<Tensor>,
        again: Option<Again<'a>>,
    ) -> Tape<'a> {
        let mut done = Vec::with_capacity(segments.len());
        let mut states = vec![images.shallow_clone()];
        for (number, parts) in segments.iter().enumerate() {
            // The cut: a segment begins at leaves that share the values of the segment before.
            let cut = |state: &Tensor| state.detach().set_requires_grad(true);
            let inputs: Vec<Tensor> =
                if parts.start == 0 { Vec::new() } else { states.iter().map(cut).collect() };
            if parts.start > 0 {
                states = shared(&inputs);
            }
            let mut run =
                || parts.clone().fold(std::mem::take(&mut states), |states, number| part(number, states));
            let kept = again.is_none() || number + 1 == segments.len();
            states = if kept { run() } else { tch::no_grad(run) };
            done.push(Segment { parts: parts.clone(), inputs, outputs: kept.then(|| shared(&states)) });
        }
        Tape { params, images, segments: done, results: states, again }
    }

    /// What the last part handed on.
    pub fn results(&self) -> &[Tensor] {
        &self.results
    }

    /// The first result: logits [N, K].
    pub fn logits(&self) -> &Tensor {
        &self.results[0]
    }

    /// Differentiates `loss` (a scalar made from the results): gives each segment's number (= its bucket) and gradients,
    /// one per leaf of the bucket (zeros where the loss does not depend on it), last segment first. A segment is
    /// differentiated when it is asked for, so that what is done with the one before goes on meanwhile.
    pub fn backward<'l>(mut self, loss: &'l Tensor) -> Backward<'a, 'l> {
        self.results.clear();
        Backward { tape: self, upstream: Upstream::Loss(loss) }
    }

    /// What a segment hands on, computed again if it was not kept.
    fn outputs(&self, segment: &mut Segment) -> Vec<Tensor> {
        if let Some(outputs) = segment.outputs.take() {
            return outputs;
        }
        let again = self.again.as_ref().expect("what is not kept can be computed again");
        let inputs = if segment.parts.start == 0 {
            vec![self.images.shallow_clone()]
        } else {
            shared(&segment.inputs)
        };
        segment.parts.clone().fold(inputs, |states, number| again(number, states))
    }
}

/// The backward pass of a tape, segment by segment.
pub struct Backward<'a, 'l> {
    tape: Tape<'a>,
    upstream: Upstream<'l>,
}

impl Backward<'_, '_> {
    fn gradients(&mut self, number: usize, mut segment: Segment) -> Result<Vec<Tensor>> {
        let outputs = self.tape.outputs(&mut segment);
        let leaves = self.tape.params.leaves(number);
        let mut grads = differentiate(outputs, &segment.inputs, leaves, &mut self.upstream)?;
        // Of a node that nothing is made of. (PyTorch leaves its weights as they are; here they decay.)
        for (grad, leaf) in grads.iter_mut().zip(leaves).filter(|(grad, _)| !grad.defined()) {
            *grad = leaf.zeros_like();
        }
        Ok(grads)
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

/// Where the backward pass of a segment starts.
enum Upstream<'a> {
    /// The last segment ends in the loss.
    Loss(&'a Tensor),
    /// Gradients of what the segment hands on.
    Grads(Vec<Tensor>),
}

/// The gradients of `leaves`; `upstream` becomes the gradients of `inputs`. The graph is gone afterwards.
fn differentiate(
    outputs: Vec<Tensor>,
    inputs: &[Tensor],
    leaves: &[Tensor],
    upstream: &mut Upstream,
) -> Result<Vec<Tensor>> {
    let roots: Vec<Tensor> = match upstream {
        Upstream::Loss(loss) => vec![loss.shallow_clone()],
        // Root and ones: autograd starts from ones, so d(y * g) starts the segment with g. The head does not use the older
        // state: no gradient comes back for it.
        Upstream::Grads(grads) => {
            let handed_on = outputs.iter().zip(grads.iter()).filter(|(_, grad)| grad.defined());
            handed_on.map(|(output, grad)| output * grad).collect()
        }
    };
    let wanted: Vec<&Tensor> = leaves.iter().chain(inputs).collect();
    let mut grads = Tensor::f_run_backward(&roots, &wanted, false, false)?;
    *upstream = Upstream::Grads(grads.split_off(leaves.len()));
    Ok(grads)
}

fn shared(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(Tensor::shallow_clone).collect()
}

/// A forward pass for the gradients of theta alone.
pub struct ThetaTape<'a> {
    theta: &'a [Tensor],
    pass: ThetaPass<'a>,
}

enum ThetaPass<'a> {
    /// One graph from theta to the logits.
    Whole(Tensor),
    /// Cell by cell, where activations are not kept.
    Cells(Tape<'a>, Rc<Mixing>),
}

impl<'a> ThetaTape<'a> {
    /// Of a pass with one graph. `theta`: leaves that require a gradient.
    pub fn whole(theta: &'a [Tensor], logits: Tensor) -> ThetaTape<'a> {
        ThetaTape { theta, pass: ThetaPass::Whole(logits) }
    }

    /// Of a tape that keeps the inputs of every single part. `mixing` was made from `theta` and is what the parts use, but
    /// for the first and the last one, which mix nothing.
    pub fn cells(theta: &'a [Tensor], tape: Tape<'a>, mixing: Rc<Mixing>) -> ThetaTape<'a> {
        ThetaTape { theta, pass: ThetaPass::Cells(tape, mixing) }
    }

    /// Logits [N, K].
    pub fn logits(&self) -> &Tensor {
        match &self.pass {
            ThetaPass::Whole(logits) => logits,
            ThetaPass::Cells(tape, _) => tape.logits(),
        }
    }

    /// Gradients of `loss` (a scalar made from the logits) by theta, one [E, O] per table.
    pub fn backward(self, loss: &Tensor) -> Result<Vec<Tensor>> {
        let (mut tape, mixing) = match self.pass {
            ThetaPass::Whole(_) => return Ok(Tensor::f_run_backward(&[loss], self.theta, false, false)?),
            ThetaPass::Cells(tape, mixing) => (tape, mixing),
        };
        tape.results.clear();
        let mut upstream = Upstream::Loss(loss);
        let mut parts: Vec<(Cuts, Vec<Tensor>)> = Vec::with_capacity(tape.segments.len());
        // Theta does not reach the first part.
        while tape.segments.len() > 1 {
            let mut segment = tape.segments.pop().expect("two segments at least");
            let (outputs, cuts) = mixing.cut(|| tape.outputs(&mut segment));
            let grads = differentiate(outputs, &segment.inputs, cuts.leaves(), &mut upstream)?;
            parts.push((cuts, grads));
        }
        mixing.grads(self.theta, parts)
    }
}
