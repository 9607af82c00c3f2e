//! Golden files of the final networks: forward, losses, gradients, statistics, evaluation, and parameter counts.

use super::{Allowed, Comparison, Finding, Golden, PLACEMENT};
use crate::error::{Error, Result};
use crate::net::loss::smoothed_cross_entropy;
use crate::net::network::{Network, Shape};
use crate::net::tape::Placement;
use crate::precision::Precision;
use crate::space::SearchSpace;
use crate::space::genotype::Genotype;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

const FLOAT64_GRADIENTS: &str = "gradients, in float64";

/// One network, trained one step and tested: as `placement` says, and in float32 with its gradients in float64.
///
/// The batch norm over two values in the auxiliary head of `eval_cifar` makes gradients 1e4 times as inexact as numbers
/// are: those of two float32 programs are further apart than the tolerance. In float64 only the file's own rounding counts.
pub fn network(golden: &Golden, space: SearchSpace, placement: Placement) -> Result<Vec<Finding>> {
    let shape = Shape {
        space,
        genotype: Genotype::parse(golden.text("genotype")?)?,
        init_channels: golden.number("init_channels")?,
        layers: golden.number("layers")? as usize,
        num_classes: golden.number("num_classes")?,
        px: golden.tensor("input")?.size()[3],
        auxiliary: golden.text("auxiliary")? == "True",
    };
    let mut findings = step(golden, Network::new(shape.clone(), placement), false)?;
    if placement.precision != Precision::Fp32 {
        return Ok(findings);
    }
    let exact = Placement { precision: Precision::Fp64, ..placement };
    let exact = step(golden, Network::new(shape, exact), true)?;
    findings.extend(exact.into_iter().filter(|finding| finding.kind == FLOAT64_GRADIENTS));
    Ok(findings)
}

fn step(golden: &Golden, mut net: Network, with_gradients: bool) -> Result<Vec<Finding>> {
    let allowed = Allowed::of(net.placement());
    let values = |kind| allowed.values(kind);
    let tensor = |name: &str| golden.tensor(name);
    let on_device = |name: &str| Ok(tensor(name)?.to_device(net.placement().device));
    let (images, labels): (Result<Tensor>, Result<Tensor>) = (on_device("input"), on_device("target"));
    let (images, labels) = (&images?, &labels?);
    net.load(&golden.group("weights"))?;

    let mut parameters = Comparison::new("parameters", 0.0, 0.0);
    parameters.add(
        "",
        &Tensor::from(net.num_parameters()),
        &Tensor::from(golden.number("parameters_without_auxiliary")?),
    );
    let mut findings = vec![parameters.finding];
    let tape = net.forward(images, None, 0);
    let smoothing = golden.decimal("label_smoothing")?;
    let mut loss = smoothed_cross_entropy(tape.logits(), labels, smoothing);
    findings.push(values("logits, training").one(tape.logits(), tensor("logits.train")?));
    if let [_, auxiliary] = tape.results() {
        let comparison = Comparison::new("logits, auxiliary", allowed.auxiliary, 0.0);
        findings.push(comparison.one(auxiliary, tensor("logits.auxiliary")?));
        let auxiliary = smoothed_cross_entropy(auxiliary, labels, smoothing);
        loss += auxiliary * golden.decimal("auxiliary_weight")?;
    }
    findings.push(values("loss").one(&loss, tensor("loss")?));
    if with_gradients {
        let mut gradients = Vec::new();
        tape.backward(&loss, |bucket, grads| {
            gradients.push((bucket, grads));
            Ok(())
        })?;
        for (bucket, grads) in gradients {
            net.params.buckets[bucket].add(&grads);
        }
        let theirs = golden.group("grad");
        let largest = theirs.values().map(|grad| grad.norm().double_value(&[])).fold(0.0, f64::max);
        let ours = net.params.export(|bucket| &bucket.grads);
        let comparison = allowed.gradients(FLOAT64_GRADIENTS, largest);
        findings.push(comparison.all(&ours, &theirs, |_| false));
    }
    let running = net.params.export_running(0);
    findings.push(values("running statistics").all(&running, &golden.group("after"), |_| false));
    let logits = tch::no_grad(|| net.logits(images, 0));
    findings.push(values("logits, evaluation").one(&logits, tensor("logits.eval")?));
    Ok(findings)
}

/// `eval_counts.json`: parameters of published genotypes at published sizes.
#[derive(Deserialize)]
struct Counts {
    /// As `imagenet-48-14-DrNAS_imagenet`: space, channels, cells, genotype.
    parameters_without_auxiliary: BTreeMap<String, i64>,
    genotypes: BTreeMap<String, Genotype>,
}

/// Counts of all networks of the file.
pub fn counts(path: &Path) -> Result<Vec<Finding>> {
    let wrong = |what: String| Error::Golden { path: path.display().to_string(), what };
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let counts: Counts = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let mut genotypes = Comparison::new("genotypes", 0.0, 0.0);
    for (name, theirs) in &counts.genotypes {
        let ours = Genotype::read(name)?;
        genotypes.note(name, if ours == *theirs { 0.0 } else { f64::INFINITY });
    }
    let mut parameters = Comparison::new("parameters", 0.0, 0.0);
    for (name, &theirs) in &counts.parameters_without_auxiliary {
        let shape =
            shape_of(name).ok_or_else(|| wrong(format!("'{name}' is not SPACE-CHANNELS-CELLS-GENOTYPE")))?;
        let net = Network::new(shape, PLACEMENT);
        parameters.add(name, &Tensor::from(net.num_parameters()), &Tensor::from(theirs));
    }
    Ok(vec![genotypes.finding, parameters.finding])
}

/// The published network that a name stands for.
fn shape_of(name: &str) -> Option<Shape> {
    let parts: Vec<&str> = name.split('-').collect();
    let [space, channels, layers, genotype] = parts[..] else { return None };
    let (space, num_classes, px) = match space {
        "imagenet" => (SearchSpace::DartsImagenet, 1000, 224),
        "cifar" => (SearchSpace::DartsCifar, 10, 32),
        _ => return None,
    };
    Some(Shape {
        space,
        genotype: Genotype::read(genotype).ok()?,
        init_channels: channels.parse().ok()?,
        layers: layers.parse().ok()?,
        num_classes,
        px,
        auxiliary: true,
    })
}
