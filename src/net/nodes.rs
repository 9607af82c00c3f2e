//! Sums what the states of a mixed cell contribute to its nodes, which become complete one after another.
//!
//! Shapes: N batch, I states that become ready together, M nodes with edges from them, C channels of a node, c = C/k of them
//! mixed, H' W'.

use super::mixing::Entries;
use super::ops::{Pass, cat};
use tch::{Kind, Tensor};

/// What the states that became ready together contribute to the M nodes with edges from them.
pub(super) struct Contribution {
    /// Weighted sums of operations [N, M*c, H', W'], nearest node first.
    pub mixed: Tensor,
    /// Bypassed channels; `None` for k = 1.
    pub bypassed: Option<Bypassed>,
}

/// Sum of the channels that bypass the operations.
pub(super) enum Bypassed {
    /// The same for all nodes, [N, C - c, H', W'].
    Shared(Tensor),
    /// With edge weights: per node, [N, M*(C - c), H', W'], nearest node first.
    PerNode(Tensor),
}

impl Bypassed {
    /// Sums the bypassed channels of some states. `weights`: `[M*I]`, node by node, if edges have weights.
    pub(super) fn sum(states: &[Tensor], weights: Option<Tensor>) -> Bypassed {
        let add =
            |terms: &mut dyn Iterator<Item = Tensor>| terms.reduce(|sum, term| sum + term).expect("a state");
        let Some(weights) = weights else {
            return Bypassed::Shared(add(&mut states.iter().map(Tensor::shallow_clone)));
        };
        let weights = weights.to_kind(states[0].kind()).unbind(0);
        let node =
            |weights: &[Tensor]| add(&mut states.iter().zip(weights).map(|(state, weight)| state * weight));
        Bypassed::PerNode(cat(weights.chunks(states.len()).map(node).collect(), 1))
    }

    fn plus(self, later: Bypassed) -> Bypassed {
        match (self, later) {
            (Bypassed::Shared(sum), Bypassed::Shared(term)) => Bypassed::Shared(sum + term),
            (Bypassed::PerNode(sum), Bypassed::PerNode(term)) => Bypassed::PerNode(sum + term),
            _ => unreachable!("edge weights are those of the pass"),
        }
    }

    /// Splits off the channels, `rest` of them, of the nearest node.
    fn nearest(self, rest: i64) -> (Tensor, Option<Bypassed>) {
        match self {
            Bypassed::Shared(sum) => (sum.shallow_clone(), Some(Bypassed::Shared(sum))),
            Bypassed::PerNode(sums) => {
                let (done, open) = split_nearest(sums, rest);
                (done, open.map(Bypassed::PerNode))
            }
        }
    }
}

/// Adds to `mixed` [N, M*c, H, W] the numbers of its edges (see [`super::mixing::SampledPath::adds_others`]), if there are any.
/// `edges`: M times I, node by node.
pub(super) fn add_others(pass: &Pass, mixed: Tensor, edges: &Entries, channels: i64) -> Tensor {
    let Some(others) = pass.mixing.others(edges) else { return mixed };
    let nodes = mixed.size()[1] / channels;
    let of_nodes = others.view([nodes, -1]).sum_dim_intlist(-1, true, None::<Kind>);
    let of_channels = of_nodes.expand([nodes, channels], false).reshape([1, nodes * channels, 1, 1]);
    &mixed + of_channels.to_kind(mixed.kind())
}

/// Computes the nodes of a mixed cell in order. `mix(node, ready)` returns the contributions of the states that became
/// ready before `node`. `partial`: c.
pub(super) fn mix_nodes(
    inputs: Vec<Tensor>,
    num_nodes: usize,
    partial: i64,
    k: i64,
    mix: impl Fn(usize, &[Tensor]) -> Contribution,
) -> Vec<Tensor> {
    let mut ready = inputs;
    let mut nodes = Vec::with_capacity(num_nodes);
    // Sums over the edges into incomplete nodes, [N, nodes*c, H', W']; a state contributes to all of them.
    let mut open: Option<Tensor> = None;
    let mut bypassed: Option<Bypassed> = None;
    for node in 0..num_nodes {
        let contribution = mix(node, &ready);
        let sum = match open.take() {
            Some(sum) => sum + contribution.mixed,
            None => contribution.mixed,
        };
        let (done, others) = split_nearest(sum, partial);
        open = others;
        let bypass = match (bypassed.take(), contribution.bypassed) {
            (Some(sum), Some(term)) => Some(sum.plus(term)),
            (sum, term) => sum.or(term),
        };
        let complete = match bypass {
            None => done,
            Some(bypass) => {
                let (rest, others) = bypass.nearest(partial * (k - 1));
                bypassed = others;
                shuffle(&done, &rest, k)
            }
        };
        nodes.push(complete.shallow_clone());
        ready = vec![complete];
    }
    nodes
}

/// Splits off the `channels` of the nearest node, which is complete.
fn split_nearest(sum: Tensor, channels: i64) -> (Tensor, Option<Tensor>) {
    let open = sum.size()[1] - channels;
    if open == 0 {
        return (sum, None);
    }
    let mut parts = sum.split_with_sizes([channels, open], 1);
    let open = parts.pop();
    (parts.remove(0), open)
}

/// Concatenates mixed [N, c, H, W] and bypassed [N, C - c, H, W] channels and shuffles them with k groups: channel
/// g*c + i goes to i*k + g. The shuffle is linear, so it is applied once per node, after the sum over its inputs. It
/// preserves the memory format.
fn shuffle(mixed: &Tensor, bypassed: &Tensor, k: i64) -> Tensor {
    let x = Tensor::cat(&[mixed, bypassed], 1);
    let (n, channels, h, w) = x.size4().expect("four dimensions");
    if x.stride()[1] == 1 {
        x.permute([0, 2, 3, 1])
            .view([n, h, w, k, channels / k])
            .transpose(3, 4)
            .reshape([n, h, w, channels])
            .permute([0, 3, 1, 2])
    } else {
        x.view([n, k, channels / k, h, w]).transpose(1, 2).reshape([n, channels, h, w])
    }
}
