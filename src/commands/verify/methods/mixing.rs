//! Golden file of mixing weights without a network: softmax, samples of the concrete distribution, one-hot weights from
//! them, edge weights, projection of perturbed weights; values and gradients.
//!
//! Shapes: E edges, O operations.

use super::gdas::index;
use crate::commands::verify::comparison::{Comparison, Finding};
use crate::commands::verify::golden::Golden;
use crate::commands::verify::tolerances::EXACT;
use crate::error::Result;
use crate::method::path::{Drawn, straight_through};
use crate::method::perturbation;
use crate::method::sample::Sample;
use crate::method::softmax::{concrete, edge_softmax, softmax};
use crate::net::mixing::SampledPath;
use crate::space::SearchSpace;
use tch::{Kind, Tensor};

/// Compares all values of the file, in float64 whatever the precision of networks.
pub fn mixing(golden: &Golden) -> Result<Vec<Finding>> {
    let tensor = |name: &str| golden.tensor(name);
    let (alpha, upstream) = (tensor("alpha")?, tensor("upstream")?);
    let mask = tensor("mask")?.to_kind(Kind::Double);
    let mut values = [exact("softmax"), exact("concrete distribution")];
    let mut grads = [exact("gradient of softmax"), exact("gradient of concrete")];
    let mut compare = |which: usize, name: &str, theta: Tensor, tau: f64| -> Result<()> {
        values[which].add(name, &theta, tensor(&format!("{name}.theta"))?);
        let grad = gradient(alpha, Sample::softmax(vec![theta], tau, Vec::new(), Vec::new()), upstream);
        grads[which].add(name, &grad, tensor(&format!("{name}.grad"))?);
        Ok(())
    };
    for (masked, mask) in [("", &mask.ones_like()), (".masked", &mask)] {
        compare(0, &format!("softmax{masked}"), softmax(alpha, mask), 1.0)?;
        let gumbel = tensor("gumbel")?;
        for (index, tau) in Vec::<f64>::try_from(tensor("taus")?)?.into_iter().enumerate() {
            let theta = concrete(alpha, gumbel, tau, mask);
            compare(1, &format!("gumbel_soft.{index}{masked}"), theta, tau)?;
        }
    }
    let mut findings: Vec<Finding> = values.into_iter().chain(grads).map(Comparison::finding).collect();
    findings.extend(one_hot(golden)?);
    findings.extend(edge_weights(golden)?);
    let projected = perturbation::normalise(tensor("clip.before")?);
    findings.push(exact("projected rows").one(&projected, tensor("clip.after")?));
    Ok(findings)
}

/// Compares draws of one operation per edge, with the gradient through their distribution.
fn one_hot(golden: &Golden) -> Result<[Finding; 3]> {
    let tensor = |name: &str| golden.tensor(name);
    let (alpha, gumbel, upstream) = (tensor("alpha")?, tensor("gumbel")?, tensor("upstream")?);
    let mut indices = Comparison::new("drawn operations", 0.0, 0.0);
    let (mut values, mut grads) = (exact("one-hot weights"), exact("gradient of one-hot"));
    for (number, tau) in Vec::<f64>::try_from(tensor("taus")?)?.into_iter().enumerate() {
        let name = |what: &str| format!("gumbel_hard.{number}.{what}");
        let Drawn { one_hot, q, mask } = straight_through(alpha, gumbel, tau, &alpha.ones_like());
        indices.add(&name("index"), &index(&mask), tensor(&name("index"))?);
        values.add(&name("theta"), &one_hot, tensor(&name("theta"))?);
        let path = SampledPath { masks: vec![mask], adds_others: false };
        let sample = Sample::straight_through(vec![one_hot], path, vec![q], tau);
        grads.add(&name("grad"), &gradient(alpha, sample, upstream), tensor(&name("grad"))?);
    }
    Ok([indices, values, grads].map(Comparison::finding))
}

/// Compares the softmax over the input edges of every node.
fn edge_weights(golden: &Golden) -> Result<[Finding; 2]> {
    let tensor = |name: &str| golden.tensor(name);
    let (nodes, beta) = (SearchSpace::DartsCifar.nodes(), tensor("beta")?);
    let inputs: Vec<String> = nodes.iter().map(|edges| (edges.end - edges.start).to_string()).collect();
    if golden.text("nodes")? != inputs.join(",") {
        return Err(golden.wrong(format!("setting 'nodes': expected {}", inputs.join(","))));
    }
    let weights = edge_softmax(beta, &nodes);
    let theta = tensor("alpha")?.zeros_like();
    let sample = Sample::softmax(vec![theta.copy()], 1.0, vec![weights.copy()], nodes);
    let sums = [theta.unsqueeze(0), beta.zeros_like().unsqueeze(0)];
    sample.add_grads(&sums, &[theta, tensor("beta.upstream")?.copy()], 1.0, &sums);
    Ok([
        exact("edge weights").one(&weights, tensor("beta.edge_weight")?),
        exact("gradient of edge weights").one(&sums[1].get(0), tensor("beta.grad")?),
    ])
}

/// Returns the gradient of `alpha`, given that of the mixing weights of `sample`.
fn gradient(alpha: &Tensor, sample: Sample, upstream: &Tensor) -> Tensor {
    let sums = [alpha.zeros_like().unsqueeze(0)];
    sample.add_grads(&[alpha.unsqueeze(0)], &[upstream.shallow_clone()], 1.0, &sums);
    sums[0].get(0)
}

fn exact(kind: &'static str) -> Comparison {
    Comparison::new(kind, EXACT, 0.0)
}
