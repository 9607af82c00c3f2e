//! What distinguishes the methods: where mixing weights come from, which loss trains what, and what the weights are
//! trained on.

use crate::config::Method;

/// Where mixing weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixingRule {
    /// Drawn from a Dirichlet distribution per edge.
    Dirichlet,
    /// Softmax per edge.
    Softmax,
    /// Softmax per edge, and a softmax over the input edges of every node.
    SoftmaxWithEdges,
    /// Drawn from a concrete distribution (Gumbel-softmax) per edge.
    Concrete,
    /// One operation per edge: the largest of a concrete distribution, through which the gradient passes.
    StraightThrough,
    /// One operation per edge, drawn with its probability; the gradient is that of the log-probability times the credit of the
    /// operation.
    Categorical,
}

/// Mixing weights of the weight step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Perturbation {
    /// Those of the rule.
    None,
    /// Plus uniform noise.
    Random,
    /// Moved to where the loss is higher.
    Adversarial,
}

/// A method, as answers to what distinguishes methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Where mixing weights come from.
    pub mixing: MixingRule,
    /// Mixing weights of the weight step.
    pub perturbation: Perturbation,
}

impl Rules {
    /// Returns the rules of `method`.
    pub fn of(method: Method) -> Rules {
        let (mixing, perturbation) = match method {
            Method::Drnas => (MixingRule::Dirichlet, Perturbation::None),
            Method::Darts => (MixingRule::Softmax, Perturbation::None),
            Method::Snas => (MixingRule::Concrete, Perturbation::None),
            Method::Gdas => (MixingRule::StraightThrough, Perturbation::None),
            Method::Dsnas => (MixingRule::Categorical, Perturbation::None),
            Method::PcDarts => (MixingRule::SoftmaxWithEdges, Perturbation::None),
            Method::SdartsRs => (MixingRule::Softmax, Perturbation::Random),
            Method::SdartsAdv => (MixingRule::Softmax, Perturbation::Adversarial),
        };
        Rules { mixing, perturbation }
    }
}
