//! Golden files of SDARTS: randomly and adversarially perturbed mixing weights.
//!
//! The attack looks at the network in evaluation mode, which the files of the DARTS spaces do not allow (see
//! `Model::holds_statistics`): there it follows the gradients of the file.
//!
//! Shapes: E edges, O operations, S steps of the attack.

use super::model::Model;
use crate::comm::Solo;
use crate::commands::verify::comparison::{Comparison, Finding};
use crate::commands::verify::golden::{Golden, table_names};
use crate::commands::verify::tolerances::Tolerances;
use crate::config::{ArchitectureSection, Attack, Method};
use crate::error::Result;
use crate::method::perturbation::{ATTACK_STEPS, start};
use crate::net::mixing::MixingWeights;
use crate::net::params::Named;
use crate::net::placement::Placement;
use crate::search::adversary::Adversary;
use crate::space::SearchSpace;
use std::slice;
use tch::{Device, Kind, Tensor};

/// Compares both perturbations of the softmax of alpha with given noise, and a training pass on each; batch a.
pub fn sdarts(golden: &Golden, placement: Placement) -> Result<Vec<Finding>> {
    let mut model = Model::load(golden, placement)?;
    let tolerances = Tolerances::of_small(placement);
    let parameters = model.parameters(golden, Method::SdartsAdv, ArchitectureSection::default())?;
    let p = model.softmax(&parameters).weights.operations;
    let noise = model.tables(golden, "noise")?;
    let start: Vec<Tensor> = p.iter().zip(&noise).map(|(p, noise)| start(p, noise)).collect();
    let mut findings = Vec::new();
    for (kind, prefix, ours) in [
        ("mixing weights", "softmax", &p),
        ("random perturbation", "rs.theta", &start),
        ("start of the attack", "adv.start", &start),
    ] {
        findings.push(model.compare(tolerances.values(kind), golden, (prefix, ""), ours)?);
    }
    // Otherwise the attack follows the gradients of the file. The signs of small gradients, which decide about whole steps,
    // depend on rounding in tf32 and bf16.
    let follows = super::is_precise(placement) && model.holds_statistics;
    let adversary = adversary(&model, &p, golden.number("epsilon")?);
    let (of_attack, last) = attack(golden, &model, &adversary, (&start, follows))?;
    findings.extend(of_attack);
    let attacked = match follows {
        true => adversary.attack(vec![shared(&start)], &Solo)?.remove(0),
        // The attacks of the files are successful.
        false => last,
    };
    let values = tolerances.values("result of the attack");
    findings.push(model.compare(values, golden, ("adv.theta", ""), &attacked)?);

    let mut comparisons = [
        tolerances.values("logits, training"),
        tolerances.values("losses"),
        tolerances.gradients("norms of gradients", &Named::new()),
    ];
    for (variant, theta) in [("rs", start), ("adv", attacked)] {
        model.reset()?;
        let pass = model.train(&model.a, &MixingWeights::of(theta))?;
        // Only in NAS-Bench-201, the published alpha is a parameter of the network. It holds the perturbed weights during
        // this pass, so its gradient is that of the mixing weights.
        let alpha: &[Tensor] = match model.space() {
            SearchSpace::NasBench201 => &pass.theta,
            SearchSpace::DartsImagenet | SearchSpace::DartsCifar => &[],
        };
        for (comparison, tensor, ours) in [
            (0, "logits.train", &pass.logits),
            (1, "loss", &pass.loss),
            (2, "grad_norm.weights", &model.grad_norm(&[])),
            (2, "grad_norm.with_alpha", &model.grad_norm(alpha)),
        ] {
            let name = format!("{variant}.{tensor}");
            comparisons[comparison].add(&name, ours, golden.tensor(&name)?);
        }
    }
    findings.extend(comparisons.map(Comparison::finding));
    Ok(findings)
}

/// Returns the attack on the mixing weights `p` of batch a.
pub fn adversary<'a>(model: &'a Model, p: &'a [Tensor], epsilon: f64) -> Adversary<'a> {
    let batches = slice::from_ref(&model.a);
    Adversary { net: &model.net, batches, p, epsilon, attack: Attack::PerReplica, noise_seeds: &[0] }
}

/// Compares the points of the attack, step by step, on the network's own gradients if it `follows` them, otherwise on
/// those of the file; in the former case also the gradients and the losses that decide about the success. Returns the
/// last point, too.
fn attack(
    golden: &Golden,
    model: &Model,
    adversary: &Adversary,
    (start, follows): (&[Tensor], bool),
) -> Result<(Vec<Finding>, Vec<Tensor>)> {
    let tolerances = Tolerances::of_small(model.net.placement());
    if golden.number::<usize>("steps")? != ATTACK_STEPS {
        return Err(golden.wrong(format!("setting 'steps': expected {ATTACK_STEPS}")));
    }
    let theirs = golden.tables(model.space(), "adv.grads", "")?;
    let mut points = vec![shared(start)];
    let (mut grads, mut moved) = (Vec::new(), Vec::new());
    for step in 0..ATTACK_STEPS {
        let of_step = |grads: &Tensor| model.on_device(&grads.get(step as i64));
        let mut found = match follows {
            true => adversary.grads(&points, &Solo)?,
            false => vec![theirs.iter().map(of_step).collect()],
        };
        points = adversary.ascend(&points, &found);
        grads.push(found.remove(0));
        moved.push(shared(&points[0]));
    }
    // From one list of tables per step to one [S, E, O] per table.
    let stacked = |steps: &[Vec<Tensor>]| -> Vec<Tensor> {
        let table = |table| Tensor::stack(&steps.iter().map(|tables| &tables[table]).collect::<Vec<_>>(), 0);
        (0..start.len()).map(table).collect()
    };
    let comparison = tolerances.values("steps of the attack");
    let mut findings = vec![model.compare(comparison, golden, ("adv.steps", ""), &stacked(&moved))?];
    if follows {
        let grads = stacked(&grads);
        let comparison = tolerances.gradients("gradients of attack", &Named::new());
        findings.push(model.compare(comparison, golden, ("adv.grads", ""), &grads)?);
        let mut signs = Comparison::new("signs of gradients", 0.0, 0.0);
        let names = table_names(model.space(), "adv.grads", "");
        for (name, (ours, theirs)) in names.iter().zip(grads.iter().zip(&theirs)) {
            let ours = ours.to_device(Device::Cpu).to_kind(Kind::Double);
            signs.equal(name, ours.sign().equal(&theirs.sign()));
        }
        findings.push(signs.finding());
        let mut losses = tolerances.values("losses of the attack");
        let plain = vec![shared(adversary.p)];
        for (name, points) in [("adv.loss_before", &plain), ("adv.loss_after", &points)] {
            losses.add(name, &adversary.losses(points, &Solo)?[0], golden.tensor(name)?);
        }
        findings.push(losses.finding());
    }
    Ok((findings, points.remove(0)))
}

fn shared(tables: &[Tensor]) -> Vec<Tensor> {
    tables.iter().map(Tensor::shallow_clone).collect()
}
