//! Golden files of supernets: forward, loss, gradients, statistics, evaluation, genotype, and the widening before the
//! second stage.

use super::comparison::{Comparison, Finding};
use super::golden::{Golden, rows, table_names};
use super::tolerances::{COPIES, Tolerances};
use crate::error::{Error, Result};
use crate::net::loss::cross_entropy;
use crate::net::mixing::MixingWeights;
use crate::net::ops::Mode;
use crate::net::params::Named;
use crate::net::placement::Placement;
use crate::net::supernet::{Supernet, SupernetShape};
use crate::net::widen::{CopiedChannels, Indices, widen, widen_running};
use crate::space::found::Found;
use crate::space::genotype::{Genotype, mean_weights};
use crate::space::nb201::EDGES;
use crate::space::{Mask, Operation, SearchSpace};
use tch::Tensor;

/// Compares one supernet, computed with `placement`.
pub fn supernet(golden: &Golden, space: SearchSpace, placement: Placement) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let tolerances = Tolerances::of(placement);
    let (theta, eta) = (golden.tables(space, "theta", "")?, golden.tables(space, "eta", "")?);
    let masks = table_names(space, "mask", "");
    let masks: Vec<Mask> =
        masks.iter().zip(&theta).map(|(name, theta)| golden.mask(name, theta)).collect::<Result<_>>()?;
    let operations = space.operations().to_vec();
    let mut net = Supernet::new(shape(golden, space, operations, masks.clone())?, placement);
    let on_device = |tensor: &Tensor| tensor.to_device(placement.device);
    let (images, labels) = (&on_device(golden.tensor("input")?), &on_device(golden.tensor("target")?));
    let theta = MixingWeights::of(theta.iter().map(on_device).collect());
    let weights = golden.group("weights");
    net.params.load(&weights)?;

    let tape = net.forward(images, &theta, 0);
    let logits = tape.logits().shallow_clone();
    findings.push(tolerances.values("logits, training").one(&logits, golden.tensor("logits.train")?));
    let loss = cross_entropy(&logits, labels);
    findings.push(tolerances.values("loss").one(&loss, golden.tensor("loss")?));
    let ours = super::gradients(tape, &loss, &net.params)?;
    let theirs = golden.group("grad");
    findings.push(tolerances.gradients("gradients of weights", &theirs).all(&ours, &theirs, |_| false));

    // Every edge has statistics of pooling; those of a pruned operation are unchanged in the published code.
    let pruned = |name: &str| is_pruned(name, &masks, net.shape());
    let after = golden.group("after");
    findings.push(tolerances.values("running statistics").all(&net.params.export_running(0), &after, pruned));
    let logits = tch::no_grad(|| net.logits(images, &theta, Mode::Eval, 0));
    findings.push(tolerances.values("logits, evaluation").one(&logits, golden.tensor("logits.eval")?));

    net.params.load(&weights)?;
    let leaves = theta.leaves();
    let tape = net.forward_theta(images, &leaves, Mode::Train, 0);
    let loss = cross_entropy(tape.logits(), labels);
    let grads = tape.backward(&loss)?;
    let comparison = tolerances.gradients("gradients of theta", &theirs);
    let grads: Named = table_names(space, "grad.theta", "").into_iter().zip(grads).collect();
    findings.push(comparison.all(&grads, &golden.tensors, |_| false));

    if golden.setting("k_before").is_some() {
        findings.extend(widening(golden)?);
    }
    if let Some(text) = golden.setting("genotype") {
        let theirs = match space {
            SearchSpace::NasBench201 => Found::NasBench201(text.parse()?),
            _ => Found::Darts(Genotype::from_json(text)?),
        };
        let weights = eta.iter().zip(&masks).map(|(eta, mask)| Ok(mean_weights(&rows(eta)?, mask)));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let ours = Found::from_scores(space, space.operations(), &weights);
        let mut comparison = Comparison::new("genotype", 0.0, 0.0);
        comparison.equal(&ours.to_line(), ours == theirs);
        findings.push(comparison.finding());
    }
    Ok(findings)
}

/// Returns the shape of the supernet that the settings describe.
pub fn shape(
    golden: &Golden,
    space: SearchSpace,
    operations: Vec<Operation>,
    masks: Vec<Mask>,
) -> Result<SupernetShape> {
    Ok(SupernetShape {
        space,
        operations,
        init_channels: golden.size("init_channels")?,
        layers: match space {
            SearchSpace::NasBench201 => golden.size("cells_per_stage")?,
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => golden.size("layers")?,
        },
        num_classes: golden.size("num_classes")?,
        k: golden.size("k")?,
        masks,
    })
}

/// Returns whether a tensor belongs to a pruned operation: `cells.C._ops.E._ops.O. ...`, or `cells.C.edges.N<-F.O.
/// ...`.
pub fn is_pruned(name: &str, masks: &[Mask], shape: &SupernetShape) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |at: usize| parts.get(at).and_then(|part| part.parse::<usize>().ok());
    let edge = |text: &str| {
        let (node, from) = text.split_once("<-")?;
        let ends = (node.parse().ok()?, from.parse().ok()?);
        EDGES.iter().position(|edge| *edge == ends)
    };
    let place = match parts[..] {
        ["cells", _, "_ops", _, "_ops", ..] => (number(1), number(3), number(5)),
        ["cells", _, "edges", ends, ..] => (number(1), edge(ends), number(4)),
        _ => return false,
    };
    match place {
        (Some(cell), Some(edge), Some(operation)) => !masks[shape.table(cell)].keeps(edge, operation),
        _ => false,
    }
}

/// Compares the widening from stage 1 to stage 2, with the published indices.
fn widening(golden: &Golden) -> Result<Vec<Finding>> {
    let mut indices = Indices::default();
    let list = |tensor: Tensor| Vec::<i64>::try_from(tensor).map_err(Error::from);
    for (name, tensor) in golden.group("out_index") {
        indices.convolutions.entry(name).or_insert_with(CopiedChannels::default).output = list(tensor)?;
    }
    for (name, tensor) in golden.group("in_index") {
        indices.convolutions.entry(name).or_insert_with(CopiedChannels::default).input = list(tensor)?;
    }
    let (before, weights) = (golden.group("before"), golden.group("weights"));
    let is_running = |name: &str| name.contains(".running_");
    let of = |named: &Named, running: bool| -> Named {
        let named = named.iter().filter(|(name, _)| is_running(name) == running);
        named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    };
    // The published code does not widen these consistently (only evaluation mode is affected): pooling and factorized
    // reductions on an edge.
    let unaligned = |name: &str| {
        name.contains("._ops.") && (name.contains(".op.1.running") || name.contains(".bn.running"))
    };
    let momentum = widen(&golden.group("momentum_before"), &indices);
    Ok(vec![
        Comparison::new("widened weights", COPIES, 0.0).all(
            &widen(&of(&before, false), &indices),
            &weights,
            |_| false,
        ),
        Comparison::new("widened momentum", COPIES, 0.0).all(
            &momentum,
            &golden.group("momentum_after"),
            |_| false,
        ),
        Comparison::new("widened statistics", COPIES, 0.0).all(
            &widen_running(&of(&before, true), &indices),
            &weights,
            unaligned,
        ),
    ])
}
