//! The search.

pub mod dirichlet;
