//! Evaluation: trains a found network from scratch, step by step, and tests it.
//!
//! A run is defined over R logical replicas, as in a search: each has its own batch statistics and random streams,
//! gradients are averaged, and a rank computes its replicas one after another. The result does not depend on the number
//! of ranks.
//!
//! Shapes: N batch, K classes, R replicas.

pub mod state;

use crate::comm::{Communicator, all_gather_varied};
use crate::config::EvaluateConfig;
use crate::data::{Loader, TestLoader, Upload};
use crate::error::Result;
use crate::net::loss::{cross_entropy, smoothed_cross_entropy};
use crate::net::network::{Network, NetworkShape};
use crate::net::params::Named;
use crate::net::placement::Placement;
use crate::space::genotype::Genotype;
use crate::train::optimiser::Sgd;
use crate::train::schedule::Schedule;
use crate::train::state::{averaged_running, gather_running};
use crate::train::tally::{StepOutcome, measure};
use crate::train::{self, step};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Result of a test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// Epochs trained before the test.
    pub epoch: u64,
    /// Number of test images.
    pub images: u64,
    /// Number of correct top-1 predictions.
    pub top1_hits: u64,
    /// Number of correct top-5 predictions.
    pub top5_hits: u64,
    /// Mean cross entropy (without smoothing).
    pub loss: f64,
}

impl Tested {
    /// Returns the top-1 accuracy, in 0..1.
    pub fn top1(&self) -> f64 {
        self.top1_hits as f64 / self.images as f64
    }

    /// Returns the top-5 accuracy, in 0..1.
    pub fn top5(&self) -> f64 {
        self.top5_hits as f64 / self.images as f64
    }
}

/// The tests of a run so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tests {
    /// The last test.
    pub last: Option<Tested>,
    /// The test with the best top-1 accuracy; the first of equal ones.
    pub best: Option<Tested>,
}

impl Tests {
    /// Adds a test; returns whether it is the best.
    fn add(&mut self, tested: Tested) -> bool {
        self.last = Some(tested);
        let better = self.best.is_none_or(|best| tested.top1_hits > best.top1_hits);
        if better {
            self.best = Some(tested);
        }
        better
    }
}

/// Returns the shape of the network of `genotype` with the given configuration.
pub fn shape(config: &EvaluateConfig, genotype: &Genotype) -> NetworkShape {
    NetworkShape {
        space: config.model.space,
        genotype: genotype.clone(),
        init_channels: config.model.init_channels,
        layers: config.model.layers as usize,
        num_classes: config.model.num_classes,
        px: config.data.test_crop_px(),
        auxiliary: config.evaluate.auxiliary_weight > 0.0,
    }
}

/// Creates a network with a slot of running statistics for each of `replicas` and one for the averaged ones used in
/// tests.
fn network(config: &EvaluateConfig, shape: NetworkShape, replicas: usize, device: Device) -> Network {
    Network::new(shape, Placement::of(config, device, replicas + 1))
}

/// State of an evaluation and what a step needs. Equal on all ranks except for the replicas.
pub struct Evaluation {
    config: EvaluateConfig,
    schedule: Schedule,
    steps_per_epoch: u64,
    /// The replicas that this rank computes.
    replicas: Range<usize>,
    net: Network,
    upload: Upload,
    sgd: Sgd,
    /// Steps done.
    step: u64,
    tests: Tests,
}

impl Evaluation {
    /// Creates the initial state, with the same weights on every rank. `steps_of_data`: steps per pass over the
    /// training set; `evaluate.steps_per_epoch` may end epochs earlier. Local.
    pub fn new(
        config: &EvaluateConfig,
        genotype: &Genotype,
        steps_of_data: u64,
        replicas: Range<usize>,
        device: Device,
    ) -> Evaluation {
        let mut net = network(config, shape(config, genotype), replicas.len(), device);
        net.params.initialise(config.seed);
        let bound = config.evaluate.steps_per_epoch;
        Evaluation {
            schedule: Schedule::of_evaluation(config),
            steps_per_epoch: if bound == 0 { steps_of_data } else { steps_of_data.min(bound) },
            sgd: Sgd::of(&config.weights),
            upload: Upload::new(&config.data.mean, &config.data.std, device),
            config: config.clone(),
            replicas,
            net,
            step: 0,
            tests: Tests::default(),
        }
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Steps per epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// The network.
    pub fn net(&self) -> &Network {
        &self.net
    }

    /// The tests so far.
    pub fn tests(&self) -> &Tests {
        &self.tests
    }

    /// Returns the epoch of a step, both from 0.
    pub fn epoch_of(&self, step: u64) -> u64 {
        step / self.steps_per_epoch
    }

    /// Returns the learning rate of an epoch.
    pub fn lr(&self, epoch: u64) -> f64 {
        self.schedule.lr(epoch)
    }

    /// Returns the drop-path probability of an epoch.
    pub fn drop_path(&self, epoch: u64) -> f64 {
        self.config.evaluate.drop_path * epoch as f64 / self.config.evaluate.epochs as f64
    }

    /// Trains one step on the next batches of `loader`; gradients are averaged over all replicas. Collective.
    pub fn train_step(&mut self, loader: &mut Loader, comm: &dyn Communicator) -> Result<StepOutcome> {
        let next = |upload: &mut Upload, outcome: &mut StepOutcome| step::prepare(loader, upload, outcome);
        let mut outcome = self.train_on(next, comm)?;
        outcome.data_wait_ms = loader.wait_ms();
        Ok(outcome)
    }

    /// Trains one step; `next` returns the images and labels of each local replica, on the device. Collective.
    pub fn train_on(
        &mut self,
        mut next: impl FnMut(&mut Upload, &mut StepOutcome) -> Result<(Tensor, Tensor)>,
        comm: &dyn Communicator,
    ) -> Result<StepOutcome> {
        let mut outcome = StepOutcome::default();
        let epoch = self.epoch_of(self.step);
        let probability = self.drop_path(epoch);
        for (local, replica) in self.replicas.clone().enumerate() {
            let (images, labels) = next(&mut self.upload, &mut outcome)?;
            let at = (self.config.seed, self.step, replica as u64);
            let drop_path = self.net.drop_path(probability, at, images.size()[0]);
            let tape = self.net.forward(&images, drop_path, local);
            let loss = self.loss(tape.results(), &labels);
            outcome.weights.push(measure(tape.logits(), &labels, &loss));
            let turn = (local, self.replicas.len());
            step::backward(tape, &loss, &self.net.params.buckets, turn, comm)?;
        }
        let rates = (self.lr(epoch), self.config.evaluate.grad_clip);
        step::descend(&mut self.net.params.buckets, &self.sgd, rates, comm, &mut outcome)?;
        self.step += 1;
        Ok(outcome)
    }

    /// Returns the training loss. `results`: logits and, with an auxiliary head, its logits.
    fn loss(&self, results: &[Tensor], labels: &Tensor) -> Tensor {
        let evaluate = &self.config.evaluate;
        let loss = |logits| smoothed_cross_entropy(logits, labels, evaluate.label_smoothing);
        match results {
            [logits, auxiliary] => loss(logits) + loss(auxiliary) * evaluate.auxiliary_weight,
            results => loss(&results[0]),
        }
    }

    /// Returns whether a test is due after the epoch that has just ended.
    pub fn test_is_due(&self) -> bool {
        let epochs = self.step / self.steps_per_epoch;
        epochs == self.config.evaluate.epochs || epochs.is_multiple_of(self.config.evaluate.test_every)
    }

    /// Tests the current network with the running statistics averaged over all replicas; returns whether it is the best
    /// so far. Collective.
    pub fn test(&mut self, loader: &mut TestLoader, comm: &dyn Communicator) -> Result<bool> {
        let all = gather_running(&self.net.params, self.replicas.len(), comm)?;
        let agreed = averaged_running(&self.net.params, &all);
        self.net.params.import_running(self.replicas.len(), &agreed)?;
        let epoch = self.step / self.steps_per_epoch;
        let tested = test(&self.net, self.replicas.len(), &self.config, epoch, loader, comm)?;
        Ok(self.tests.add(tested))
    }

    /// Returns the weights as used in tests, on the host, under the published names. Local, after a test.
    pub fn tested_weights(&self) -> Named {
        let mut named = self.net.params.export(|bucket| &bucket.weights);
        named.extend(self.net.params.export_running(self.replicas.len()));
        named.into_iter().map(|(name, tensor)| (name, tensor.to_device(Device::Cpu))).collect()
    }
}

/// Tests given weights (published names; an auxiliary head is ignored). Collective.
pub fn test_weights(
    config: &EvaluateConfig,
    genotype: &Genotype,
    weights: &Named,
    loader: &mut TestLoader,
    device: Device,
    comm: &dyn Communicator,
) -> Result<Tested> {
    let shape = NetworkShape { auxiliary: false, ..shape(config, genotype) };
    let mut net = network(config, shape, 0, device);
    net.params.load(weights)?;
    test(&net, 0, config, 0, loader, comm)
}

/// Sums per test batch: images, cross entropy, correct top-1 predictions, correct top-5 predictions.
const SUMS: usize = 4;

/// Tests every image once. The batches and the order of summation are the same for any number of ranks.
fn test(
    net: &Network,
    slot: usize,
    config: &EvaluateConfig,
    epoch: u64,
    loader: &mut TestLoader,
    comm: &dyn Communicator,
) -> Result<Tested> {
    let device = net.params.device();
    let mut upload = Upload::new(&config.data.mean, &config.data.std, device);
    let mut mine: Vec<Tensor> = Vec::new();
    while let Some(batch) = loader.next()? {
        let (images, labels) = upload.input(&batch)?;
        let n = images.size()[0] as f64;
        let means = tch::no_grad(|| {
            let logits = net.logits(&images, slot);
            measure(&logits, &labels, &cross_entropy(&logits, &labels))
        });
        let count = Tensor::full([1], n, (Kind::Double, device));
        mine.push(Tensor::cat(&[count, means * n], 0));
        comm.progress()?;
    }
    let rows = match mine.is_empty() {
        true => Vec::new(),
        false => Vec::<Vec<f64>>::try_from(Tensor::stack(&mine, 0).to_device(Device::Cpu))?,
    };
    let rows = gather_rows(&rows, comm)?;
    let sum = |column: usize| rows.iter().map(|row| row[column]).sum::<f64>();
    let [images, loss, top1, top5] = [0, 1, 2, 3].map(sum);
    if !loss.is_finite() {
        return Err(train::Error::TestNotFinite { epoch }.into());
    }
    Ok(Tested {
        epoch,
        images: images as u64,
        top1_hits: top1.round() as u64,
        top5_hits: top5.round() as u64,
        loss: loss / images,
    })
}

/// Gathers the rows of all ranks in the order of the batches, which were distributed round-robin. Collective.
fn gather_rows(mine: &[Vec<f64>], comm: &dyn Communicator) -> Result<Vec<Vec<f64>>> {
    let flat: Vec<f64> = mine.concat();
    let of_ranks: Vec<Vec<Vec<f64>>> = all_gather_varied(comm, bytemuck::cast_slice(&flat))?
        .iter()
        .map(|bytes| {
            bytemuck::pod_collect_to_vec::<u8, f64>(bytes).chunks(SUMS).map(<[f64]>::to_vec).collect()
        })
        .collect();
    let longest = of_ranks.iter().map(Vec::len).max().unwrap_or(0);
    let rounds = (0..longest).flat_map(|at| of_ranks.iter().filter_map(move |rows| rows.get(at).cloned()));
    Ok(rounds.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{EvaluateSection, ModelSection, WeightsSection};
    use crate::random::torch_seeded;
    use crate::space::SearchSpace;

    #[test]
    fn the_first_of_equal_tests_is_the_best() {
        let tested = |epoch, top1_hits| Tested { epoch, images: 10, top1_hits, top5_hits: 9, loss: 1.0 };
        let mut tests = Tests::default();
        assert!(tests.add(tested(1, 5)));
        assert!(tests.add(tested(2, 7)));
        assert!(!tests.add(tested(3, 7)));
        assert!(!tests.add(tested(4, 6)));
        assert_eq!((tests.best.unwrap().epoch, tests.last.unwrap().epoch), (2, 4));
        assert_eq!(tests.best.unwrap().top1(), 0.7);
    }

    #[test]
    fn dropped_paths_differ_between_steps_and_replicas() {
        let model = ModelSection {
            space: SearchSpace::DartsCifar,
            init_channels: 4,
            layers: 3,
            num_classes: 4,
            ..ModelSection::default()
        };
        let mut config = EvaluateConfig { model, ..EvaluateConfig::default() };
        config.data.px = 16;
        config.evaluate = EvaluateSection {
            replicas: 2,
            global_batch: 8,
            epochs: 2,
            auxiliary_weight: 0.0,
            drop_path: 0.6,
            ..config.evaluate
        };
        // The weights hardly change, so different losses are due to different dropped paths.
        config.weights = WeightsSection { lr: 1e-30, warmup_epochs: 0, ..config.weights };
        let genotype = Genotype::read("DrNAS_cifar10").unwrap();
        let images = torch_seeded(1, || Tensor::randn([4, 3, 16, 16], (Kind::Float, Device::Cpu)));
        let labels = Tensor::from_slice(&[0i64, 1, 2, 3]);
        // Two epochs of two steps; one loss per step and replica.
        let losses = |replicas: Range<usize>| -> Vec<f64> {
            let mut evaluation = Evaluation::new(&config, &genotype, 2, replicas, Device::Cpu);
            let step = |evaluation: &mut Evaluation| {
                let batch = |_: &mut _, _: &mut _| Ok((images.shallow_clone(), labels.shallow_clone()));
                evaluation.train_on(batch, &crate::comm::Solo).unwrap().weights
            };
            let all: Vec<Tensor> = (0..4).flat_map(|_| step(&mut evaluation)).collect();
            all.iter().map(|numbers| numbers.double_value(&[0])).collect()
        };
        let both = losses(0..2);
        assert!(both[..4].iter().all(|loss| *loss == both[0]), "{both:?}");
        for (at, loss) in both.iter().enumerate().skip(4) {
            assert!(!both[..at].contains(loss), "{both:?}");
        }
        // Independent of the rank that computes the replica.
        assert_eq!(losses(1..2), [both[1], both[3], both[5], both[7]]);
    }

    #[test]
    fn rows_are_in_the_order_of_the_batches() {
        let rows = vec![vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0, 7.0, 8.0]];
        assert_eq!(gather_rows(&rows, &crate::comm::Solo).unwrap(), rows);
        assert!(gather_rows(&[], &crate::comm::Solo).unwrap().is_empty());
    }
}
