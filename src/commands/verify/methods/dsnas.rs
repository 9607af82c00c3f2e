//! Golden files of DSNAS: given operations, one per edge, their credit and the gradient of their log-probability.
//!
//! Shapes: E edges, O operations.

use super::gdas::indices;
use super::model::{Model, parameter_grads};
use super::pass::{path_pass, training};
use crate::commands::verify::comparison::{Comparison, Finding};
use crate::commands::verify::golden::Golden;
use crate::commands::verify::tolerances::{EXACT, Tolerances};
use crate::config::{ArchitectureSection, Method};
use crate::error::Result;
use crate::method::parameters::ArchitectureParameters;
use crate::method::path::{Drawn, categorical};
use crate::net::params::Named;
use crate::net::placement::Placement;
use crate::space::SearchSpace;
use tch::{Device, Kind, Tensor};

/// Compares the log-probability of the operations, a training pass on them, their credit (`reward`), and the gradient of
/// alpha.
pub fn dsnas(golden: &Golden, placement: Placement) -> Result<Vec<Finding>> {
    let model = Model::load(golden, placement)?;
    let tolerances = Tolerances::of_small(placement);
    let parameters = model.parameters(golden, Method::Dsnas, ArchitectureSection::default())?;
    let drawn = draw(golden, &model, &parameters)?;
    let of_table = |drawn: &Drawn| (&drawn.one_hot * &drawn.q).sum_dim_intlist(-1, false, None::<Kind>).log();
    let log_prob: Tensor = drawn.iter().map(|drawn| of_table(drawn).sum(Kind::Double)).sum();
    let mut findings = vec![
        indices(golden, &model, &drawn)?,
        // In float64 whatever the precision of the network.
        Comparison::new("log-probability", EXACT, 0.0).one(&log_prob, golden.tensor("log_prob")?),
    ];

    let sample = parameters.path_sample(drawn, 1.0);
    let one_hot = &sample.weights.operations;
    let pass = model.train(&model.b, &sample.weights)?;
    findings.extend(training(golden, tolerances, &pass, ("logits.train", "loss"))?);
    findings.extend(path_pass(golden, &model)?);
    let credit: Vec<Tensor> = (one_hot.iter().zip(&pass.theta))
        .map(|(z, grad)| (z * grad).sum_dim_intlist(-1, false, None::<Kind>))
        .collect();
    let alpha = |theta: &[Tensor]| parameter_grads(&parameters, &sample, theta)[0].unbind(0);
    let mut compare = |kind, prefix, ours: &[Tensor]| -> Result<()> {
        let comparison = tolerances.gradients(kind, &Named::new());
        findings.push(model.compare(comparison, golden, (prefix, ""), ours)?);
        Ok(())
    };
    // In bf16 on a CPU, the credits of the DARTS network are off by 0.75 (0.65 with channels first), those of
    // NAS-Bench-201 by 0.13; in float32 by 2e-6.
    if super::is_precise(placement) || model.space() == SearchSpace::NasBench201 {
        compare("credit", "reward", &credit)?;
        compare("gradient of alpha", "grad.alpha", &alpha(&pass.theta))?;
    }
    if golden.tables(model.space(), "grad.log_prob", "").is_ok() {
        // With these gradients of the weights, the credit of every operation is 1.
        compare("gradient of log-prob.", "grad.log_prob", &alpha(one_hot))?;
    }
    Ok(findings)
}

/// Draws the operations of the file: they are certain with noise as large as this.
fn draw(golden: &Golden, model: &Model, parameters: &ArchitectureParameters) -> Result<Vec<Drawn>> {
    const CERTAIN: f64 = 1e3;
    let alpha = parameters.values()[0].to_device(Device::Cpu).to_kind(Kind::Double).unbind(0);
    let index = golden.tables(model.space(), "index", "")?;
    let draw = |(table, (alpha, index)): (usize, (&Tensor, &Tensor))| {
        let noise = alpha.zeros_like().scatter_value(-1, &index.unsqueeze(-1), CERTAIN);
        categorical(alpha, &noise, &model.net.masks().table(table).to_device(Device::Cpu))
    };
    Ok(alpha.iter().zip(&index).enumerate().map(draw).collect())
}
