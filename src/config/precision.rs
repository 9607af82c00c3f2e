//! Numerical precision of a network.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;
use tch::Kind;

/// Numerical precision of a network. Weights, batch-norm statistics, mixing weights, losses and gradient sums are
/// float32 except with `Fp64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32. TensorFloat-32, which libtorch enables for cuDNN by default, is off.
    Fp32,
    /// float32, with the inputs of matrix products and convolutions rounded to TensorFloat-32 (10 bits of mantissa) on
    /// GPUs; on CPUs the same as fp32.
    Tf32,
    /// Convolutions and activations in bfloat16 (7 bits of mantissa).
    Bf16,
    /// float64, for checks: slower, but almost independent of the order of summation.
    Fp64,
}

impl Precision {
    /// Kind of weights, statistics, mixing weights, eta and losses.
    pub fn weights(self) -> Kind {
        if self == Precision::Fp64 { Kind::Double } else { Kind::Float }
    }

    /// Kind of convolutions, their weights, and activations.
    pub fn activations(self) -> Kind {
        if self == Precision::Bf16 { Kind::BFloat16 } else { self.weights() }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(match self {
            Precision::Fp32 => "fp32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
            Precision::Fp64 => "fp64",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_convolutions_and_activations_use_bfloat16() {
        for precision in [Precision::Fp32, Precision::Tf32] {
            assert_eq!((precision.weights(), precision.activations()), (Kind::Float, Kind::Float));
        }
        assert_eq!((Precision::Bf16.weights(), Precision::Bf16.activations()), (Kind::Float, Kind::BFloat16));
        assert_eq!(Precision::Fp64.weights(), Precision::Fp64.activations());
    }
}
