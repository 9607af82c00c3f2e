//! Primitive operations for several edges at once: convolutions, batch norm, pooling, factorized reduction.
//!
//! Shapes: N batch, C channels per edge, M edges, H W. A stacked tensor is [N, M*C, H, W], edge by edge; its
//! convolutions are grouped by edge.

use super::gather::Gather;
use super::mixing::Mixing;
use super::params::{Init, Params, Pieces, Specs, StatId, WeightId};
use crate::space::Operation;
use tch::{Device, Tensor};

/// Epsilon of batch norm.
pub const EPS: f64 = 1e-5;
/// Weight of the newest batch in running statistics.
pub const MOMENTUM: f64 = 0.1;

/// Statistics used by batch norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Statistics of the batch; running statistics are updated.
    Train,
    /// Running statistics.
    Eval,
}

/// Context of one forward pass.
pub struct Pass<'a> {
    /// Tensors of the network.
    pub params: &'a Params,
    /// The mixing weights of this pass.
    pub mixing: &'a Mixing,
    /// Training or evaluation.
    pub mode: Mode,
    /// Local replica whose running statistics are used or updated.
    pub replica: usize,
    /// Whether this recomputes a pass that has already updated the statistics.
    recomputed: bool,
    /// Where the tensors are, if the parts are those of a path.
    gather: Option<&'a Gather>,
}

impl<'a> Pass<'a> {
    /// Creates a pass with the current weights.
    pub fn new(params: &'a Params, mixing: &'a Mixing, mode: Mode, replica: usize) -> Pass<'a> {
        params.refresh();
        Pass { params, mixing, mode, replica, recomputed: false, gather: None }
    }

    /// Creates a pass that repeats an earlier one: same weights, no update of statistics.
    pub fn recompute(params: &'a Params, mixing: &'a Mixing, mode: Mode, replica: usize) -> Pass<'a> {
        Pass { params, mixing, mode, replica, recomputed: mode == Mode::Train, gather: None }
    }

    /// Returns the same pass for parts whose tensors `gather` finds among those of the network.
    pub fn gathered(self, gather: Option<&'a Gather>) -> Pass<'a> {
        Pass { gather, ..self }
    }

    /// Returns a weight for computation: convolutions in the kind of activations.
    pub fn weight(&self, id: WeightId) -> Tensor {
        match self.gather {
            None => self.params.weight(id).shallow_clone(),
            Some(gather) => gather.weight(id, self.params),
        }
    }

    /// Applies batch norm over `[N, C, H, W]` without affine parameters. `scale` `[C]` multiplies the normalised
    /// result, which applies mixing weights at no cost.
    pub fn batch_norm(&self, x: &Tensor, stat: StatId, scale: Option<&Tensor>) -> Tensor {
        self.norm(x, stat, scale, None)
    }

    /// Applies batch norm with learned weight and bias.
    pub fn affine_batch_norm(&self, x: &Tensor, norm: &AffineNorm) -> Tensor {
        let (weight, bias) = (self.weight(norm.weight), self.weight(norm.bias));
        self.norm(x, norm.stat, Some(&weight), Some(&bias))
    }

    fn norm(&self, x: &Tensor, stat: StatId, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Tensor {
        let train = self.mode == Mode::Train;
        let apply = |mean: &Tensor, var: &Tensor| {
            x.batch_norm(weight, bias, Some(mean), Some(var), train, MOMENTUM, EPS, true)
        };
        if self.recomputed {
            let (mean, var) = self.params.scratch(x.size()[1]);
            return apply(&mean, &var);
        }
        let Some(gather) = self.gather else {
            let (mean, var) = self.params.running(stat, self.replica);
            return apply(mean, var);
        };
        let views = gather.running(stat, self.params, self.replica);
        if let [(mean, var)] = &views[..] {
            return apply(mean, var);
        }
        let all = |part: fn(&(Tensor, Tensor)) -> &Tensor| {
            Tensor::cat(&views.iter().map(part).collect::<Vec<_>>(), 0)
        };
        let (mean, var) = (all(|view| &view.0), all(|view| &view.1));
        let y = apply(&mean, &var);
        if train {
            let sizes: Vec<i64> = views.iter().map(|(mean, _)| mean.size()[0]).collect();
            let updated = mean.split_with_sizes(&sizes, 0).into_iter().zip(var.split_with_sizes(&sizes, 0));
            for ((mean, var), (new_mean, new_var)) in views.iter().zip(updated) {
                mean.shallow_clone().copy_(&new_mean);
                var.shallow_clone().copy_(&new_var);
            }
        }
        y
    }
}

/// Tensors of an affine batch norm.
pub struct AffineNorm {
    weight: WeightId,
    bias: WeightId,
    stat: StatId,
}

impl AffineNorm {
    /// Declares the batch norm `name` of `channels` channels.
    pub fn new(specs: &mut Specs, name: &str, channels: i64) -> AffineNorm {
        AffineNorm::stacked(specs, channels, vec![(name.to_string(), 0..channels)])
    }

    /// Declares the batch norms `pieces`, stacked to `channels` channels in total.
    pub fn stacked(specs: &mut Specs, channels: i64, pieces: Pieces) -> AffineNorm {
        let rows = |suffix: &str| {
            pieces.iter().map(|(name, rows)| (format!("{name}{suffix}"), rows.clone())).collect()
        };
        AffineNorm {
            weight: specs.weight(&[channels], Init::Constant(1.0), rows(".weight")),
            bias: specs.weight(&[channels], Init::Constant(0.0), rows(".bias")),
            stat: specs.stat(channels, pieces),
        }
    }
}

/// Batch norm after a convolution: affine in an evaluation network, not in the supernet.
pub enum Norm {
    /// Without learned tensors.
    Plain(StatId),
    /// With weight and bias.
    Affine(AffineNorm),
}

impl Norm {
    /// Declares the batch norms `pieces`, stacked to `channels` channels in total.
    pub fn new(specs: &mut Specs, channels: i64, pieces: Pieces) -> Norm {
        match specs.is_affine() {
            true => Norm::Affine(AffineNorm::stacked(specs, channels, pieces)),
            false => Norm::Plain(specs.stat(channels, pieces)),
        }
    }

    /// Normalises `x` [N, C, H, W]; `scale` `[C]`, the mixing weights of a supernet, multiplies the result.
    pub fn forward(&self, pass: &Pass, x: &Tensor, scale: Option<&Tensor>) -> Tensor {
        match self {
            Norm::Plain(stat) => pass.batch_norm(x, *stat, scale),
            Norm::Affine(norm) => {
                debug_assert!(scale.is_none(), "a network with affine batch norms has no mixing weights");
                pass.affine_batch_norm(x, norm)
            }
        }
    }
}

/// Concatenates tensors along `dim`; a single tensor is returned unchanged.
pub fn cat(mut tensors: Vec<Tensor>, dim: i64) -> Tensor {
    if tensors.len() == 1 { tensors.remove(0) } else { Tensor::cat(&tensors, dim) }
}

/// Computes a convolution without bias.
pub fn conv(x: &Tensor, weight: &Tensor, stride: i64, padding: i64, dilation: i64, groups: i64) -> Tensor {
    x.f_conv2d(weight, None::<&Tensor>, [stride; 2], [padding; 2], [dilation; 2], groups).unwrap_or_else(|why| {
        // Libraries that lack a kernel do not report the convolution.
        let why = why.to_string();
        panic!(
            "{} (convolution of {:?} {:?} with {:?}, stride {stride}, padding {padding}, dilation {dilation}, {groups} groups)",
            why.lines().next().unwrap_or_default(),
            x.size(),
            x.kind(),
            weight.size()
        )
    })
}

/// Pixels (N*H*W) up to which the call of a convolution on a CPU costs more than its arithmetic.
const FEW_PIXELS: i64 = 256;

/// Computes a stacked 1x1 convolution: `x` [N, G*C, H, W], `weight` [G*C', C, 1, 1], group by group.
pub fn pointwise(x: &Tensor, weight: &Tensor, groups: i64) -> Tensor {
    let (rows, c) = (weight.size()[0], weight.size()[1]);
    let (n, _, h, w) = x.size4().expect("four dimensions");
    let on_cpu = x.device() == Device::Cpu;
    let few = n * h * w <= FEW_PIXELS;
    if on_cpu && few && groups > 1 {
        let pixels = x.permute([0, 2, 3, 1]).reshape([n * h * w, groups, c]).transpose(0, 1);
        let products = pixels.bmm(&weight.view([groups, rows / groups, c]).transpose(1, 2));
        return products.transpose(0, 1).reshape([n, h, w, rows]).permute([0, 3, 1, 2]);
    }
    // Dilation has no effect on a 1x1 kernel, but avoids the im2col path that libtorch takes with one thread.
    let dilation = if on_cpu && !few { 2 } else { 1 };
    conv(x, weight, 1, 0, dilation, groups)
}

/// Returns the rows of a stacked tensor: `each` rows per prefix, in order, named prefix + suffix.
pub fn stack(prefixes: &[String], each: i64, suffix: &str) -> Pieces {
    (0..)
        .zip(prefixes)
        .map(|(edge, prefix)| (format!("{prefix}{suffix}"), edge * each..(edge + 1) * each))
        .collect()
}

/// Computes 3x3 pooling: maximum, or average with padding not counted.
pub fn pool(operation: Operation, x: &Tensor, stride: i64) -> Tensor {
    match operation {
        Operation::MaxPool3x3 => x.max_pool2d([3, 3], [stride; 2], [1, 1], [1, 1], false),
        _ => average_pool(x, stride),
    }
}

/// Computes 3x3 average pooling, padding not counted.
///
/// On GPUs always channels first: with channels last and padding, the backward pass of libtorch silently returns a
/// wrong gradient of the input (pytorch/pytorch#188344; libtorch 2.11 is affected).
pub fn average_pool(x: &Tensor, stride: i64) -> Tensor {
    let pooled = |x: &Tensor| x.avg_pool2d([3, 3], [stride; 2], [1, 1], false, false, None::<i64>);
    if x.device() == Device::Cpu { pooled(x) } else { with_channels_first(x, pooled) }
}

/// Applies `operation` to `x` [N, C, H, W] in channels-first memory format; the result has the memory format of `x`.
fn with_channels_first(x: &Tensor, operation: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let y = operation(&x.contiguous());
    // Channels last: adjacent elements are channels. (tch has no memory-format argument.)
    if x.stride()[1] == 1 { y.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]) } else { y }
}

/// Halves the resolution with two 1x1 convolutions of stride 2, the second on the input shifted by one pixel; stacked.
///
/// Computed as one 2x2 convolution of stride 2, with the weight of the first convolution at (0, 0) and that of the
/// second at (1, 1). H and W must be even, as in the published code.
pub struct FactorizedReduce {
    conv_1: WeightId,
    conv_2: WeightId,
    norm: Norm,
    edges: i64,
}

impl FactorizedReduce {
    /// Declares a reduction from `c_in` to `c_out` channels per edge.
    pub fn new(specs: &mut Specs, prefixes: &[String], c_in: i64, c_out: i64) -> FactorizedReduce {
        let m = prefixes.len() as i64;
        let half = c_out / 2;
        let mut conv = |name: &str| {
            let pieces = stack(prefixes, half, &format!(".{name}.weight"));
            specs.weight(&[m * half, c_in, 1, 1], Init::FanIn(c_in), pieces)
        };
        let (conv_1, conv_2) = (conv("conv_1"), conv("conv_2"));
        let norm = Norm::new(specs, m * c_out, stack(prefixes, c_out, ".bn"));
        FactorizedReduce { conv_1, conv_2, norm, edges: m }
    }

    /// `x`: rectified [N, c_in, H, W], the same for every edge; result [N, M*c_out, H/2, W/2].
    pub fn forward(&self, pass: &Pass, x: &Tensor, scale: Option<&Tensor>) -> Tensor {
        let (first, second) = (pass.weight(self.conv_1), pass.weight(self.conv_2));
        let (half, c_in) = (first.size()[0] / self.edges, first.size()[1]);
        let corner =
            |weight: &Tensor, pad: [i64; 4]| weight.view([self.edges, half, c_in, 1, 1]).constant_pad_nd(pad);
        let kernel = Tensor::cat(&[corner(&first, [0, 1, 0, 1]), corner(&second, [1, 0, 1, 0])], 1);
        let y = conv(x, &kernel.view([self.edges * half * 2, c_in, 2, 2]), 2, 0, 1, 1);
        self.norm.forward(pass, &y, scale)
    }
}

/// ReLU, 1x1 convolution and batch norm, which adapt the channels of a cell input.
pub struct ReluConvNorm {
    weight: WeightId,
    norm: Norm,
}

impl ReluConvNorm {
    /// Declares the layers from `c_in` to `c_out` channels under the published name `name`.
    pub fn new(specs: &mut Specs, name: &str, c_in: i64, c_out: i64) -> ReluConvNorm {
        let rows = |suffix: &str| vec![(format!("{name}{suffix}"), 0..c_out)];
        ReluConvNorm {
            weight: specs.weight(&[c_out, c_in, 1, 1], Init::FanIn(c_in), rows(".op.1.weight")),
            norm: Norm::new(specs, c_out, rows(".op.2")),
        }
    }

    /// Maps `x` [N, c_in, H, W] to [N, c_out, H, W].
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Tensor {
        self.norm.forward(pass, &pointwise(&x.relu(), &pass.weight(self.weight), 1), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::error_line::panic_line;
    use tch::Kind;

    #[test]
    fn a_failed_convolution_is_described() {
        let (x, weight) = (
            Tensor::zeros([2, 3, 5, 5], (Kind::Float, Device::Cpu)),
            Tensor::zeros([6, 4, 1, 1], (Kind::Float, Device::Cpu)),
        );
        let panic = std::panic::catch_unwind(|| conv(&x, &weight, 2, 0, 1, 1)).unwrap_err();
        let text = panic_line(&*panic);
        let named = "(convolution of [2, 3, 5, 5] Float with [6, 4, 1, 1], stride 2, padding 0, dilation 1, 1 groups)";
        assert!(text.starts_with("Internal torch error: Given groups=1") && text.ends_with(named), "{text}");
    }

    #[test]
    fn channels_first_pooling_preserves_values_and_layout() {
        let first = Tensor::randn([2, 6, 5, 5], (tch::Kind::Double, Device::Cpu));
        let last = first.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        // As in the supernet: some of the channels.
        let part = last.narrow(1, 0, 3);
        for x in [first, last, part] {
            let pooled = |x: &Tensor| x.avg_pool2d([3, 3], [2, 2], [1, 1], false, false, None::<i64>);
            let gradient = |operation: &dyn Fn(&Tensor) -> Tensor| {
                let leaf = x.detach().set_requires_grad(true);
                let y = operation(&leaf);
                let upstream = Tensor::arange(y.numel() as i64, (tch::Kind::Double, Device::Cpu)).view_as(&y);
                let loss = (&y * upstream).sum(tch::Kind::Double);
                let gradient = Tensor::run_backward(&[loss], &[&leaf], false, false);
                (y.detach(), gradient.into_iter().next().unwrap())
            };
            let checked = |x: &Tensor| {
                assert!(x.is_contiguous(), "{:?}", x.stride());
                pooled(x)
            };
            let (direct, detour) = (gradient(&pooled), gradient(&|x| with_channels_first(x, checked)));
            assert!(direct.0.equal(&detour.0) && direct.1.equal(&detour.1), "{:?}", x.stride());
            assert_eq!(detour.0.stride()[1] == 1, x.stride()[1] == 1, "{:?}", x.stride());
        }
    }
}
