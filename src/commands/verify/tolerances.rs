//! Tolerances for the comparison with golden files.

use super::comparison::Comparison;
use crate::config::Precision;
use crate::net::params::Named;
use crate::net::placement::Placement;
use tch::Device;

/// Relative tolerance for float64 values that do not depend on the precision, such as those of the Dirichlet.
pub const EXACT: f64 = 1e-10;
/// Relative tolerance for tensors that are only copied.
pub const COPIES: f64 = 1e-6;

/// Relative tolerances for the results of a network.
#[derive(Clone, Copy)]
pub struct Tolerances {
    /// Logits, losses, running statistics.
    values: f64,
    /// The logits of the auxiliary head, which has a batch norm over few values.
    auxiliary: f64,
    /// Gradients.
    gradients: f64,
    /// Whether all gradients, and all statistics, are compared as one tensor. In tf32 and bf16 a single tensor may
    /// consist of rounding errors only: every product is off by 4e-3 in bf16, and some inputs of a ReLU change sign.
    together: bool,
}

impl Tolerances {
    /// Returns the tolerances for the precision and device of a network.
    pub fn of(placement: Placement) -> Tolerances {
        let precision = placement.precision;
        let (values, auxiliary, gradients) = match precision {
            // The order of summation changes the worst tensor by a factor of 3 (channels last and first on a CPU).
            Precision::Fp32 if placement.device != Device::Cpu => (3e-4, 3e-4, 3e-3),
            Precision::Fp32 | Precision::Fp64 => (1e-4, 1e-4, 1e-3),
            Precision::Tf32 => (5e-3, 5e-2, 1e-1),
            Precision::Bf16 => (2e-2, 3e-1, 4e-1),
        };
        Tolerances {
            values,
            auxiliary,
            gradients,
            together: matches!(precision, Precision::Tf32 | Precision::Bf16),
        }
    }

    /// Returns the tolerances for networks of 4 channels, in which the rounding errors of bf16 average out less.
    pub fn of_small(placement: Placement) -> Tolerances {
        let tolerances = Tolerances::of(placement);
        match placement.precision {
            Precision::Bf16 => Tolerances { values: 2.0 * tolerances.values, ..tolerances },
            Precision::Fp32 | Precision::Tf32 | Precision::Fp64 => tolerances,
        }
    }

    /// Compares values.
    pub fn values(&self, kind: &'static str) -> Comparison {
        Comparison::new(kind, self.values, 0.0).together(self.together)
    }

    /// Compares the logits of the auxiliary head.
    pub fn auxiliary(&self, kind: &'static str) -> Comparison {
        Comparison::new(kind, self.auxiliary, 0.0)
    }

    /// Compares gradients. `weights`: those of all weights. Some are zero except for rounding (batch-norm scales before
    /// another batch norm): their error is relative to a fraction of the largest gradient norm.
    pub fn gradients(&self, kind: &'static str, weights: &Named) -> Comparison {
        let largest = weights.values().map(|grad| grad.norm().double_value(&[])).fold(0.0, f64::max);
        Comparison::new(kind, self.gradients, 1e-5 * largest).together(self.together)
    }
}
