//! Golden files of SNAS: given noise, samples of the concrete distribution and their gradients.

use super::model::{Model, parameter_grads};
use super::pass::{mixing_weights, training, training_pass};
use crate::commands::verify::comparison::Finding;
use crate::commands::verify::golden::Golden;
use crate::commands::verify::tolerances::Tolerances;
use crate::config::{ArchitectureSection, Method};
use crate::error::Result;
use crate::method::parameters::ArchitectureParameters;
use crate::method::sample::Sample;
use crate::method::softmax::concrete;
use crate::net::params::Named;
use crate::net::placement::Placement;
use tch::Tensor;

/// Compares a sample, a training pass on it, and the gradients of theta and alpha. The penalty on resources
/// (`resource.*`) is not part of this program yet.
pub fn snas(golden: &Golden, placement: Placement) -> Result<Vec<Finding>> {
    let model = Model::load(golden, placement)?;
    let tolerances = Tolerances::of_small(placement);
    let parameters = model.parameters(golden, Method::Snas, ArchitectureSection::default())?;
    let (noise, tau): (Vec<Tensor>, f64) = match golden.setting("temperature") {
        Some(_) => {
            // In float64, because u can be close to 1.
            let uniform = golden.tables(model.space(), "uniform", "")?;
            let gumbel = uniform.iter().map(|uniform| -(-uniform.log()).log());
            (gumbel.map(|gumbel| model.on_device(&gumbel)).collect(), golden.number("temperature")?)
        }
        None => (model.tables(golden, "gumbel")?, golden.number("tau")?),
    };
    let sample = draw(&model, &parameters, &noise, tau);
    let mut findings = mixing_weights(golden, &model, &sample)?;
    let pass = model.train(&model.b, &sample.weights)?;
    findings.extend(training(golden, tolerances, &pass, ("logits.train", "loss"))?);
    let alpha = parameter_grads(&parameters, &sample, &pass.theta);
    findings.extend(training_pass(golden, &model, &alpha)?);
    for (kind, prefix, ours) in [
        ("gradient of theta", "grad.theta", &pass.theta),
        ("gradient of alpha", "grad.alpha", &alpha[0].unbind(0)),
    ] {
        let comparison = tolerances.gradients(kind, &Named::new());
        findings.push(model.compare(comparison, golden, (prefix, ""), ours)?);
    }
    Ok(findings)
}

/// Returns the sample for given Gumbel noise, one [E, O] per table.
pub fn draw(model: &Model, parameters: &ArchitectureParameters, noise: &[Tensor], tau: f64) -> Sample {
    let alpha = parameters.values()[0].unbind(0);
    let tables = alpha.iter().zip(noise).enumerate();
    let theta =
        tables.map(|(table, (alpha, noise))| concrete(alpha, noise, tau, model.net.masks().table(table)));
    Sample::softmax(theta.collect(), tau, Vec::new(), Vec::new())
}
