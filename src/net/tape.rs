//! Tape: a training pass of the supernet, cut into segments that are differentiated one after another.
//!
//! With `checkpoint_cells` a segment keeps only its inputs; when its turn comes it is computed again, bit for bit as the
//! first time, and then differentiated. The last segment, whose turn comes at once, is always kept.

use super::mixing::{Cuts, Mixing};
use super::ops::{Mode, Pass};
use super::supernet::{States, Supernet};
use crate::error::Result;
use std::ops::Range;
use tch::Tensor;

/// Parts of the network between two cuts.
struct Segment {
    parts: Range<usize>,
    /// Leaves it begins at, which share the values of the segment before; none for the first segment.
    inputs: Option<States>,
    /// What it hands on, with its graph and its leaves in place of theta, if that was kept.
    outputs: Option<(States, Cuts)>,
}

/// A forward pass, ready to be differentiated segment by segment.
pub struct Tape<'a> {
    net: &'a Supernet,
    /// As the network lays them out.
    images: Tensor,
    mixing: Mixing,
    replica: usize,
    segments: Vec<Segment>,
    logits: Tensor,
}

impl<'a> Tape<'a> {
    /// Runs the parts of `segments`, which are all parts, in order.
    pub(super) fn record(
        net: &'a Supernet,
        images: Tensor,
        mixing: Mixing,
        replica: usize,
        segments: impl IntoIterator<Item = Range<usize>>,
    ) -> Tape<'a> {
        let pass = Pass::new(&net.params, &mixing, Mode::Train, replica);
        let mut done: Vec<Segment> = Vec::new();
        let mut states: Option<States> = None;
        for parts in segments {
            let inputs = states.map(|states| states.map(|state| state.detach().set_requires_grad(true)));
            let run = || net.run(&pass, parts.clone(), &images, inputs.as_ref());
            let kept = !net.placement().checkpoint_cells || parts.end == net.num_parts();
            let (outputs, cuts) = if kept { mixing.cut(run) } else { (tch::no_grad(run), Cuts::default()) };
            states = Some(outputs.each_ref().map(Tensor::shallow_clone));
            done.push(Segment { parts, inputs, outputs: kept.then_some((outputs, cuts)) });
        }
        let [_, logits] = states.expect("a network has parts");
        Tape { net, images, mixing, replica, segments: done, logits }
    }

    /// Logits [N, K].
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// Differentiates `loss` (a scalar made from `logits`) by the weights: calls `done` with each segment's number (= its
    /// bucket) and gradients, one per leaf of the bucket, last segment first, as soon as they are there.
    pub fn backward(
        mut self,
        loss: &Tensor,
        mut done: impl FnMut(usize, Vec<Tensor>) -> Result<()>,
    ) -> Result<()> {
        let mut upstream = Upstream::Loss(loss);
        while let Some(mut segment) = self.segments.pop() {
            let number = self.segments.len();
            let (outputs, _) = self.outputs(&mut segment);
            let leaves = self.net.params.leaves(number);
            let grads = differentiate(outputs, segment.inputs, leaves, &mut upstream)?;
            done(number, grads)?;
        }
        Ok(())
    }

    /// Differentiates `loss` by `theta`, which the tape's mixing was made from.
    fn backward_theta(mut self, loss: &Tensor, theta: &[Tensor]) -> Result<Vec<Tensor>> {
        let mut upstream = Upstream::Loss(loss);
        let mut parts = Vec::with_capacity(self.segments.len());
        // Theta does not reach the stem, which has no inputs.
        while let Some(mut segment) = self.segments.pop().filter(|segment| segment.inputs.is_some()) {
            let (outputs, cuts) = self.outputs(&mut segment);
            let grads = differentiate(outputs, segment.inputs, cuts.leaves(), &mut upstream)?;
            parts.push((cuts, grads));
        }
        self.mixing.grads(theta, parts)
    }

    /// What `segment` hands on, computed again if it was not kept.
    fn outputs(&self, segment: &mut Segment) -> (States, Cuts) {
        segment.outputs.take().unwrap_or_else(|| {
            let pass = Pass::again(&self.net.params, &self.mixing, self.replica);
            let inputs = segment.inputs.as_ref();
            self.mixing.cut(|| self.net.run(&pass, segment.parts.clone(), &self.images, inputs))
        })
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
    outputs: States,
    inputs: Option<States>,
    leaves: &[Tensor],
    upstream: &mut Upstream,
) -> Result<Vec<Tensor>> {
    let roots: Vec<Tensor> = match upstream {
        Upstream::Loss(loss) => vec![loss.shallow_clone()],
        // Autograd starts from ones, so d(y * g) starts the segment with g. The head does not use the older state: no
        // gradient comes back for it.
        Upstream::Grads(grads) => {
            let handed_on = outputs.iter().zip(grads.iter()).filter(|(_, grad)| grad.defined());
            handed_on.map(|(output, grad)| output * grad).collect()
        }
    };
    let wanted: Vec<&Tensor> = leaves.iter().chain(inputs.iter().flatten()).collect();
    let mut grads = Tensor::f_run_backward(&roots, &wanted, false, false)?;
    *upstream = Upstream::Grads(grads.split_off(leaves.len()));
    Ok(grads)
}

/// A forward pass for the gradients of theta alone.
pub struct ThetaTape<'a> {
    theta: &'a [Tensor],
    logits: Tensor,
    /// Cell by cell, where activations are not kept; else one graph leads from theta to the logits.
    cells: Option<Tape<'a>>,
}

impl<'a> ThetaTape<'a> {
    pub(super) fn whole(theta: &'a [Tensor], logits: Tensor) -> ThetaTape<'a> {
        ThetaTape { theta, logits, cells: None }
    }

    pub(super) fn cells(theta: &'a [Tensor], tape: Tape<'a>) -> ThetaTape<'a> {
        ThetaTape { theta, logits: tape.logits.shallow_clone(), cells: Some(tape) }
    }

    /// Logits [N, K].
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// Gradients of `loss` (a scalar made from `logits`) by theta, one [E, O] per table.
    pub fn backward(self, loss: &Tensor) -> Result<Vec<Tensor>> {
        match self.cells {
            Some(tape) => tape.backward_theta(loss, self.theta),
            None => Ok(Tensor::f_run_backward(&[loss], self.theta, false, false)?),
        }
    }
}
