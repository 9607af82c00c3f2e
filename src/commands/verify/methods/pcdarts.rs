//! Golden files of PC-DARTS: partial channels and edge weights.

use super::model::{Model, parameter_grads};
use super::pass::{evaluation, genotype, mixing_weights, training, training_pass};
use crate::commands::verify::comparison::Finding;
use crate::commands::verify::golden::Golden;
use crate::commands::verify::tolerances::Tolerances;
use crate::config::{ArchitectureSection, Method};
use crate::error::Result;
use crate::net::params::Named;
use crate::net::placement::Placement;

/// Compares edge weights, a training pass with all gradients, an evaluation pass, and the architecture.
pub fn pcdarts(golden: &Golden, placement: Placement) -> Result<Vec<Finding>> {
    let model = Model::load(golden, placement)?;
    let tolerances = Tolerances::of_small(placement);
    let parameters = model.parameters(golden, Method::PcDarts, ArchitectureSection::default())?;
    let sample = model.softmax(&parameters);
    let mut findings = mixing_weights(golden, &model, &sample)?;
    let pass = model.train(&model.a, &sample.weights)?;
    findings.extend(training(golden, tolerances, &pass, ("logits.train", "loss"))?);
    let grads = parameter_grads(&parameters, &sample, &pass.theta);
    findings.extend(training_pass(golden, &model, &grads)?);
    findings.extend(evaluation(golden, &model, &sample)?);
    for (kind, prefix, grads) in
        [("gradient of alpha", "grad.alpha", &grads[0]), ("gradient of beta", "grad.beta", &grads[1])]
    {
        let comparison = tolerances.gradients(kind, &Named::new());
        findings.push(model.compare(comparison, golden, (prefix, ""), &grads.unbind(0))?);
    }
    findings.extend(genotype(golden, &model, &parameters)?);
    Ok(findings)
}
