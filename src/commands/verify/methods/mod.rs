//! Golden files of search methods other than DrNAS, `methods_*`.
//!
//! Most of them name a file of weights in the same folder, on which the method was computed.

mod darts;
mod dsnas;
mod gdas;
mod genotypes;
mod mixing;
mod model;
mod pass;
mod pcdarts;
mod schedules;
mod sdarts;
mod snas;
mod steps;

use super::comparison::Finding;
use super::counts::counts_of_methods;
use super::golden::{Golden, GoldenList};
use crate::config::Precision;
use crate::error::Result;
use crate::net::placement::Placement;

/// Contents of a golden file of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodFile {
    /// Mixing weights without a network.
    Mixing,
    /// Weights and batches that other files use.
    Weights,
    /// DARTS.
    Darts,
    /// SNAS.
    Snas,
    /// GDAS.
    Gdas,
    /// DSNAS.
    Dsnas,
    /// PC-DARTS.
    PcDarts,
    /// SDARTS-RS and SDARTS-ADV.
    Sdarts,
    /// Iterations of several searches.
    Steps,
    /// A method that this program does not have.
    Unknown(&'static str),
}

/// Settings and beginnings of tensor names by which a file is recognised, whatever its name; the first that the file has
/// counts.
const SIGNS: [(&str, MethodFile); 12] = [
    ("taus", MethodFile::Mixing),
    ("iterations", MethodFile::Steps),
    ("controller/", MethodFile::Unknown("enas")),
    ("criterion_followed", MethodFile::Unknown("dartspt")),
    ("finite_difference_radius", MethodFile::Darts),
    ("adv.start", MethodFile::Sdarts),
    ("edge_weight", MethodFile::PcDarts),
    ("grad.hardwts", MethodFile::Gdas),
    ("reward", MethodFile::Dsnas),
    ("temperature", MethodFile::Snas),
    ("tau", MethodFile::Snas),
    ("input.a", MethodFile::Weights),
];

impl MethodFile {
    /// Returns the contents of a file with the settings or tensors of a method.
    pub fn of(golden: &Golden) -> Option<MethodFile> {
        let has = |sign: &str| {
            golden.setting(sign).is_some() || golden.tensors.keys().any(|name| name.starts_with(sign))
        };
        SIGNS.into_iter().find(|(sign, _)| has(sign)).map(|(_, file)| file)
    }

    /// Compares everything in the file that this program has; networks are computed with `placement`.
    pub fn verify(self, golden: &Golden, placement: Placement) -> Result<Vec<Finding>> {
        match self {
            MethodFile::Mixing => mixing::mixing(golden),
            MethodFile::Weights => model::weights(golden, placement),
            MethodFile::Darts => darts::darts(golden, placement),
            MethodFile::Snas => snas::snas(golden, placement),
            MethodFile::Gdas => gdas::gdas(golden, placement),
            MethodFile::Dsnas => dsnas::dsnas(golden, placement),
            MethodFile::PcDarts => pcdarts::pcdarts(golden, placement),
            MethodFile::Sdarts => sdarts::sdarts(golden, placement),
            MethodFile::Steps => steps::steps(golden, placement),
            MethodFile::Unknown(method) => {
                Err(golden.wrong(format!("kind {method}: no method of this program yet")))
            }
        }
    }
}

/// Compares a JSON file, whose contents are known by its name.
pub fn list(name: &str, list: &GoldenList) -> Result<Vec<Finding>> {
    match name {
        name if name.starts_with("methods_schedules") => schedules::schedules(list),
        name if name.starts_with("methods_genotypes_published") => counts_of_methods(list),
        name if name.starts_with("methods_genotypes") => genotypes::genotypes(list),
        _ => Err(list.wrong(
            "not a golden file: expected methods_schedules*.json, methods_genotypes*.json or \
             methods_genotypes_published*.json",
        )),
    }
}

/// Returns whether a comparison that amplifies rounding errors makes sense.
fn is_precise(placement: Placement) -> bool {
    matches!(placement.precision, Precision::Fp32 | Precision::Fp64)
}
