//! Comparisons that the golden files of several methods share.

use super::model::{Model, TrainingPass};
use crate::commands::verify::comparison::{Comparison, Finding};
use crate::commands::verify::golden::Golden;
use crate::commands::verify::tolerances::Tolerances;
use crate::error::Result;
use crate::method::parameters::ArchitectureParameters;
use crate::method::sample::Sample;
use crate::net::ops::Mode;
use crate::net::params::Named;
use crate::space::SearchSpace;
use crate::space::found::Found;
use crate::space::genotype::Genotype;
use tch::{Device, Kind, Tensor};

/// Compares mixing weights, where the file has them.
pub fn mixing_weights(golden: &Golden, model: &Model, sample: &Sample) -> Result<Vec<Finding>> {
    let tolerances = Tolerances::of_small(model.net.placement());
    let mut findings = Vec::new();
    for (kind, prefix, ours) in [
        ("mixing weights", "theta", &sample.weights.operations),
        ("edge weights", "edge_weight", &sample.weights.edges),
    ] {
        if has_table(golden, model, prefix) {
            findings.push(model.compare(tolerances.values(kind), golden, (prefix, ""), ours)?);
        }
    }
    Ok(findings)
}

/// Compares logits and loss with the tensors of these names.
pub fn training(
    golden: &Golden,
    tolerances: Tolerances,
    pass: &TrainingPass,
    (logits, loss): (&str, &str),
) -> Result<[Finding; 2]> {
    Ok([
        tolerances.values("logits, training").one(&pass.logits, golden.tensor(logits)?),
        tolerances.values("loss").one(&pass.loss, golden.tensor(loss)?),
    ])
}

/// The cell of which files of methods with one operation per edge have gradients and statistics.
const CELL: &str = "cells.0.";

/// Compares what a training pass leaves behind: gradients of weights, their norms with and without `alpha` (gradients of
/// the parameters), running statistics; whichever of them the file has.
pub fn training_pass(golden: &Golden, model: &Model, alpha: &[Tensor]) -> Result<Vec<Finding>> {
    let ours = model.net.params.export(|bucket| &bucket.grads);
    left_behind(golden, model, alpha, (&ours, &golden.group("grad"), ""))
}

/// Compares what a training pass over one operation per edge leaves behind in [`CELL`]. The file has the gradients of the
/// weights that have one, all others must be 0; the statistics of the other operations must be unchanged.
pub fn path_pass(golden: &Golden, model: &Model) -> Result<Vec<Finding>> {
    let ours = model.net.params.export(|bucket| &bucket.grads);
    let mut theirs = golden.group("grad");
    if let Some(unknown) = theirs.keys().find(|name| !ours.contains_key(*name)) {
        return Err(golden.wrong(format!("'grad/{unknown}' is no tensor of the network")));
    }
    if !theirs.is_empty() {
        for (name, ours) in &ours {
            let zeros = || Tensor::zeros(ours.size(), (Kind::Double, Device::Cpu));
            theirs.entry(name.clone()).or_insert_with(zeros);
        }
    }
    left_behind(golden, model, &[], (&ours, &theirs, CELL))
}

/// Compares gradients of weights and running statistics under names that begin with `part`, and norms.
fn left_behind(
    golden: &Golden,
    model: &Model,
    alpha: &[Tensor],
    (ours, theirs, part): (&Named, &Named, &str),
) -> Result<Vec<Finding>> {
    let tolerances = Tolerances::of_small(model.net.placement());
    let mut findings = Vec::new();
    let elsewhere = |name: &str| !name.starts_with(part);
    if !theirs.is_empty() {
        let comparison = tolerances.gradients("gradients of weights", theirs);
        findings.push(comparison.all(ours, theirs, elsewhere));
    }
    if golden.tensors.contains_key("grad_norm.weights") {
        let mut norms = tolerances.gradients("norms of gradients", &Named::new());
        for (name, more) in [("grad_norm.weights", &[][..]), ("grad_norm.weights_and_alpha", alpha)] {
            if let Some(theirs) = golden.tensors.get(name) {
                norms.add(name, &model.grad_norm(more), theirs);
            }
        }
        findings.push(norms.finding());
    }
    let theirs = golden.group("after");
    if !theirs.is_empty() {
        let ours = model.net.params.export_running(0);
        let theirs = model.expected_running(&theirs);
        findings.push(tolerances.values("running statistics").all(&ours, &theirs, elsewhere));
    }
    Ok(findings)
}

/// Compares the logits of an evaluation pass on batch a after a training pass on it, unless the network cannot hold the
/// statistics of the file.
pub fn evaluation(golden: &Golden, model: &Model, sample: &Sample) -> Result<Option<Finding>> {
    if !model.holds_statistics {
        return Ok(None);
    }
    let comparison = Tolerances::of_small(model.net.placement()).values("logits, evaluation");
    let logits = tch::no_grad(|| model.net.logits(&model.a.0, &sample.weights, Mode::Eval, 0));
    Ok(Some(comparison.one(&logits, golden.tensor("logits.eval")?)))
}

/// Compares the architecture that the parameters select, if the file has one.
pub fn genotype(
    golden: &Golden,
    model: &Model,
    parameters: &ArchitectureParameters,
) -> Result<Option<Finding>> {
    let Some(text) = golden.setting("genotype") else { return Ok(None) };
    let theirs = match model.space() {
        SearchSpace::NasBench201 => Found::NasBench201(text.parse()?),
        _ => Found::Darts(Genotype::from_json(text)?),
    };
    let shape = model.net.shape();
    let ours = Found::from_scores(shape.space, &shape.operations, &parameters.scores(&shape.masks)?);
    let mut comparison = Comparison::new("genotype", 0.0, 0.0);
    comparison.equal(&ours.to_line(), ours == theirs);
    Ok(Some(comparison.finding()))
}

fn has_table(golden: &Golden, model: &Model, prefix: &str) -> bool {
    golden.tables(model.space(), prefix, "").is_ok()
}
