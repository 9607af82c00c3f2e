//! Separable convolutions of several kernels on the out-edges of one state, all at once.
//!
//! Shapes: N batch, C channels that one edge computes with, M out-edges, S = sum over kernels of the edges that keep
//! it, H W (H' W' after the stride).

use super::ops::{Pass, conv, is_small, pointwise};
use super::params::{Init, Specs, StatId, WeightId};
use tch::{Device, Tensor};

/// One kernel and the out-edges that keep it.
pub struct Branch {
    /// Width of the kernel.
    pub kernel: i64,
    /// Published names of the operation on those edges.
    pub prefixes: Vec<String>,
    /// Positions of the edges among the state's out-edges.
    pub positions: Vec<usize>,
}

/// Depthwise convolution, pointwise convolution, batch norm, for all branches.
struct Link {
    /// One per branch, [edges*C, 1, K, K].
    depthwise: Vec<WeightId>,
    /// [S*C, C, 1, 1].
    pointwise: WeightId,
    /// S*C channels.
    stat: StatId,
    stride: i64,
}

/// A chain of separable convolutions with a ReLU between its links (the ReLU in front of the first is the state's).
pub struct Separable {
    links: Vec<Link>,
    /// Edges of each branch.
    edges: Vec<usize>,
    placement: Slots,
    channels: i64,
    dilation: i64,
}

impl Separable {
    /// Declares the chain. `at`: published positions of the depthwise convolutions inside the operation; the pointwise
    /// convolution and the batch norm follow each. `num_edges`: all out-edges, M.
    pub fn new(
        specs: &mut Specs,
        branches: Vec<Branch>,
        num_edges: usize,
        channels: i64,
        at: &[usize],
        stride: i64,
        dilation: i64,
    ) -> Separable {
        let prefixes: Vec<String> = branches.iter().flat_map(|branch| branch.prefixes.clone()).collect();
        let rows = prefixes.len() as i64 * channels;
        let pieces = |prefixes: &[String], position: usize, suffix: &str| {
            super::ops::stack(prefixes, channels, &format!(".op.{position}{suffix}"))
        };
        let links = at
            .iter()
            .enumerate()
            .map(|(number, &at)| Link {
                depthwise: branches
                    .iter()
                    .map(|Branch { kernel, prefixes, .. }| {
                        let shape = [prefixes.len() as i64 * channels, 1, *kernel, *kernel];
                        specs.weight(&shape, Init::FanIn(kernel * kernel), pieces(prefixes, at, ".weight"))
                    })
                    .collect(),
                pointwise: specs.weight(
                    &[rows, channels, 1, 1],
                    Init::FanIn(channels),
                    pieces(&prefixes, at + 1, ".weight"),
                ),
                stat: specs.stat(rows, pieces(&prefixes, at + 2, "")),
                stride: if number == 0 { stride } else { 1 },
            })
            .collect();
        let slots = branches.iter().flat_map(|branch| branch.positions.clone()).collect();
        Separable {
            links,
            edges: branches.iter().map(|branch| branch.prefixes.len()).collect(),
            placement: Slots::new(slots, num_edges),
            channels,
            dilation,
        }
    }

    /// `x`: the rectified state [N, C, H, W]; `scale` [S*C]: the mixing weights. Result [N, M*C, H', W']: per edge the
    /// weighted sum of the branches, 0 where it keeps none.
    pub fn forward(&self, pass: &Pass, x: &Tensor, scale: &Tensor) -> Tensor {
        // On CPUs the backward pass of a dilated depthwise convolution falls to a reference implementation (7 to 12
        // times slower than an undilated one). Dilation 2 is therefore computed without dilation on every second pixel.
        let undilate = self.dilation == 2 && x.device() == Device::Cpu;
        let (h, w) = (x.size()[2], x.size()[3]);
        let stride = self.links[0].stride;
        let (x, parities) = match (undilate, stride) {
            (false, _) => (x.shallow_clone(), None),
            // Output o takes pixels 2 (o + t): even ones only.
            (true, 2) => (x.slice(2, 0, None, 2).slice(3, 0, None, 2), None),
            (true, _) => (to_parities(x), Some((h, w))),
        };
        // For even H and W the parities hold just the pixels of the image, so the pointwise convolution, the batch norm
        // and the sum can be computed there.
        let early = parities.is_some() && (h % 2 == 1 || w % 2 == 1);
        let mut inputs: Vec<Tensor> =
            self.edges.iter().map(|&edges| Tensor::cat(&vec![&x; edges], 1)).collect();
        let last = self.links.len() - 1;
        for (number, link) in self.links.iter().enumerate() {
            let (stride, dilation) = if undilate { (1, 1) } else { (link.stride, self.dilation) };
            let weights: Vec<&Tensor> = link.depthwise.iter().map(|&id| pass.params.weight(id)).collect();
            let mut y = depthwise(&inputs, &weights, stride, dilation);
            if let Some((h, w)) = parities.filter(|_| early) {
                y = from_parities(&y, h, w);
            }
            let slots = self.edges.iter().sum::<usize>() as i64;
            let y = pointwise(&y, pass.params.weight(link.pointwise), slots);
            if number == last {
                let y = self.placement.sum(&pass.batch_norm(&y, link.stat, Some(scale)), self.channels);
                return match parities.filter(|_| !early) {
                    Some((h, w)) => from_parities(&y, h, w),
                    None => y,
                };
            }
            let y = pass.batch_norm(&y, link.stat, None).relu_();
            let sizes: Vec<i64> = self.edges.iter().map(|&edges| edges as i64 * self.channels).collect();
            inputs = if sizes.len() == 1 { vec![y] } else { y.split_with_sizes(sizes, 1) };
        }
        unreachable!("the last link returns")
    }
}

/// Depthwise convolutions, same padding, of each input with its weights; results one after another.
fn depthwise(inputs: &[Tensor], weights: &[&Tensor], stride: i64, dilation: i64) -> Tensor {
    let one = |x: &Tensor, weight: &Tensor| {
        let (channels, reach) = (weight.size()[0], weight.size()[2] / 2);
        conv(x, weight, stride, dilation * reach, dilation, channels)
    };
    if inputs.len() > 1 && is_small(&inputs[0]) {
        // One call instead of several: smaller kernels stand in the middle of the largest.
        let widest = weights.iter().map(|weight| weight.size()[2]).max().unwrap_or(1);
        let padded: Vec<Tensor> = weights
            .iter()
            .map(|weight| {
                let margin = (widest - weight.size()[2]) / 2;
                if margin == 0 { weight.shallow_clone() } else { weight.constant_pad_nd([margin; 4]) }
            })
            .collect();
        return one(&Tensor::cat(inputs, 1), &Tensor::cat(&padded, 0));
    }
    let results: Vec<Tensor> = inputs.iter().zip(weights).map(|(x, weight)| one(x, weight)).collect();
    if results.len() == 1 { results[0].shallow_clone() } else { Tensor::cat(&results, 1) }
}

/// [N, C, H, W] to [4N, C, ceil(H/2), ceil(W/2)]: the pixels of each parity (row, column) as an image; zeros fill up.
fn to_parities(x: &Tensor) -> Tensor {
    let (n, c, h, w) = x.size4().expect("four dimensions");
    let x = if h % 2 + w % 2 > 0 { x.constant_pad_nd([0, w % 2, 0, h % 2]) } else { x.shallow_clone() };
    let (half_h, half_w) = ((h + 1) / 2, (w + 1) / 2);
    x.permute([0, 2, 3, 1])
        .reshape([n, half_h, 2, half_w, 2, c])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([4 * n, half_h, half_w, c])
        .permute([0, 3, 1, 2])
}

/// Back to [N, C, H, W].
fn from_parities(x: &Tensor, h: i64, w: i64) -> Tensor {
    let (n, c, half_h, half_w) = x.size4().expect("four dimensions");
    let x = x
        .permute([0, 2, 3, 1])
        .reshape([n / 4, 2, 2, half_h, half_w, c])
        .permute([0, 3, 1, 4, 2, 5])
        .reshape([n / 4, 2 * half_h, 2 * half_w, c])
        .permute([0, 3, 1, 2]);
    if (h, w) == (2 * half_h, 2 * half_w) { x } else { x.narrow(2, 0, h).narrow(3, 0, w) }
}

/// Which out-edge each of S stacked results belongs to.
pub struct Slots {
    edges: Vec<usize>,
    num_edges: usize,
    /// Whether every edge appears, in order, the same number of times.
    whole: bool,
}

impl Slots {
    /// `edges`: the position of the out-edge of each slot, below `num_edges`.
    pub fn new(edges: Vec<usize>, num_edges: usize) -> Slots {
        let whole = edges.len().is_multiple_of(num_edges)
            && edges.iter().enumerate().all(|(slot, &edge)| edge == slot % num_edges);
        Slots { edges, num_edges, whole }
    }

    /// [N, S*C, H, W] to the sum per edge, [N, M*C, H, W].
    pub fn sum(&self, y: &Tensor, channels: i64) -> Tensor {
        let add = |terms: Vec<Tensor>| terms.into_iter().reduce(|sum, term| sum + term);
        if self.whole {
            let times = (self.edges.len() / self.num_edges) as i64;
            return if times == 1 { y.shallow_clone() } else { add(y.chunk(times, 1)).expect("a slot") };
        }
        let slots = y.split(channels, 1);
        let edge = |edge: usize| {
            let mine = (0..slots.len()).filter(|&slot| self.edges[slot] == edge);
            add(mine.map(|slot| slots[slot].shallow_clone()).collect())
        };
        let sums: Vec<Tensor> =
            (0..self.num_edges).map(|number| edge(number).unwrap_or_else(|| slots[0].zeros_like())).collect();
        Tensor::cat(&sums, 1)
    }
}
