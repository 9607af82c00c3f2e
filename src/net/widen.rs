//! Widens every operation from C/k to C/k' channels by appending copies of existing channels.
//!
//! Works on published tensors, independent of stacking. A convolution draws the output channels to copy; the same list
//! is used for the batch norm after it and for the input channels of the next convolution. The first dense convolution
//! of an operation draws its input channels separately. Weights are copied without rescaling: the function is not
//! preserved (as published).
//!
//! Departure: the published code widens the running statistics of pooling with separate indices per edge, and those of
//! a factorized reduction in an order that does not match its channels. Here they are consistent. Both affect only
//! evaluation mode.

use super::params::Named;
use crate::random::{Purpose, stream};
use rand::RngExt;
use std::collections::BTreeMap;
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_64;

/// Channels of a convolution weight to copy: indices of existing channels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CopiedChannels {
    /// Extends dimension 1 (empty for depthwise convolutions).
    pub input: Vec<i64>,
    /// Extends dimension 0, after dimension 1.
    pub output: Vec<i64>,
}

/// All channels that a widening copies. Equal on all ranks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Indices {
    /// By published name of a convolution weight.
    pub convolutions: BTreeMap<String, CopiedChannels>,
    /// By name of the batch norm after a pooling: channels of its running statistics.
    pub pools: BTreeMap<String, Vec<i64>>,
}

/// Draws the indices for every operation of `weights` and `running` (published names), from C/k to C/k_new channels.
///
/// Every operation draws from a separate stream, so that the indices do not depend on which other operations are kept.
pub fn draw_indices(weights: &Named, running: &Named, k: i64, k_new: i64, seed: u64, stage: u64) -> Indices {
    let draw = |name: &str, side: u64, channels: i64| -> Vec<i64> {
        let mut random = stream(seed, Purpose::Widen, &[stage, xxh3_64(name.as_bytes()), side]);
        (0..channels * k / k_new - channels).map(|_| random.random_range(0..channels)).collect()
    };
    let mut indices = Indices::default();
    for (name, weight) in weights.iter().filter(|(name, _)| is_in_an_operation(name)) {
        let size = weight.size();
        let input = match depthwise_before(name) {
            // The input of a pointwise convolution is the output of the depthwise one before it (whose name sorts
            // first).
            Some(before) => {
                indices.convolutions.get(&before).map(|copied| copied.output.clone()).unwrap_or_default()
            }
            None if is_depthwise(name) => Vec::new(),
            None => draw(name, 1, size[1]),
        };
        indices.convolutions.insert(name.clone(), CopiedChannels { input, output: draw(name, 0, size[0]) });
    }
    for (name, mean) in running {
        if let Some(module) = name.strip_suffix(".running_mean").filter(|module| is_pool(module)) {
            // All edges of the cell share the pooled tensors, and thus one list.
            let shared: Vec<&str> = module.split("._ops.").collect();
            let copied = draw(&format!("{}.{}", shared[0], shared[2]), 0, mean.size()[0]);
            indices.pools.insert(module.to_string(), copied);
        }
    }
    indices
}

/// Returns whether a module is the batch norm of a pooling, such as `cells.3._ops.5._ops.0.op.1` (those of convolutions
/// are at 3 and 7).
fn is_pool(module: &str) -> bool {
    is_in_a_darts_operation(module) && module.ends_with(".op.1")
}

/// Returns whether a tensor belongs to an operation on an edge, such as `cells.3._ops.5._ops.4.op.1.weight` or, in
/// NAS-Bench-201, `cells.3.edges.2<-0.3.op.1.weight`.
fn is_in_an_operation(name: &str) -> bool {
    is_in_a_darts_operation(name) || name.contains(".edges.")
}

fn is_in_a_darts_operation(name: &str) -> bool {
    name.contains("._ops.")
}

/// Returns the position of a convolution in a separable chain: 1 depthwise, 2 pointwise, 5 depthwise, 6 pointwise. The
/// convolutions of NAS-Bench-201 are single and dense.
fn position(name: &str) -> Option<usize> {
    if !is_in_a_darts_operation(name) {
        return None;
    }
    name.strip_suffix(".weight")?.rsplit_once(".op.")?.1.parse().ok()
}

fn is_depthwise(name: &str) -> bool {
    matches!(position(name), Some(1 | 5))
}

/// Returns the depthwise convolution before a pointwise one.
fn depthwise_before(name: &str) -> Option<String> {
    let at = position(name)?;
    matches!(at, 2 | 6).then(|| name.replace(&format!(".op.{at}.weight"), &format!(".op.{}.weight", at - 1)))
}

/// Widens weights or their momentum; tensors outside of operations are unchanged.
pub fn widen(weights: &Named, indices: &Indices) -> Named {
    weights
        .iter()
        .map(|(name, tensor)| {
            let tensor = match indices.convolutions.get(name) {
                Some(copied) => extend(&extend(tensor, 1, &copied.input), 0, &copied.output),
                None => tensor.shallow_clone(),
            };
            (name.clone(), tensor)
        })
        .collect()
}

/// Widens running statistics; a batch norm after a convolution uses the output indices of that convolution.
pub fn widen_running(running: &Named, indices: &Indices) -> Named {
    running
        .iter()
        .map(|(name, tensor)| {
            let (module, _) = name.rsplit_once(".running_").unwrap_or((name, ""));
            let output = |convolution: &str| {
                indices.convolutions.get(convolution).map(|copied| copied.output.as_slice())
            };
            let halves = module.strip_suffix(".bn").and_then(|operation| {
                let half = |number: u8| output(&format!("{operation}.conv_{number}.weight"));
                Some((half(1)?, half(2)?))
            });
            let tensor = if let Some((first, second)) = halves {
                // The channels of the two convolutions of a factorized reduction are concatenated.
                let parts = tensor.chunk(2, 0);
                Tensor::cat(&[extend(&parts[0], 0, first), extend(&parts[1], 0, second)], 0)
            } else if let Some(copied) = indices.pools.get(module) {
                extend(tensor, 0, copied)
            } else if let Some(copied) = convolution_before(module).as_deref().and_then(output) {
                extend(tensor, 0, copied)
            } else {
                tensor.shallow_clone()
            };
            (name.clone(), tensor)
        })
        .collect()
}

/// Returns the convolution before a batch norm inside an operation: `...op.3` -> `...op.2.weight`.
fn convolution_before(module: &str) -> Option<String> {
    let (operation, at) = module.rsplit_once(".op.")?;
    let before = at.parse::<usize>().ok()?.checked_sub(1)?;
    is_in_an_operation(module).then(|| format!("{operation}.op.{before}.weight"))
}

fn extend(tensor: &Tensor, dim: i64, copied: &[i64]) -> Tensor {
    if copied.is_empty() {
        return tensor.shallow_clone();
    }
    let index = Tensor::from_slice(copied).to_device(tensor.device());
    Tensor::cat(&[tensor, &tensor.index_select(dim, &index)], dim)
}
