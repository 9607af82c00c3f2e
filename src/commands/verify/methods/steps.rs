//! Golden file of whole search iterations: the published train loops of several methods, on the same two batches each
//! time.
//!
//! Each loop is spelled out here from the parts of the search, because the published ones have quirks that the search
//! does not have. Alpha is a parameter of their network, so its gradient counts in the norm to which the gradients of
//! the weights are clipped. And their optimiser skips weights that never had a gradient (GDAS), which ours decays.
//!
//! Shapes: E edges, O operations, S iterations.

use super::model::{Model, TrainingPass, parameter_grads};
use super::{gdas, sdarts, snas};
use crate::comm::Solo;
use crate::commands::verify::comparison::{Comparison, Finding};
use crate::commands::verify::golden::Golden;
use crate::commands::verify::supernet::is_pruned;
use crate::commands::verify::tolerances::Tolerances;
use crate::config::{ArchitectureSection, FirstPart, Method, Unsampled};
use crate::error::Result;
use crate::method::parameters::ArchitectureParameters;
use crate::method::perturbation::start;
use crate::method::rules::Perturbation;
use crate::method::sample::Sample;
use crate::net::mixing::MixingWeights;
use crate::net::params::Named;
use crate::net::placement::Placement;
use crate::space::Mask;
use crate::train::optimiser::{Sgd, clip_coefficient};
use tch::{Device, Kind, Tensor};

/// A published train loop.
struct Loop {
    /// Prefix of its tensors.
    name: &'static str,
    method: Method,
    first: FirstPart,
    /// Whether it is the loop of AutoDL: weight decay and momentum differ, and the gradient of alpha of the previous
    /// architecture step is not cleared before the weight step.
    autodl: bool,
}

/// The loops of the file.
const LOOPS: [Loop; 7] = {
    const fn drnas(name: &'static str, method: Method) -> Loop {
        Loop { name, method, first: FirstPart::Architecture, autodl: false }
    }
    const fn autodl(name: &'static str, method: Method) -> Loop {
        Loop { name, method, first: FirstPart::Weights, autodl: true }
    }
    [
        drnas("drnas_darts", Method::Darts),
        drnas("drnas_snas", Method::Snas),
        drnas("drnas_gdas", Method::Gdas),
        autodl("autodl_darts_v1", Method::Darts),
        autodl("autodl_gdas", Method::Gdas),
        drnas("sdarts_rs", Method::SdartsRs),
        drnas("sdarts_adv", Method::SdartsAdv),
    ]
};

/// Compares the losses, the movement of alpha in every iteration, and the weights and statistics at the end.
pub fn steps(golden: &Golden, placement: Placement) -> Result<Vec<Finding>> {
    let tolerances = Tolerances::of_small(placement);
    let mut losses = tolerances.values("losses");
    let mut alphas = tolerances.gradients("movement of alpha", &Named::new());
    let mut weights = tolerances.gradients("movement of weights", &Named::new());
    let mut running = tolerances.values("running statistics");
    for published in &LOOPS {
        let mut state = State::new(golden, placement, published)?;
        let trace = state.run()?;
        let name = |tensor: &str| format!("{}.{tensor}", published.name);
        for (tensor, ours) in
            [("loss.arch", &trace.architecture_losses), ("loss.weights", &trace.weight_losses)]
        {
            losses.add(&name(tensor), &Tensor::stack(ours, 0), golden.tensor(&name(tensor))?);
        }
        let before = golden.tensor("alpha")?;
        let theirs = golden.tensor(&name("alpha"))? - before;
        let ours = Tensor::stack(&trace.alphas, 0).to_device(Device::Cpu).to_kind(Kind::Double) - before;
        alphas.add(&name("alpha"), &ours, &theirs);
        state.compare_after(&name("after"), (&mut weights, &mut running))?;
    }
    // Adam divides small gradients by their size, so that in tf32 and bf16 alpha moves with their rounding errors.
    let movements = super::is_precise(placement).then_some([alphas, weights]);
    Ok([losses, running]
        .into_iter()
        .chain(movements.into_iter().flatten())
        .map(Comparison::finding)
        .collect())
}

/// A loop and its state.
struct State<'a> {
    golden: &'a Golden,
    published: &'a Loop,
    model: Model,
    parameters: ArchitectureParameters,
    sgd: Sgd,
    /// Gradient of alpha that the published code has not cleared before the next weight step.
    uncleared: Option<Tensor>,
    iteration: i64,
    /// Forward passes with a draw so far.
    draws: i64,
    /// Operations that GDAS has drawn so far.
    drawn: Mask,
}

/// What a loop computed, one entry per iteration.
#[derive(Default)]
struct Trace {
    architecture_losses: Vec<Tensor>,
    weight_losses: Vec<Tensor>,
    /// [E, O].
    alphas: Vec<Tensor>,
}

impl<'a> State<'a> {
    /// Loads the network and alpha at the start of a loop.
    fn new(golden: &'a Golden, placement: Placement, published: &'a Loop) -> Result<State<'a>> {
        let model = Model::load(golden, placement)?;
        let betas: Vec<f64> =
            golden.text("arch_betas")?.split(',').filter_map(|beta| beta.parse().ok()).collect();
        let section = ArchitectureSection {
            lr: golden.number("arch_lr")?,
            betas: betas
                .try_into()
                .map_err(|_| golden.wrong("setting 'arch_betas': expected two numbers"))?,
            weight_decay: golden.number("arch_weight_decay")?,
            grad_clip: 0.0,
            unsampled: Unsampled::Constant,
            ..ArchitectureSection::default()
        };
        // Such as `3e-4 (autodl 5e-4, Nesterov)`.
        let decays = golden.text("weight_decay")?.split([' ', ',', '(']);
        let decays: Vec<f64> = decays.filter_map(|decay| decay.parse().ok()).collect();
        let [drnas, autodl] = decays[..] else {
            return Err(golden.wrong("setting 'weight_decay': expected those of DrNAS and AutoDL"));
        };
        Ok(State {
            parameters: model.parameters(golden, published.method, section)?,
            sgd: Sgd {
                momentum: golden.number("momentum")?,
                nesterov: published.autodl,
                weight_decay: if published.autodl { autodl } else { drnas },
            },
            golden,
            published,
            drawn: Mask(vec![vec![false; model.net.shape().operations.len()]; model.space().num_edges()]),
            model,
            uncleared: None,
            iteration: 0,
            draws: 0,
        })
    }

    fn run(&mut self) -> Result<Trace> {
        let mut trace = Trace::default();
        for iteration in 0..self.golden.size("iterations")? {
            self.iteration = iteration;
            match self.published.first {
                FirstPart::Architecture => {
                    trace.architecture_losses.push(self.architecture_step()?);
                    trace.weight_losses.push(self.weight_step()?);
                }
                FirstPart::Weights => {
                    trace.weight_losses.push(self.weight_step()?);
                    trace.architecture_losses.push(self.architecture_step()?);
                }
            }
            trace.alphas.push(self.parameters.values()[0].get(0).copy());
        }
        Ok(trace)
    }

    /// Updates alpha and returns the loss before.
    fn architecture_step(&mut self) -> Result<Tensor> {
        let sample = self.draw()?;
        let pass = self.model.train_theta(&self.model.b, &sample.weights)?;
        let grads = parameter_grads(&self.parameters, &sample, &pass.theta);
        self.uncleared = self.published.autodl.then(|| grads[0].copy());
        self.parameters.descend(grads);
        Ok(pass.loss)
    }

    /// Updates the weights and returns the loss before.
    fn weight_step(&mut self) -> Result<Tensor> {
        let (pass, alpha) = self.weight_pass()?;
        let alpha = match self.uncleared.take() {
            Some(uncleared) => uncleared + alpha,
            None => alpha,
        };
        let buckets = self.model.net.params.buckets.iter().map(|bucket| &bucket.grads);
        let coefficient = clip_coefficient(buckets.chain([&alpha]), self.golden.number("grad_clip")?);
        self.sgd.step(&mut self.model.net.params.buckets, &coefficient, self.golden.number("lr")?);
        if self.published.method == Method::Gdas {
            self.restore_undrawn()?;
        }
        Ok(pass.loss)
    }

    /// Gives the weights of operations that have not been drawn yet their first values and no momentum.
    fn restore_undrawn(&mut self) -> Result<()> {
        let Model { net, weights: first, .. } = &mut self.model;
        let mut weights = net.params.export(|bucket| &bucket.weights);
        let mut momentum = net.params.export(|bucket| &bucket.momentum);
        let (masks, shape) = ([self.drawn.clone()], net.shape());
        for (name, weight) in weights.iter_mut().filter(|(name, _)| is_pruned(name, &masks, shape)) {
            *weight = first[name].shallow_clone();
            momentum.insert(name.clone(), weight.zeros_like());
        }
        net.params.import(&weights, |bucket| &bucket.weights)?;
        Ok(net.params.import(&momentum, |bucket| &bucket.momentum)?)
    }

    /// Runs the pass of the weight step; the gradients of the weights are in the buckets afterwards. Returns it with the
    /// gradient of alpha.
    fn weight_pass(&mut self) -> Result<(TrainingPass, Tensor)> {
        let sample = self.draw()?;
        let Some(theta) = self.perturbed(&sample)? else {
            let pass = self.model.train(&self.model.a, &sample.weights)?;
            let alpha = parameter_grads(&self.parameters, &sample, &pass.theta).remove(0);
            return Ok((pass, alpha));
        };
        // The published alpha holds the perturbed weights during this pass.
        let pass = self.model.train(&self.model.a, &MixingWeights::of(theta))?;
        let alpha = pass.theta[0].shallow_clone();
        Ok((pass, alpha))
    }

    /// Returns the mixing weights of the next forward pass.
    fn draw(&mut self) -> Result<Sample> {
        let method = self.published.method;
        if !matches!(method, Method::Snas | Method::Gdas) {
            return Ok(self.model.softmax(&self.parameters));
        }
        let (noise, tau) = (self.golden.tensor("gumbel")?.get(self.draws), self.golden.number("tau")?);
        self.draws += 1;
        if method == Method::Snas {
            let noise = self.model.on_device(&noise);
            return Ok(snas::draw(&self.model, &self.parameters, &[noise], tau));
        }
        let drawn = gdas::draw(&self.model, &self.parameters, &[noise], tau);
        for (all, now) in self.drawn.0.iter_mut().flatten().zip(drawn[0].mask.0.iter().flatten()) {
            *all |= *now;
        }
        Ok(self.parameters.path_sample(drawn, tau))
    }

    /// Returns the perturbed weights of `sample`, if the method perturbs them.
    fn perturbed(&self, sample: &Sample) -> Result<Option<Vec<Tensor>>> {
        let p = &sample.weights.operations;
        let noise = self.golden.tensor("uniform")?.get(self.iteration);
        let start = vec![start(&p[0], &self.model.on_device(&noise))];
        match self.parameters.rules().perturbation {
            Perturbation::None => Ok(None),
            Perturbation::Random => Ok(Some(start)),
            Perturbation::Adversarial => {
                let adversary = sdarts::adversary(&self.model, p, self.golden.number("epsilon")?);
                Ok(Some(adversary.attack(vec![start], &Solo)?.remove(0)))
            }
        }
    }

    /// Compares weights and running statistics at the end with those in `group`.
    fn compare_after(
        &self,
        group: &str,
        (weights, running): (&mut Comparison, &mut Comparison),
    ) -> Result<()> {
        let params = &self.model.net.params;
        let (learned, statistics) = (params.export(|bucket| &bucket.weights), params.export_running(0));
        for (name, theirs) in self.golden.group(group) {
            let label = format!("{group}/{name}");
            let before = self.model.weights.get(&name);
            match (learned.get(&name), statistics.get(&name), before) {
                (Some(ours), _, Some(before)) => {
                    // Rounded like those of the file, because some move by little more than a rounding error.
                    let ours = ours.to_device(Device::Cpu).to_kind(Kind::Float).to_kind(Kind::Double);
                    weights.add(&label, &(ours - before), &(theirs.to_kind(Kind::Double) - before));
                }
                (_, Some(ours), _) => running.add(&label, ours, &theirs),
                _ => return Err(self.golden.wrong(format!("'{label}' is no tensor of the network"))),
            }
        }
        Ok(())
    }
}
