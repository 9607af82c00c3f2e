//! Search methods: how mixing weights come from architecture parameters and how gradients return to them, how the
//! parameters are updated, how weights are perturbed, and how an architecture is chosen.
//!
//! A method is a combination of answers to these questions ([`rules::Rules`]); nothing else depends on its name.
//! Shapes: T tables (kinds of cells), E edges, O operations.

pub mod dirichlet;
pub mod gamma;
pub mod parameters;
pub mod path;
pub mod perturbation;
pub mod rules;
pub mod sample;
pub mod softmax;

pub use parameters::ArchitectureParameters;
pub use rules::Rules;
pub use sample::Sample;
