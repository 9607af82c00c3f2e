//! Golden files of DARTS: first- and second-order gradients of the architecture parameters.

use super::model::{Model, parameter_grads};
use super::pass::{evaluation, genotype, mixing_weights, training, training_pass};
use crate::comm::Solo;
use crate::commands::verify::comparison::{Comparison, Finding};
use crate::commands::verify::golden::Golden;
use crate::commands::verify::tolerances::Tolerances;
use crate::config::{ArchitectureSection, Method};
use crate::error::Result;
use crate::method::parameters::ArchitectureParameters;
use crate::net::params::Named;
use crate::net::placement::Placement;
use crate::search::unrolled::{ReplicaInput, Unrolled};
use crate::train::optimiser::Sgd;
use crate::train::tally::StepOutcome;
use tch::Tensor;

/// Compares a training pass on batch a with gradients of weights and alpha, an evaluation pass, and the gradients of
/// alpha of both orders: weights on batch a, alpha on batch b.
pub fn darts(golden: &Golden, placement: Placement) -> Result<Vec<Finding>> {
    let mut model = Model::load(golden, placement)?;
    let tolerances = Tolerances::of_small(placement);
    let parameters = model.parameters(golden, Method::Darts, ArchitectureSection::default())?;
    let sample = model.softmax(&parameters);
    let mut findings = mixing_weights(golden, &model, &sample)?;

    let pass = model.train(&model.a, &sample.weights)?;
    let grads = parameter_grads(&parameters, &sample, &pass.theta);
    findings.extend(training(golden, tolerances, &pass, ("logits.train", "loss.a"))?);
    findings.extend(training_pass(golden, &model, &grads)?);
    findings.extend(evaluation(golden, &model, &sample)?);
    let alpha = grads[0].unbind(0);
    let comparison = tolerances.gradients("gradient of alpha", &Named::new());
    findings.push(model.compare(comparison, golden, ("grad.alpha", "a"), &alpha)?);

    model.reset()?;
    let pass = model.train_theta(&model.b, &sample.weights)?;
    findings.push(tolerances.values("loss, other batch").one(&pass.loss, golden.tensor("loss.b")?));
    let grads = parameter_grads(&parameters, &sample, &pass.theta);
    let comparison = tolerances.gradients("first order", &Named::new());
    findings.push(model.compare(comparison, golden, ("grad.alpha", "first_order"), &grads[0].unbind(0))?);
    // Finite differences amplify the rounding errors of tf32 and bf16 to the size of the result.
    if super::is_precise(placement) {
        findings.extend(second_order(golden, &mut model, &parameters, tolerances)?);
    }
    findings.extend(genotype(golden, &model, &parameters)?);
    Ok(findings)
}

/// Compares second-order gradients with momentum (0.25 times each weight) and without. Running statistics are not
/// compared: the published virtual steps update them, ours do not.
fn second_order(
    golden: &Golden,
    model: &mut Model,
    parameters: &ArchitectureParameters,
    tolerances: Tolerances,
) -> Result<Vec<Finding>> {
    let mut gradients = tolerances.gradients("second order", &Named::new());
    let mut losses = None;
    let mut restored = Comparison::new("weights afterwards", 0.0, 0.0);
    for (momentum, suffix) in [(0.25, ""), (0.0, ".no_momentum")] {
        model.reset()?;
        let buffers = model.weights.iter().map(|(name, weight)| (name.clone(), weight * momentum)).collect();
        model.net.params.import(&buffers, |bucket| &bucket.momentum)?;
        let before = weights(model);
        let step = Unrolled {
            net: &model.net,
            values: parameters.values(),
            sgd: Sgd {
                momentum: golden.number("momentum")?,
                nesterov: false,
                weight_decay: golden.number("weight_decay")?,
            },
            lr: golden.number("lr")?,
            length: golden.number("finite_difference_radius")?,
        };
        let batch = |(images, labels): &(Tensor, Tensor)| (images.shallow_clone(), labels.shallow_clone());
        let input = ReplicaInput {
            train: batch(&model.a),
            train_sample: model.softmax(parameters),
            valid: batch(&model.b),
            valid_sample: model.softmax(parameters),
        };
        let (sums, mut outcome) = (parameters.zero_sums(), StepOutcome::default());
        step.add_grads(&[input], &sums, &Solo, &mut outcome)?;

        let theirs = golden.tables(model.space(), "grad.alpha", &format!("second_order{suffix}"))?;
        for (table, (ours, theirs)) in
            model.space().tables().iter().zip(sums[0].unbind(0).iter().zip(&theirs))
        {
            gradients.add(&format!("{table}{suffix}"), ours, theirs);
        }
        // Only the file of NAS-Bench-201 has it.
        let name = format!("loss.unrolled{suffix}");
        if let Some(theirs) = golden.tensors.get(&name) {
            let losses = losses.get_or_insert_with(|| tolerances.values("loss, virtual weights"));
            losses.add(&name, &outcome.architecture[0].get(0), theirs);
        }
        let equal = before.iter().zip(&weights(model)).all(|(before, after)| before.equal(after));
        restored.equal(suffix, equal);
    }
    Ok([Some(gradients), losses, Some(restored)].into_iter().flatten().map(Comparison::finding).collect())
}

/// Copies the weights of all buckets.
fn weights(model: &Model) -> Vec<Tensor> {
    model.net.params.buckets.iter().map(|bucket| bucket.weights.copy()).collect()
}
