//! What is allowed: how far this program may be from a golden file.

use super::comparison::Comparison;
use crate::config::Precision;
use crate::net::params::Named;
use crate::net::placement::Placement;
use tch::Device;

/// Relative error allowed for the Dirichlet figures and others that do not depend on the precision; they are float64.
pub const EXACT: f64 = 1e-10;
/// The same for tensors that are only copied about.
pub const COPIES: f64 = 1e-6;

/// Relative errors allowed for what a network computes.
#[derive(Clone, Copy)]
pub struct Allowed {
    /// Logits, losses, running statistics.
    values: f64,
    /// The logits of the auxiliary head, which has a batch norm over few values.
    auxiliary: f64,
    /// Gradients.
    gradients: f64,
    /// Whether all gradients, and all statistics, are compared as one tensor. In short kinds a single one may be all
    /// rounding: every product is off by 4e-3 in bf16, and a ReLU here and there is on the other side.
    together: bool,
}

impl Allowed {
    /// What the kinds and the device of a network allow.
    pub fn of(placement: Placement) -> Allowed {
        let precision = placement.precision;
        let (values, auxiliary, gradients) = match precision {
            // Another order of summation changes the worst tensor by a factor of 3 (channels last and first on a CPU).
            Precision::Fp32 if placement.device != Device::Cpu => (3e-4, 3e-4, 3e-3),
            Precision::Fp32 | Precision::Fp64 => (1e-4, 1e-4, 1e-3),
            Precision::Tf32 => (5e-3, 5e-2, 1e-1),
            Precision::Bf16 => (2e-2, 3e-1, 4e-1),
        };
        Allowed {
            values,
            auxiliary,
            gradients,
            together: matches!(precision, Precision::Tf32 | Precision::Bf16),
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

    /// Compares gradients. `weights`: those of all weights. Some are zero but for rounding (batch-norm scales in front of
    /// another batch norm): they are compared with a part of the largest.
    pub fn gradients(&self, kind: &'static str, weights: &Named) -> Comparison {
        let largest = weights.values().map(|grad| grad.norm().double_value(&[])).fold(0.0, f64::max);
        Comparison::new(kind, self.gradients, 1e-5 * largest).together(self.together)
    }
}
