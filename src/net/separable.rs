//! Separable convolutions of several kernel sizes on all out-edges of some states at once.
//!
//! Shapes: N batch, I states, C channels per edge, M nodes with edges from the states, S = sum over kernel sizes of the
//! edges that keep it, H W (H' W' after the stride).

use super::ops::{Norm, Pass, cat, conv, pointwise};
use super::params::{Init, Specs, WeightId};
use crate::space::Operation;
use tch::{Device, Tensor};

/// A family of operations that are computed together.
pub struct Chain {
    /// Operations and their kernel sizes.
    pub kernels: [(Operation, i64); 2],
    /// Published positions of the depthwise convolutions in the operation; each is followed by the pointwise
    /// convolution and the batch norm.
    at: &'static [usize],
    dilation: i64,
}

/// Separable convolutions of the DARTS space: plain and dilated.
pub const CHAINS: [Chain; 2] = [
    Chain { kernels: [(Operation::SepConv3x3, 3), (Operation::SepConv5x5, 5)], at: &[1, 5], dilation: 1 },
    Chain { kernels: [(Operation::DilConv3x3, 3), (Operation::DilConv5x5, 5)], at: &[1], dilation: 2 },
];

/// One kernel size and the out-edges that keep it.
pub struct Branch {
    /// Kernel size.
    pub kernel: i64,
    /// Number of these edges from each state.
    pub times: Vec<usize>,
    /// Published names of the operation on those edges, state by state.
    pub prefixes: Vec<String>,
    /// Index among the M nodes of the target of each edge.
    pub positions: Vec<usize>,
}

/// Depthwise convolution, pointwise convolution and batch norm for all branches.
struct ConvLink {
    /// One per branch, [edges*C, 1, K, K].
    depthwise: Vec<WeightId>,
    /// [S*C, C, 1, 1].
    pointwise: WeightId,
    /// S*C channels.
    norm: Norm,
    stride: i64,
}

/// A chain of separable convolutions with a ReLU between its links (the ReLU before the first is applied to the state).
pub struct Separable {
    links: Vec<ConvLink>,
    /// Edges of each branch, by state.
    edges: Vec<Vec<usize>>,
    placement: Slots,
    channels: i64,
    dilation: i64,
}

impl Separable {
    /// Declares the chain of `branches`. `num_nodes`: M.
    pub fn new(
        specs: &mut Specs,
        branches: Vec<Branch>,
        num_nodes: usize,
        channels: i64,
        chain: &Chain,
        stride: i64,
    ) -> Separable {
        let prefixes: Vec<String> = branches.iter().flat_map(|branch| branch.prefixes.clone()).collect();
        let rows = prefixes.len() as i64 * channels;
        let pieces = |prefixes: &[String], position: usize, suffix: &str| {
            super::ops::stack(prefixes, channels, &format!(".op.{position}{suffix}"))
        };
        let links = chain
            .at
            .iter()
            .enumerate()
            .map(|(number, &at)| ConvLink {
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
                norm: Norm::new(specs, rows, pieces(&prefixes, at + 2, "")),
                stride: if number == 0 { stride } else { 1 },
            })
            .collect();
        let slots = branches.iter().flat_map(|branch| branch.positions.clone()).collect();
        Separable {
            links,
            edges: branches.into_iter().map(|branch| branch.times).collect(),
            placement: Slots::new(slots, num_nodes),
            channels,
            dilation: chain.dilation,
        }
    }

    /// Maps the rectified states `x` `[N, I*C, H, W]` to `[N, M*C, H', W']`: per node, the weighted sum of the branches
    /// on its edges, 0 if they keep none. `scale` `[S*C]`: mixing weights, if any.
    pub fn forward(&self, pass: &Pass, x: &Tensor, scale: Option<&Tensor>) -> Tensor {
        // On CPUs, the backward pass of a dilated depthwise convolution uses a reference implementation, 7 to 12 times
        // slower than without dilation. Dilation 2 is therefore computed without dilation on every second pixel.
        let undilate = self.dilation == 2 && x.device() == Device::Cpu;
        let (h, w) = (x.size()[2], x.size()[3]);
        let stride = self.links[0].stride;
        let (x, parities) = match (undilate, stride) {
            (false, _) => (x.shallow_clone(), None),
            // Output o depends on pixels 2 (o + t): even ones only.
            (true, 2) => (x.avg_pool2d([1, 1], [2, 2], [0, 0], false, false, None::<i64>), None),
            (true, _) => (to_parities(x), Some((h, w))),
        };
        // For even H and W, the parities contain exactly the pixels of the image, so the pointwise convolution, the
        // batch norm and the sum can be computed on them. Otherwise the image is reassembled first, before the padding
        // has an effect.
        let early = parities.is_some() && (h % 2 == 1 || w % 2 == 1);
        let mut inputs: Vec<Tensor> = self.edges.iter().map(|_| x.shallow_clone()).collect();
        let last = self.links.len() - 1;
        for (number, link) in self.links.iter().enumerate() {
            let (stride, dilation) = if undilate { (1, 1) } else { (link.stride, self.dilation) };
            let branches: Vec<Depthwise> = inputs
                .into_iter()
                .zip(&self.edges)
                .zip(&link.depthwise)
                .map(|((x, edges), &weight)| Depthwise {
                    x,
                    times: if number == 0 { edges } else { &[1] },
                    weight: pass.weight(weight),
                })
                .collect();
            let mut y = depthwise(&branches, stride, dilation);
            if let Some((h, w)) = parities.filter(|_| early) {
                y = from_parities(&y, h, w);
            }
            let slots = self.edges.iter().flatten().sum::<usize>() as i64;
            let y = pointwise(&y, &pass.weight(link.pointwise), slots);
            if number == last {
                let y = self.placement.sum(&link.norm.forward(pass, &y, scale), self.channels);
                return match parities.filter(|_| !early) {
                    Some((h, w)) => from_parities(&y, h, w),
                    None => y,
                };
            }
            let y = link.norm.forward(pass, &y, None).relu_();
            let sizes: Vec<i64> =
                self.edges.iter().map(|edges| edges.iter().sum::<usize>() as i64 * self.channels).collect();
            inputs = if sizes.len() == 1 { vec![y] } else { y.split_with_sizes(sizes, 1) };
        }
        unreachable!("the last link returns")
    }
}

/// Inputs of the depthwise convolution of a branch.
struct Depthwise<'a> {
    x: Tensor,
    /// Repetitions of each equal part of the channels: the edges of each state, or 1 if `x` contains all edges.
    times: &'a [usize],
    /// [times*C, 1, K, K].
    weight: Tensor,
}

impl Depthwise<'_> {
    fn kernel(&self) -> i64 {
        self.weight.size()[3]
    }
}

/// Computes depthwise convolutions with same padding: [N, sum of times*C, H', W'], branch by branch.
fn depthwise(branches: &[Depthwise], stride: i64, dilation: i64) -> Tensor {
    if branches[0].x.device() == Device::Cpu && dilation == 1 {
        return depthwise_at_once(branches, stride);
    }
    let one = |branch: &Depthwise| {
        let x = cat(repeated(&branch.x, branch.times), 1);
        conv(&x, &branch.weight, stride, dilation * (branch.kernel() / 2), dilation, branch.weight.size()[0])
    };
    cat(branches.iter().map(one).collect(), 1)
}

/// Pixels (N*H*W) up to which the call of a depthwise convolution on a CPU costs more than its arithmetic.
const FEW_PIXELS: i64 = 64;

/// The same in a single call, for CPUs, on which small calls are expensive: smaller kernels are zero-padded.
///
/// The weight gradient of a kernel wider than 3 takes a path 20 times slower than the others. Where that matters, a 5x5
/// kernel is computed as the sum of its left 3 and right 2 columns, all kernels are 5x3, and each input is padded so
/// that its columns match its kernel.
fn depthwise_at_once(branches: &[Depthwise], stride: i64) -> Tensor {
    let height = branches.iter().map(Depthwise::kernel).max().unwrap_or(1);
    let (n, _, h, w) = branches[0].x.size4().expect("four dimensions");
    let split = height == 5 && n * h * w > FEW_PIXELS;
    // The fast path also requires an input at least as high as the kernel: pad with rows of zeros.
    let rows = if h < height { height / 2 } else { 0 };
    let (mut inputs, mut kernels, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    let mut piece = |branch: &Depthwise, x: &Tensor, kernel: Tensor| {
        inputs.extend(repeated(x, branch.times));
        sizes.push(kernel.size()[0]);
        kernels.push(kernel);
    };
    for branch in branches {
        let beside = |left: i64, right: i64| branch.x.constant_pad_nd([left, right, rows, rows]);
        let above = (height - branch.kernel()) / 2;
        if !split {
            piece(branch, &branch.x, branch.weight.constant_pad_nd([above; 4]));
        } else if branch.kernel() == 3 {
            piece(branch, &beside(1, 1), branch.weight.constant_pad_nd([0, 0, above, above]));
        } else {
            let columns = branch.weight.split_with_sizes([3, 2], 3);
            piece(branch, &beside(2, 0), columns[0].shallow_clone());
            piece(branch, &beside(0, 2), columns[1].constant_pad_nd([1, 0, 0, 0]));
        }
    }
    let (x, kernel) = (cat(inputs, 1), cat(kernels, 0));
    let padding = if split { [height / 2 - rows, 0] } else { [height / 2; 2] };
    let y = x.conv2d(&kernel, None::<&Tensor>, [stride; 2], padding, [1, 1], kernel.size()[0]);
    if !split {
        return y;
    }
    let mut pieces = y.split_with_sizes(&sizes, 1).into_iter();
    let mut next = || pieces.next().expect("a piece per kernel");
    let sum = |branch: &Depthwise| if branch.kernel() > 3 { next() + next() } else { next() };
    cat(branches.iter().map(sum).collect(), 1)
}

/// Repeats part `i` of the channels of `x` `times[i]` times.
fn repeated(x: &Tensor, times: &[usize]) -> Vec<Tensor> {
    let parts = if times.len() == 1 { vec![x.shallow_clone()] } else { x.chunk(times.len() as i64, 1) };
    let copies =
        |(part, &times): (&Tensor, &usize)| (0..times).map(|_| part.shallow_clone()).collect::<Vec<_>>();
    parts.iter().zip(times).flat_map(copies).collect()
}

/// Maps [N, C, H, W] to [4N, C, ceil(H/2), ceil(W/2)]: the pixels of each parity (row, column) as an image,
/// zero-padded.
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

/// Inverse of [`to_parities`]: returns [N, C, H, W].
fn from_parities(x: &Tensor, h: i64, w: i64) -> Tensor {
    let (n, c, half_h, half_w) = x.size4().expect("four dimensions");
    let x = x
        .permute([0, 2, 3, 1])
        .reshape([n / 4, 2, 2, half_h, half_w, c])
        .permute([0, 3, 1, 4, 2, 5])
        .reshape([n / 4, 2 * half_h, 2 * half_w, c])
        .permute([0, 3, 1, 2]);
    let pad = [0, w - 2 * half_w, 0, h - 2 * half_h];
    if pad == [0; 4] { x } else { x.constant_pad_nd(pad) }
}

/// Target node of each of S stacked results.
pub struct Slots {
    nodes: Vec<usize>,
    num_nodes: usize,
    /// Whether every node appears, in order, the same number of times.
    whole: bool,
}

impl Slots {
    /// `nodes`: the node of each slot, below `num_nodes`.
    pub fn new(nodes: Vec<usize>, num_nodes: usize) -> Slots {
        let whole = nodes.len().is_multiple_of(num_nodes)
            && nodes.iter().enumerate().all(|(slot, &node)| node == slot % num_nodes);
        Slots { nodes, num_nodes, whole }
    }

    /// Sums [N, S*C, H, W] per node to [N, M*C, H, W].
    pub fn sum(&self, y: &Tensor, channels: i64) -> Tensor {
        let add = |terms: Vec<Tensor>| terms.into_iter().reduce(|sum, term| sum + term);
        if self.whole {
            let times = (self.nodes.len() / self.num_nodes) as i64;
            return if times == 1 { y.shallow_clone() } else { add(y.chunk(times, 1)).expect("a slot") };
        }
        let slots = y.split(channels, 1);
        let node = |node: usize| {
            let mine = (0..slots.len()).filter(|&slot| self.nodes[slot] == node);
            add(mine.map(|slot| slots[slot].shallow_clone()).collect())
        };
        let sums: Vec<Tensor> =
            (0..self.num_nodes).map(|number| node(number).unwrap_or_else(|| slots[0].zeros_like())).collect();
        Tensor::cat(&sums, 1)
    }
}
