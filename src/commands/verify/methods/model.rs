//! The network of a golden file of a search method, with its batches, and what is computed with it.
//!
//! Shapes: T tables, E edges, O operations, N batch, K classes.

use crate::commands::verify::comparison::{Comparison, Finding};
use crate::commands::verify::golden::{Golden, table_names};
use crate::commands::verify::supernet;
use crate::config::{ArchitectureSection, Config, Method, Precision};
use crate::error::Result;
use crate::method::parameters::{ArchitectureParameters, DrawPlace};
use crate::method::sample::Sample;
use crate::net::loss::cross_entropy;
use crate::net::mixing::MixingWeights;
use crate::net::ops::{MOMENTUM, Mode};
use crate::net::params::Named;
use crate::net::placement::Placement;
use crate::net::supernet::Supernet;
use crate::random::Purpose;
use crate::space::{Mask, Operation, SearchSpace};
use crate::train::optimiser::clip_coefficient;
use tch::{Device, Kind, Tensor};

/// Images [N, 3, H, W] and labels `[N]`.
pub type Batch = (Tensor, Tensor);

/// A supernet with the weights that a golden file names or contains.
pub struct Model {
    /// The network.
    pub net: Supernet,
    /// Batch of the weight loss.
    pub a: Batch,
    /// Batch of the architecture loss; the same as `a` in a file with weights of its own.
    pub b: Batch,
    /// Weights and running statistics of the file.
    pub weights: Named,
    /// Running statistics that the network has loaded.
    running: Named,
    /// Whether they are those of the file.
    ///
    /// In the DARTS spaces the network has one batch norm for all edges on which a state is pooled, the published
    /// networks have one per edge. In a search they are equal, because they start equal; in the files they are random
    /// and differ, so evaluation passes cannot be reproduced.
    pub holds_statistics: bool,
}

/// Result of a training pass.
pub struct TrainingPass {
    /// [N, K].
    pub logits: Tensor,
    /// Scalar.
    pub loss: Tensor,
    /// Gradients of the mixing weights, in the order of [`MixingWeights::tensors`].
    pub theta: Vec<Tensor>,
}

impl Model {
    /// Loads the network of `golden`, which names a file of weights or is one itself. Columns of tables are the
    /// operations of `golden`.
    pub fn load(golden: &Golden, placement: Placement) -> Result<Model> {
        let shared = golden.setting("weights").map(|name| golden.beside(name)).transpose()?;
        let source = shared.as_ref().unwrap_or(golden);
        let space = golden.space().ok_or_else(|| golden.wrong("setting 'space': not a search space"))?;
        let operations = golden.operations()?;
        let masks = vec![Mask::full(space.num_edges(), operations.len()); space.tables().len()];
        let net = Supernet::new(supernet::shape(source, space, operations, masks)?, placement);
        let batch = |suffix: &str| -> Result<Batch> {
            let on_device = |name: &str| {
                let name = format!("{name}{suffix}");
                Ok(source.tensor(&name)?.to_device(placement.device))
            };
            on_device("input").and_then(|images| Ok((images, on_device("target")?)))
        };
        let (a, b) = match source.tensors.contains_key("input") {
            true => (batch("")?, batch("")?),
            false => (batch(".a")?, batch(".b")?),
        };
        let weights = source.group("weights");
        let mut model = Model { net, a, b, weights, running: Named::new(), holds_statistics: true };
        model.reset()?;
        model.running = model.net.params.export_running(0);
        let holds = |(name, loaded): (&String, &Tensor)| {
            loaded.to_device(Device::Cpu).to_kind(Kind::Float) == model.weights[name].to_kind(Kind::Float)
        };
        model.holds_statistics = model.running.iter().all(holds);
        Ok(model)
    }

    /// Restores weights and running statistics and discards gradients.
    pub fn reset(&mut self) -> Result<()> {
        self.net.params.buckets.iter().for_each(|bucket| bucket.clear());
        Ok(self.net.params.load(&self.weights)?)
    }

    /// Returns the running statistics to expect after a training pass, given those of the file. Where a different value
    /// was loaded, only the share of the batch is that of the file.
    pub fn expected_running(&self, after: &Named) -> Named {
        let expected = |(name, after): (&String, &Tensor)| {
            let loaded = self.running.get(name)?.to_device(Device::Cpu);
            let shift = (loaded - self.weights.get(name)?) * (1.0 - MOMENTUM);
            Some((name.clone(), after + shift))
        };
        after.iter().filter_map(expected).collect()
    }

    /// The search space.
    pub fn space(&self) -> SearchSpace {
        self.net.shape().space
    }

    /// Reads the tables `prefix` of `golden`, one per kind of cell, in the kind of the weights.
    pub fn tables(&self, golden: &Golden, prefix: &str) -> Result<Vec<Tensor>> {
        let tables = golden.tables(self.space(), prefix, "")?;
        Ok(tables.iter().map(|table| self.on_device(table)).collect())
    }

    /// Copies a tensor to the device, in the kind of the weights.
    pub fn on_device(&self, tensor: &Tensor) -> Tensor {
        let placement = self.net.placement();
        tensor.to_kind(placement.precision.weights()).to_device(placement.device)
    }

    /// Returns the parameters of `method` with the values of the file (`alpha`, and `beta` with edge weights).
    pub fn parameters(
        &self,
        golden: &Golden,
        method: Method,
        section: ArchitectureSection,
    ) -> Result<ArchitectureParameters> {
        let Placement { precision, device, .. } = self.net.placement();
        let place = (self.space(), &self.net.shape().operations[..], precision, device);
        let mut values = vec![Tensor::stack(&self.tables(golden, "alpha")?, 0)];
        if method == Method::PcDarts {
            values.push(Tensor::stack(&self.tables(golden, "beta")?, 0));
        }
        Ok(parameters(method, place, section, &values))
    }

    /// Returns the mixing weights of a method that draws nothing.
    pub fn softmax(&self, parameters: &ArchitectureParameters) -> Sample {
        let place = DrawPlace { purpose: Purpose::ThetaArchitectureStep, step: 0, replica: 0 };
        parameters.draw(self.net.masks(), place, (0, 1))
    }

    /// Runs a training pass; the gradients of the weights are in the buckets afterwards.
    pub fn train(&self, (images, labels): &Batch, weights: &MixingWeights) -> Result<TrainingPass> {
        let buckets = &self.net.params.buckets;
        buckets.iter().for_each(|bucket| bucket.clear());
        let leaves = weights.leaves();
        let tape = self.net.forward(images, &leaves, 0);
        let logits = tape.logits().detach();
        let loss = cross_entropy(tape.logits(), labels);
        let mut backward = tape.backward(&loss);
        for segment in backward.by_ref() {
            let (bucket, grads) = segment?;
            buckets[bucket].add(&grads);
        }
        let theta = backward.theta_grads(&leaves)?;
        Ok(TrainingPass { logits, loss: loss.detach(), theta })
    }

    /// Runs a training pass for the gradients of the mixing weights only.
    pub fn train_theta(&self, (images, labels): &Batch, weights: &MixingWeights) -> Result<TrainingPass> {
        let leaves = weights.leaves();
        let tape = self.net.forward_theta(images, &leaves, Mode::Train, 0);
        let logits = tape.logits().detach();
        let loss = cross_entropy(tape.logits(), labels);
        let theta = tape.backward(&loss)?;
        Ok(TrainingPass { logits, loss: loss.detach(), theta })
    }

    /// Returns the norm of the gradients in the buckets and of `more`.
    pub fn grad_norm(&self, more: &[Tensor]) -> Tensor {
        // The norm that clipping uses, from the coefficient, which is MAX / (norm + 1e-6).
        const MAX: f64 = 1e-3;
        let grads = self.net.params.buckets.iter().map(|bucket| &bucket.grads).chain(more);
        clip_coefficient(grads, MAX).reciprocal() * MAX - 1e-6
    }

    /// Compares one tensor per table with the tensors `prefix.TABLE.suffix` of `golden`.
    pub fn compare(
        &self,
        mut comparison: Comparison,
        golden: &Golden,
        name: (&str, &str),
        ours: &[Tensor],
    ) -> Result<Finding> {
        self.add(&mut comparison, golden, name, ours)?;
        Ok(comparison.finding())
    }

    /// Adds one tensor per table to a comparison with the tensors `prefix.TABLE.suffix` of `golden`.
    pub fn add(
        &self,
        comparison: &mut Comparison,
        golden: &Golden,
        (prefix, suffix): (&str, &str),
        ours: &[Tensor],
    ) -> Result<()> {
        let theirs = golden.tables(self.space(), prefix, suffix)?;
        let names = table_names(self.space(), prefix, suffix);
        for (name, (ours, theirs)) in names.iter().zip(ours.iter().zip(&theirs)) {
            comparison.add(name, ours, theirs);
        }
        Ok(())
    }
}

/// Compares a file of weights that other files use: the network holds them unchanged. Statistics are compared only if the
/// network can hold them.
pub fn weights(golden: &Golden, placement: Placement) -> Result<Vec<Finding>> {
    let model = Model::load(golden, placement)?;
    let mut ours = model.net.params.export(|bucket| &bucket.weights);
    if model.holds_statistics {
        ours.extend(model.net.params.export_running(0));
    }
    Ok(vec![Comparison::new("weights, loaded", 0.0, 0.0).all(&ours, &model.weights, |_| false)])
}

/// Returns the gradients of the parameters, one tensor [T, ...] per parameter, given those of the mixing weights.
pub fn parameter_grads(
    parameters: &ArchitectureParameters,
    sample: &Sample,
    theta_grads: &[Tensor],
) -> Vec<Tensor> {
    let sums = parameters.zero_sums();
    sample.add_grads(parameters.values(), theta_grads, 1.0, &sums);
    sums
}

/// Returns the parameters of `method` with given values, one tensor [T, ...] per parameter. `section`: their optimiser.
pub fn parameters(
    method: Method,
    (space, operations, precision, device): (SearchSpace, &[Operation], Precision, Device),
    section: ArchitectureSection,
    values: &[Tensor],
) -> ArchitectureParameters {
    let mut config = Config { method, precision, architecture: section, ..Config::default() };
    config.model.space = space;
    config.model.operations = operations.to_vec();
    let mut parameters = ArchitectureParameters::new(&config, device);
    for (value, given) in parameters.values_mut().iter_mut().zip(values) {
        value.copy_(given);
    }
    parameters
}
