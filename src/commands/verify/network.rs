//! Golden files of evaluation networks: forward, losses, gradients, statistics, evaluation.

use super::comparison::{Comparison, Finding};
use super::golden::Golden;
use super::tolerances::Tolerances;
use crate::config::Precision;
use crate::error::Result;
use crate::net::loss::smoothed_cross_entropy;
use crate::net::network::{Network, NetworkShape};
use crate::net::placement::Placement;
use crate::space::SearchSpace;
use crate::space::genotype::Genotype;
use tch::Tensor;

const FLOAT64_GRADIENTS: &str = "gradients, in float64";

/// Trains one step and tests one network with `placement`; in float32, its gradients are compared in float64.
///
/// The batch norm over two values in the auxiliary head of `eval_cifar` amplifies relative errors of gradients by 1e4:
/// two float32 programs differ by more than the tolerance. In float64, only the rounding of the file remains.
pub fn network(golden: &Golden, space: SearchSpace, placement: Placement) -> Result<Vec<Finding>> {
    let shape = NetworkShape {
        space,
        genotype: Genotype::parse(golden.text("genotype")?)?,
        init_channels: golden.size("init_channels")?,
        layers: golden.size("layers")?,
        num_classes: golden.size("num_classes")?,
        px: golden.tensor("input")?.size4()?.3,
        auxiliary: golden.text("auxiliary")? == "True",
    };
    let in_float64 = placement.precision == Precision::Fp64;
    let mut findings = step(golden, Network::new(shape.clone(), placement), in_float64)?;
    if placement.precision != Precision::Fp32 {
        return Ok(findings);
    }
    let exact = Placement { precision: Precision::Fp64, ..placement };
    let exact = step(golden, Network::new(shape, exact), true)?;
    findings.extend(exact.into_iter().filter(|finding| finding.kind == FLOAT64_GRADIENTS));
    Ok(findings)
}

fn step(golden: &Golden, mut net: Network, with_gradients: bool) -> Result<Vec<Finding>> {
    let tolerances = Tolerances::of(net.placement());
    let values = |kind| tolerances.values(kind);
    let tensor = |name: &str| golden.tensor(name);
    let on_device = |name: &str| Ok(tensor(name)?.to_device(net.placement().device));
    let (images, labels): (Result<Tensor>, Result<Tensor>) = (on_device("input"), on_device("target"));
    let (images, labels) = (&images?, &labels?);
    net.params.load(&golden.group("weights"))?;

    let mut parameters = Comparison::new("parameters", 0.0, 0.0);
    parameters.add(
        "",
        &Tensor::from(net.num_parameters()),
        &Tensor::from(golden.number::<i64>("parameters_without_auxiliary")?),
    );
    let mut findings = vec![parameters.finding()];
    let tape = net.forward(images, None, 0);
    let smoothing = golden.number("label_smoothing")?;
    let mut loss = smoothed_cross_entropy(tape.logits(), labels, smoothing);
    findings.push(values("logits, training").one(tape.logits(), tensor("logits.train")?));
    if let [_, auxiliary] = tape.results() {
        let comparison = tolerances.auxiliary("logits, auxiliary");
        findings.push(comparison.one(auxiliary, tensor("logits.auxiliary")?));
        let auxiliary = smoothed_cross_entropy(auxiliary, labels, smoothing);
        loss += auxiliary * golden.number::<f64>("auxiliary_weight")?;
    }
    findings.push(values("loss").one(&loss, tensor("loss")?));
    if with_gradients {
        let ours = super::gradients(tape, &loss, &net.params)?;
        let theirs = golden.group("grad");
        let comparison = tolerances.gradients(FLOAT64_GRADIENTS, &theirs);
        findings.push(comparison.all(&ours, &theirs, |_| false));
    }
    let running = net.params.export_running(0);
    findings.push(values("running statistics").all(&running, &golden.group("after"), |_| false));
    let logits = tch::no_grad(|| net.logits(images, 0));
    findings.push(values("logits, evaluation").one(&logits, tensor("logits.eval")?));
    Ok(findings)
}
