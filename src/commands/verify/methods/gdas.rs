//! Golden files of GDAS: given noise, one operation per edge, and the gradients that return to alpha from it.
//!
//! Shapes: E edges, O operations.

use super::model::{Model, parameter_grads};
use super::pass::path_pass;
use crate::commands::verify::comparison::{Comparison, Finding};
use crate::commands::verify::golden::Golden;
use crate::commands::verify::tolerances::{EXACT, Tolerances};
use crate::config::{ArchitectureSection, Method, Unsampled};
use crate::error::Result;
use crate::method::parameters::ArchitectureParameters;
use crate::method::path::{Drawn, straight_through};
use crate::net::params::Named;
use crate::net::placement::Placement;
use crate::space::{Mask, SearchSpace};
use tch::{Device, Kind, Tensor};

/// Suffixes of the gradients in files of NAS-Bench-201: those of the operations that are not drawn differ. The published
/// one is last, so that what the pass leaves behind is compared with it.
const VARIANTS: [(&str, Unsampled); 2] =
    [("selected_only", Unsampled::Zero), ("published", Unsampled::Constant)];

/// In the DARTS spaces, only the drawn operations have a gradient.
const ONLY_VARIANT: [(&str, Unsampled); 1] = [("", Unsampled::Zero)];

/// Compares a draw, and in every variant a training pass on it with the gradients of the one-hot weights and alpha.
pub fn gdas(golden: &Golden, placement: Placement) -> Result<Vec<Finding>> {
    let mut model = Model::load(golden, placement)?;
    let tolerances = Tolerances::of_small(placement);
    let (noise, tau) = (golden.tables(model.space(), "gumbel", "")?, golden.number("tau")?);
    let variants = match model.space() {
        SearchSpace::NasBench201 => &VARIANTS[..],
        SearchSpace::DartsCifar | SearchSpace::DartsImagenet => &ONLY_VARIANT,
    };
    let mut findings = Vec::new();
    let mut values = [tolerances.values("logits, training"), tolerances.values("loss")];
    let mut grads =
        ["gradient of one-hot", "gradient of alpha"].map(|kind| tolerances.gradients(kind, &Named::new()));
    for &(variant, unsampled) in variants {
        model.reset()?;
        let section = ArchitectureSection { unsampled, ..ArchitectureSection::default() };
        let parameters = model.parameters(golden, Method::Gdas, section)?;
        let drawn = draw(&model, &parameters, &noise, tau);
        if findings.is_empty() {
            findings.extend(draws(golden, &model, &drawn)?);
        }
        let sample = parameters.path_sample(drawn, tau);
        let pass = model.train(&model.b, &sample.weights)?;
        for (comparison, (name, ours)) in
            values.iter_mut().zip([("logits.train", &pass.logits), ("loss", &pass.loss)])
        {
            comparison.add(&format!("{name} {variant}"), ours, golden.tensor(name)?);
        }
        let alpha = parameter_grads(&parameters, &sample, &pass.theta)[0].unbind(0);
        for (comparison, (prefix, ours)) in
            grads.iter_mut().zip([("grad.hardwts", &pass.theta), ("grad.alpha", &alpha)])
        {
            model.add(comparison, golden, (prefix, variant), ours)?;
        }
    }
    findings.extend(values.into_iter().chain(grads).map(Comparison::finding));
    findings.extend(path_pass(golden, &model)?);
    Ok(findings)
}

/// Compares what was drawn, in float64 whatever the precision of the network: the operations and, where the file has
/// them, their distribution and the one-hot weights (published ones differ from 0 and 1 by rounding errors).
fn draws(golden: &Golden, model: &Model, drawn: &[Drawn]) -> Result<Vec<Finding>> {
    let mut findings = vec![indices(golden, model, drawn)?];
    let tensors = |of: fn(&Drawn) -> &Tensor| drawn.iter().map(|drawn| of(drawn).shallow_clone()).collect();
    let tables: [(_, _, Vec<Tensor>); 2] = [
        ("distribution", "probs", tensors(|drawn| &drawn.q)),
        ("one-hot weights", "hardwts", tensors(|drawn| &drawn.one_hot)),
    ];
    for (kind, prefix, ours) in tables {
        if golden.tables(model.space(), prefix, "").is_ok() {
            findings.push(model.compare(Comparison::new(kind, EXACT, 0.0), golden, (prefix, ""), &ours)?);
        }
    }
    Ok(findings)
}

/// Compares the drawn operations, which must be equal.
pub fn indices(golden: &Golden, model: &Model, drawn: &[Drawn]) -> Result<Finding> {
    let ours: Vec<Tensor> = drawn.iter().map(|drawn| index(&drawn.mask)).collect();
    model.compare(Comparison::new("drawn operations", 0.0, 0.0), golden, ("index", ""), &ours)
}

/// Returns the operation that a mask keeps on every edge, `[E]`; -1 unless it is one.
pub fn index(mask: &Mask) -> Tensor {
    let only = |row: &Vec<bool>| {
        let mut kept =
            row.iter().enumerate().filter(|(_, kept)| **kept).map(|(operation, _)| operation as i64);
        kept.next().filter(|_| kept.next().is_none()).unwrap_or(-1)
    };
    Tensor::from_slice(&mask.0.iter().map(only).collect::<Vec<_>>())
}

/// Draws the operations for given Gumbel noise, one [E, O] per table, as the search does: in float64 on the CPU.
pub fn draw(model: &Model, parameters: &ArchitectureParameters, noise: &[Tensor], tau: f64) -> Vec<Drawn> {
    let alpha = parameters.values()[0].to_device(Device::Cpu).to_kind(Kind::Double).unbind(0);
    let tables = alpha.iter().zip(noise).enumerate();
    let draw = |(table, (alpha, noise)): (usize, (&Tensor, &Tensor))| {
        let kept = model.net.masks().table(table).to_device(Device::Cpu);
        straight_through(alpha, noise, tau, &kept)
    };
    tables.map(draw).collect()
}
