//! `verify`: runs golden files (inputs, weights and every result of the published code) through this program's own
//! network and tells how far apart they are.

mod network;

use crate::error::{Error, Result};
use crate::net::ops::Mode;
use crate::net::params::Named;
use crate::net::supernet::{Placement, Shape, Supernet, cross_entropy};
use crate::net::widen::{Copied, Indices, widen, widen_running};
use crate::precision::Precision;
use crate::schedule::{Decay, Schedule};
use crate::search::dirichlet::{self, Sample};
use crate::space::found::Found;
use crate::space::genotype::{Genotype, mean_weights};
use crate::space::nb201::EDGES;
use crate::space::{Mask, SearchSpace};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Relative error allowed for the Dirichlet figures and others that do not depend on the precision; they are float64.
const EXACT: f64 = 1e-10;
/// The same for tensors that are only copied about.
const COPIES: f64 = 1e-6;

/// Relative errors allowed for what a network computes.
#[derive(Clone, Copy)]
struct Allowed {
    /// Logits, losses, running statistics.
    values: f64,
    /// The logits of the auxiliary head, which has a batch norm over few values.
    auxiliary: f64,
    /// Gradients.
    gradients: f64,
    /// Whether all gradients, and all statistics, are compared as one tensor. In short kinds a single one may be all
    /// rounding: every product is off by 4e-3 in bf16, and a ReLU here and there is on the other side.
    together: bool,
}

impl Allowed {
    fn of(placement: Placement) -> Allowed {
        let precision = placement.precision;
        let (values, auxiliary, gradients) = match precision {
            // Another order of summation changes the worst tensor by a factor of 3 (channels last and first on a CPU).
            Precision::Fp32 if placement.device != Device::Cpu => (3e-4, 3e-4, 3e-3),
            Precision::Fp32 | Precision::Fp64 => (1e-4, 1e-4, 1e-3),
            Precision::Tf32 => (5e-3, 5e-2, 1e-1),
            Precision::Bf16 => (2e-2, 3e-1, 4e-1),
        };
        Allowed {
            values,
            auxiliary,
            gradients,
            together: matches!(precision, Precision::Tf32 | Precision::Bf16),
        }
    }

    fn values(&self, kind: &'static str) -> Comparison {
        Comparison { together: self.together, ..Comparison::new(kind, self.values, 0.0) }
    }

    /// `largest`: norm of the largest gradient. Some are zero but for rounding (batch-norm scales in front of another
    /// batch norm): they are compared with a part of it.
    fn gradients(&self, kind: &'static str, largest: f64) -> Comparison {
        Comparison { together: self.together, ..Comparison::new(kind, self.gradients, 1e-5 * largest) }
    }
}

/// How networks are verified unless somebody wants it otherwise: in float32 on the CPU, cut after every part.
pub const PLACEMENT: Placement = Placement {
    precision: Precision::Fp32,
    device: Device::Cpu,
    channels_last: true,
    checkpoint_cells: false,
    replicas: 1,
    bucket_bytes: 1,
};

/// The largest error of one kind of tensor.
#[derive(Debug, Clone)]
pub struct Finding {
    /// "logits", "gradients" ...
    pub kind: &'static str,
    /// Tensors compared.
    pub count: usize,
    /// Largest relative error, and the tensor that has it.
    pub worst: (f64, String),
    /// What is allowed.
    pub tolerance: f64,
}

impl Finding {
    /// Whether the error is within the tolerance (a NaN is not).
    pub fn passes(&self) -> bool {
        self.worst.0 <= self.tolerance && self.count > 0
    }
}

/// What verifying one file gave.
#[derive(Debug)]
pub enum Outcome {
    /// One finding per kind of tensor.
    Compared(Vec<Finding>),
    /// A file of a part that this program does not have yet.
    NotYet(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Outcome::NotYet(what) => writeln!(out, "  not yet: {what}"),
            Outcome::Compared(findings) => {
                for finding in findings {
                    let Finding { kind, count, worst, tolerance } = finding;
                    let verdict = if finding.passes() { "ok" } else { "FAILED" };
                    write!(
                        out,
                        "  {verdict:6} {kind:24} {count:5} compared, largest relative error {:9.2e}",
                        worst.0
                    )?;
                    writeln!(out, " (allowed {tolerance:.0e}) {}", worst.1)?;
                }
                Ok(())
            }
        }
    }
}

/// Verifies one file by what it holds; networks compute as `placement` says. Local; needs no other rank.
pub fn verify(path: &Path, placement: Placement) -> Result<Outcome> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
    if name.ends_with(".json") {
        std::fs::read(path).map_err(Error::io("read", path))?;
        return match &name {
            name if name.starts_with("schedules") => schedules(path).map(Outcome::Compared),
            name if name.starts_with("eval_counts") => network::counts(path).map(Outcome::Compared),
            _ => Err(Error::Golden {
                path: path.display().to_string(),
                what: "not a golden file: schedules*.json, eval_counts*.json or *.safetensors is expected"
                    .into(),
            }),
        };
    }
    let golden = Golden::read(path)?;
    match golden.metadata.get("network").map(String::as_str) {
        Some("eval-imagenet") => {
            return network::network(&golden, SearchSpace::DartsImagenet, placement).map(Outcome::Compared);
        }
        Some("eval-cifar") => {
            return network::network(&golden, SearchSpace::DartsCifar, placement).map(Outcome::Compared);
        }
        _ => (),
    }
    match golden.metadata.get("space").map(String::as_str) {
        Some("darts-imagenet") => {
            supernet(&golden, SearchSpace::DartsImagenet, placement).map(Outcome::Compared)
        }
        Some("darts-cifar") => supernet(&golden, SearchSpace::DartsCifar, placement).map(Outcome::Compared),
        Some("nas-bench-201") => {
            supernet(&golden, SearchSpace::NasBench201, placement).map(Outcome::Compared)
        }
        Some(space) => Ok(Outcome::NotYet(format!("{name}: {space}"))),
        None if golden.tensors.contains_key("concentration") => distribution(&golden).map(Outcome::Compared),
        None => Ok(Outcome::NotYet(format!("{name}: neither a space nor a Dirichlet file"))),
    }
}

/// A golden file in memory.
struct Golden {
    path: String,
    metadata: BTreeMap<String, String>,
    tensors: Named,
}

impl Golden {
    fn read(path: &Path) -> Result<Golden> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let wrong = |what: String| Error::Golden { path: path.display().to_string(), what };
        let (_, header) =
            safetensors::SafeTensors::read_metadata(&bytes).map_err(|error| wrong(error.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let tensors = Tensor::read_safetensors(path)?.into_iter().collect();
        Ok(Golden { path: path.display().to_string(), metadata, tensors })
    }

    fn wrong(&self, what: impl Into<String>) -> Error {
        Error::Golden { path: self.path.clone(), what: what.into() }
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.wrong(format!("no tensor '{name}'")))
    }

    fn text(&self, key: &str) -> Result<&str> {
        let text = self.metadata.get(key).ok_or_else(|| self.wrong(format!("no setting '{key}'")))?;
        Ok(text)
    }

    fn number(&self, key: &str) -> Result<i64> {
        self.parsed(key)
    }

    fn decimal(&self, key: &str) -> Result<f64> {
        self.parsed(key)
    }

    fn parsed<T: std::str::FromStr>(&self, key: &str) -> Result<T> {
        let text = self.text(key)?;
        text.parse().map_err(|_| self.wrong(format!("setting '{key}' is '{text}', expected a number")))
    }

    /// Tensors under `group/`, by the rest of their names.
    fn group(&self, group: &str) -> Named {
        let tensors = self.tensors.iter();
        tensors
            .filter_map(|(name, tensor)| {
                let name = name.strip_prefix(group)?.strip_prefix('/')?;
                Some((name.to_string(), tensor.shallow_clone()))
            })
            .collect()
    }

    fn mask(&self, name: &str, like: &Tensor) -> Result<Mask> {
        let (edges, operations) = like.size2()?;
        match self.tensors.get(name) {
            None => Ok(Mask::full(edges as usize, operations as usize)),
            Some(mask) => Ok(Mask(
                (0..edges)
                    .map(|edge| (0..operations).map(|op| mask.int64_value(&[edge, op]) != 0).collect())
                    .collect(),
            )),
        }
    }
}

/// Collects errors of one kind.
struct Comparison {
    finding: Finding,
    /// Denominators are at least this.
    floor: f64,
    /// Whether tensors of many names are compared as one.
    together: bool,
}

impl Comparison {
    fn new(kind: &'static str, tolerance: f64, floor: f64) -> Comparison {
        let finding = Finding { kind, count: 0, worst: (0.0, String::new()), tolerance };
        Comparison { finding, floor, together: false }
    }

    /// |ours - theirs| / |theirs|, Frobenius norms in float64.
    fn add(&mut self, name: &str, ours: &Tensor, theirs: &Tensor) {
        let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
        let ours = &ours.to_device(Device::Cpu);
        let error = if ours.size() == theirs.size() {
            let (distance, size) =
                (norm(&(ours.to_kind(Kind::Double) - theirs)), norm(theirs).max(self.floor));
            if distance == 0.0 { 0.0 } else { distance / size }
        } else {
            f64::INFINITY
        };
        self.note(name, error);
    }

    fn note(&mut self, name: &str, error: f64) {
        self.finding.count += 1;
        // NaN has to win.
        if error.is_nan() || error > self.finding.worst.0 {
            self.finding.worst = (error, name.to_string());
        }
    }

    /// Compares all of `ours` with their namesakes.
    fn all(mut self, ours: &Named, theirs: &Named, skip: impl Fn(&str) -> bool) -> Finding {
        if self.together {
            return self.whole(ours, theirs, skip);
        }
        for (name, ours) in ours.iter().filter(|(name, _)| !skip(name)) {
            match theirs.get(name) {
                Some(theirs) => self.add(name, ours, theirs),
                None => self.note(&format!("{name} (missing)"), f64::INFINITY),
            }
        }
        self.finding
    }

    /// The same, all tensors as one.
    fn whole(mut self, ours: &Named, theirs: &Named, skip: impl Fn(&str) -> bool) -> Finding {
        let (mut distance, mut size, mut count) = (0.0, 0.0, 0);
        let square = |x: &Tensor| x.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
        for (name, ours) in ours.iter().filter(|(name, _)| !skip(name)) {
            count += 1;
            match theirs.get(name).filter(|theirs| theirs.size() == ours.size()) {
                Some(theirs) => {
                    let ours = ours.to_device(Device::Cpu).to_kind(Kind::Double);
                    distance += square(&(ours - theirs));
                    size += square(theirs);
                }
                None => distance = f64::INFINITY,
            }
        }
        self.note("as one", (distance / size).sqrt());
        self.finding.count = count;
        self.finding
    }

    fn one(mut self, ours: &Tensor, theirs: &Tensor) -> Finding {
        self.add("", ours, theirs);
        self.finding
    }
}

/// A supernet: forward, loss, gradients, statistics, evaluation, genotype, and the widening that led to stage 2.
fn supernet(golden: &Golden, space: SearchSpace, placement: Placement) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    // A space with one table has no names for tables.
    let name = |prefix: &str, table: &str| match space.tables().len() {
        1 => prefix.to_string(),
        _ => format!("{prefix}.{table}"),
    };
    let allowed = Allowed::of(placement);
    let table = |prefix: &str| -> Result<Vec<Tensor>> {
        space.tables().iter().map(|table| Ok(golden.tensor(&name(prefix, table))?.copy())).collect()
    };
    let (theta, eta) = (table("theta")?, table("eta")?);
    let masks: Vec<Mask> = space
        .tables()
        .iter()
        .zip(&theta)
        .map(|(table, theta)| golden.mask(&name("mask", table), theta))
        .collect::<Result<_>>()?;
    let shape = Shape {
        space,
        init_channels: golden.number("init_channels")?,
        layers: match space {
            SearchSpace::NasBench201 => golden.number("cells_per_stage")?,
            _ => golden.number("layers")?,
        } as usize,
        num_classes: golden.number("num_classes")?,
        k: golden.number("k")?,
        masks: masks.clone(),
    };
    let mut net = Supernet::new(shape, placement);
    let on_device = |tensor: &Tensor| tensor.to_device(placement.device);
    let (images, labels) = (&on_device(golden.tensor("input")?), &on_device(golden.tensor("target")?));
    let theta: Vec<Tensor> = theta.iter().map(on_device).collect();
    let weights = golden.group("weights");
    net.load(&weights)?;

    let tape = net.forward(images, &theta, 0);
    let logits = tape.logits().shallow_clone();
    findings.push(allowed.values("logits, training").one(&logits, golden.tensor("logits.train")?));
    let loss = cross_entropy(&logits, labels);
    findings.push(allowed.values("loss").one(&loss, golden.tensor("loss")?));
    let mut found: Vec<(usize, Vec<Tensor>)> = Vec::new();
    tape.backward(&loss, |bucket, grads| {
        found.push((bucket, grads));
        Ok(())
    })?;
    for (bucket, grads) in found {
        net.params.buckets[bucket].add(&grads);
    }
    let theirs = golden.group("grad");
    let largest = theirs.values().map(|grad| grad.norm().double_value(&[])).fold(0.0, f64::max);
    let ours = net.params.export(|bucket| &bucket.grads);
    findings.push(allowed.gradients("gradients of weights", largest).all(&ours, &theirs, |_| false));

    // Statistics of pooling exist for every edge; a pruned one's stay as they were in the published code.
    let pruned = |name: &str| is_pruned(name, &masks, net.shape());
    let after = golden.group("after");
    findings.push(allowed.values("running statistics").all(&net.params.export_running(0), &after, pruned));
    let logits = tch::no_grad(|| net.logits(images, &theta, Mode::Eval, 0));
    findings.push(allowed.values("logits, evaluation").one(&logits, golden.tensor("logits.eval")?));

    net.load(&weights)?;
    let leaves: Vec<Tensor> = theta.iter().map(|theta| theta.detach().set_requires_grad(true)).collect();
    let tape = net.forward_theta(images, &leaves, 0);
    let loss = cross_entropy(tape.logits(), labels);
    let grads = tape.backward(&loss)?;
    let comparison = allowed.gradients("gradients of theta", largest);
    let named = space.tables().iter().map(|table| name("grad.theta", table));
    let grads: Named = named.zip(grads).collect();
    findings.push(comparison.all(&grads, &golden.tensors, |_| false));

    if golden.metadata.contains_key("k_before") {
        findings.extend(widening(golden)?);
    }
    if let Some(text) = golden.metadata.get("genotype") {
        let theirs = match space {
            SearchSpace::NasBench201 => Found::NasBench201(text.parse()?),
            _ => Found::Darts(Genotype::from_json(text)?),
        };
        let weights: Vec<_> =
            eta.iter().zip(&masks).map(|(eta, mask)| mean_weights(&rows(eta), mask)).collect();
        let ours = Found::from_weights(space, &weights);
        let mut comparison = Comparison::new("genotype", 0.0, 0.0);
        comparison.note(&ours.to_line(), if ours == theirs { 0.0 } else { f64::INFINITY });
        findings.push(comparison.finding);
    }
    Ok(findings)
}

/// A table on the host.
fn rows(table: &Tensor) -> Vec<Vec<f64>> {
    let (edges, _) = table.size2().expect("a table has two dimensions");
    let row = |edge| Vec::<f64>::try_from(table.get(edge).to_kind(Kind::Double)).expect("a row of numbers");
    (0..edges).map(row).collect()
}

/// Whether a tensor belongs to a pruned operation: `cells.C._ops.E._ops.O. ...`, or `cells.C.edges.N<-F.O. ...`.
fn is_pruned(name: &str, masks: &[Mask], shape: &Shape) -> bool {
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

/// The step from stage 1 to stage 2, with the published indices.
fn widening(golden: &Golden) -> Result<Vec<Finding>> {
    let mut indices = Indices::default();
    let list = |tensor: Tensor| Vec::<i64>::try_from(tensor).map_err(Error::from);
    for (name, tensor) in golden.group("out_index") {
        indices.convolutions.entry(name).or_insert_with(Copied::default).output = list(tensor)?;
    }
    for (name, tensor) in golden.group("in_index") {
        indices.convolutions.entry(name).or_insert_with(Copied::default).input = list(tensor)?;
    }
    let (before, weights) = (golden.group("before"), golden.group("weights"));
    let is_running = |name: &str| name.contains(".running_");
    let of = |named: &Named, running: bool| -> Named {
        let named = named.iter().filter(|(name, _)| is_running(name) == running);
        named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    };
    // Not aligned in the published code (evaluation mode only): pooling and factorized reductions on an edge.
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

/// The Dirichlet figures: concentration, pathwise gradients, KL, pruning.
fn distribution(golden: &Golden) -> Result<Vec<Finding>> {
    let exact = |kind| Comparison::new(kind, EXACT, 0.0);
    let tensor = |name: &str| golden.tensor(name);
    let eta = tensor("eta")?;
    let beta = dirichlet::concentration(eta);
    let plain = Sample::from_drawn(tensor("theta")?.copy(), beta.copy(), &eta.ones_like());
    let masked_eta = tensor("masked.eta")?;
    let mask = tensor("masked.mask")?.to_kind(Kind::Double);
    let masked = Sample::from_drawn(
        tensor("masked.sample_before_mask")?.copy(),
        dirichlet::concentration(masked_eta),
        &mask,
    );
    let mut kept = rows(tensor("prune.eta_before")?);
    let full = Mask::full(kept.len(), kept[0].len());
    let theirs = golden.mask("prune.mask", eta)?;
    let keep = theirs.0[0].iter().filter(|&&kept| kept).count();
    let ours = dirichlet::prune(&mut kept, &full, keep);
    let mut mask_finding = exact("pruning: mask");
    mask_finding.note("", if ours == theirs { 0.0 } else { f64::INFINITY });
    let kept: Vec<Tensor> = kept.iter().map(|row| Tensor::from_slice(row)).collect();
    Ok(vec![
        exact("concentration").one(&beta, tensor("concentration")?),
        exact("pathwise gradient").one(&plain.grad_eta(eta, tensor("grad.theta")?), tensor("grad.eta")?),
        exact("masked theta").one(&masked.theta, tensor("masked.theta")?),
        exact("masked gradient")
            .one(&masked.grad_eta(masked_eta, tensor("masked.grad.theta")?), tensor("masked.grad.eta")?),
        exact("KL").one(&dirichlet::kl(eta), tensor("kl")?),
        exact("gradient of KL").one(&dirichlet::kl_grad(eta), tensor("kl.grad.eta")?),
        mask_finding.finding,
        exact("pruning: eta").one(&Tensor::stack(&kept, 0), tensor("prune.eta_after")?),
    ])
}

/// Learning rates per epoch of every published run.
fn schedules(path: &Path) -> Result<Vec<Finding>> {
    let wrong = |what: String| Error::Golden { path: path.display().to_string(), what };
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let series: BTreeMap<String, Vec<f64>> =
        serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let mut comparison = Comparison::new("learning rates", EXACT, 0.0);
    for (name, rates) in &series {
        // As imagenet_search_0.5_50_warmup5: run, highest rate, epochs, warm-up.
        let numbers: Vec<f64> =
            name.split('_').filter_map(|part| part.trim_start_matches("warmup").parse().ok()).collect();
        let [lr, epochs, ref rest @ ..] = numbers[..] else {
            return Err(wrong(format!("'{name}' does not name a rate and a number of epochs")));
        };
        let decay = match name {
            name if name.contains("linear") => Decay::Linear,
            name if name.starts_with("nb201") => Decay::Cosine { lr_min: 0.001 },
            _ => Decay::Cosine { lr_min: 0.0 },
        };
        let warmup_epochs = rest.first().map_or(0, |&epochs| epochs as u64);
        let schedule = Schedule { lr, epochs: epochs as u64, warmup_epochs, decay };
        let ours: Vec<f64> = (0..rates.len() as u64).map(|epoch| schedule.lr(epoch)).collect();
        comparison.add(name, &Tensor::from_slice(&ours), &Tensor::from_slice(rates));
    }
    Ok(vec![comparison.finding])
}
