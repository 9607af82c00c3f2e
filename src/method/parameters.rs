//! Architecture parameters: their values and optimisers, drawing mixing weights from them, updating and pruning them.
//!
//! Shapes: T tables, E edges, O operations. `eta` or `alpha` [T, E, O]; `beta`, with edge weights, [T, E].

use super::path::{self, Drawn};
use super::rules::{MixingRule, Rules};
use super::sample::Sample;
use super::{dirichlet, softmax};
use crate::config::{ArchitectureSection, Config, Ramp, Regulariser, Unsampled};
use crate::error::Result;
use crate::net::bucket::sum_kind;
use crate::net::mixing::{DeviceMasks, SampledPath};
use crate::process::torch;
use crate::random::{Purpose, seed_of, stream};
use crate::space::Mask;
use crate::space::genotype::mean_weights;
use crate::train::optimiser::{Adam, clip_coefficient};
use crate::train::state::is_finite;
use rand_distr::{Distribution, StandardNormal};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Entries of a table on the host, `[E][O]`.
pub type HostTable = Vec<Vec<f64>>;

/// Identifies a draw; every draw has its own random stream.
#[derive(Clone, Copy, Debug)]
pub struct DrawPlace {
    /// Distinguishes weight, architecture and virtual steps.
    pub purpose: Purpose,
    /// Step, from 0.
    pub step: u64,
    /// Logical replica.
    pub replica: u64,
}

/// The parameters of a method, equal on all ranks.
pub struct ArchitectureParameters {
    rules: Rules,
    section: ArchitectureSection,
    seed: u64,
    names: &'static [&'static str],
    values: Vec<Tensor>,
    /// One per parameter.
    optimisers: Vec<Adam>,
    /// Input edges of every node.
    nodes: Vec<Range<i64>>,
}

impl ArchitectureParameters {
    /// Draws the initial values.
    pub fn new(config: &Config, device: Device) -> ArchitectureParameters {
        let (space, section) = (config.model.space, &config.architecture);
        let rules = Rules::of(config.method);
        let names: &[&str] = match rules.mixing {
            MixingRule::Dirichlet => &["eta"],
            MixingRule::Softmax
            | MixingRule::Concrete
            | MixingRule::StraightThrough
            | MixingRule::Categorical => &["alpha"],
            MixingRule::SoftmaxWithEdges => &["alpha", "beta"],
        };
        let (edges, operations) = (space.num_edges() as i64, config.operations().len() as i64);
        let kind = config.precision.weights();
        let shapes = [vec![edges, operations], vec![edges]];
        let purposes = [Purpose::Eta, Purpose::EdgeParameters];
        let values: Vec<Tensor> = (names.iter().zip(shapes).zip(purposes))
            .map(|((_, shape), purpose)| {
                let table = |table| initial(&shape, section.initial, config.seed, (purpose, table));
                let tables: Vec<Tensor> = (0..space.tables().len()).map(table).collect();
                Tensor::stack(&tables, 0).to_kind(kind).to_device(device)
            })
            .collect();
        // The KL regulariser replaces weight decay.
        let weight_decay = match section.regulariser {
            Regulariser::L2 => section.weight_decay,
            Regulariser::Kl => 0.0,
        };
        let adam = |value| Adam::new(value, section.lr, section.betas, weight_decay);
        ArchitectureParameters {
            rules,
            section: section.clone(),
            seed: config.seed,
            names,
            optimisers: values.iter().map(adam).collect(),
            values,
            nodes: space.nodes(),
        }
    }

    /// Returns the rules of the method.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Returns the values, one tensor per parameter.
    pub fn values(&self) -> &[Tensor] {
        &self.values
    }

    /// Returns the values, for tests that modify them.
    pub fn values_mut(&mut self) -> &mut [Tensor] {
        &mut self.values
    }

    /// Copies the parameters of the operations (eta, alpha) to the host, one table per kind of cell.
    pub fn on_host(&self) -> Result<Vec<HostTable>> {
        tables_on_host(&self.values[0])
    }

    /// Copies the parameters of the edge weights to the host, one list per kind of cell; `None` without edge weights.
    pub fn edges_on_host(&self) -> Result<Option<Vec<Vec<f64>>>> {
        let host = |beta: &Tensor| beta.to_device(Device::Cpu).to_kind(Kind::Double);
        Ok(self.values.get(1).map(|beta| Vec::try_from(host(beta))).transpose()?)
    }

    /// Name of the parameters of the operations.
    pub fn name(&self) -> &'static str {
        self.names[0]
    }

    /// Returns the mean mixing weights (softmax over the kept operations), one table per kind of cell.
    pub fn mean_weights(&self, masks: &[Mask]) -> Result<Vec<HostTable>> {
        Ok(self.on_host()?.iter().zip(masks).map(|(table, mask)| mean_weights(table, mask)).collect())
    }

    /// Returns the scores that select the architecture, one table per kind of cell: the mean mixing weights, times
    /// the edge weights if there are any.
    pub fn scores(&self, masks: &[Mask]) -> Result<Vec<HostTable>> {
        let mut tables = self.mean_weights(masks)?;
        if let Some(beta) = self.values.get(1) {
            let weights = beta
                .unbind(0)
                .iter()
                .map(|beta| softmax::edge_softmax(beta, &self.nodes))
                .collect::<Vec<_>>();
            for (table, weights) in tables.iter_mut().zip(&weights) {
                let weights = Vec::<f64>::try_from(weights.to_device(Device::Cpu).to_kind(Kind::Double))?;
                for (row, weight) in table.iter_mut().zip(weights) {
                    row.iter_mut().for_each(|value| *value *= weight);
                }
            }
        }
        Ok(tables)
    }

    /// Keeps the `keep` operations with the largest parameters on every edge and returns the new masks.
    pub fn prune(&mut self, masks: &[Mask], keep: usize) -> Result<Vec<Mask>> {
        let mut tables = self.on_host()?;
        let pruned = prune_tables(&mut tables, masks, keep);
        let table = |table: &HostTable| {
            Tensor::stack(&table.iter().map(|row| Tensor::from_slice(row)).collect::<Vec<_>>(), 0)
        };
        self.values[0].copy_(&Tensor::stack(&tables.iter().map(table).collect::<Vec<_>>(), 0));
        Ok(pruned)
    }

    /// Returns the tensors of a checkpoint on the host: values and moments by name.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let host = |tensor: &Tensor| tensor.to_device(Device::Cpu);
        (self.names.iter().zip(&self.values).zip(&self.optimisers))
            .flat_map(|((name, value), adam)| {
                [
                    ((*name).to_owned(), host(value)),
                    (format!("{name}.mean"), host(&adam.mean)),
                    (format!("{name}.square"), host(&adam.square)),
                ]
            })
            .collect()
    }

    /// Returns the tensors to restore, by the names of [`Self::tensors`].
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor)> {
        (self.names.iter().zip(&mut self.values).zip(&mut self.optimisers)).flat_map(
            |((name, value), adam)| {
                [
                    ((*name).to_owned(), value),
                    (format!("{name}.mean"), &mut adam.mean),
                    (format!("{name}.square"), &mut adam.square),
                ]
            },
        )
    }

    /// Returns the name of a parameter with an infinite or undefined value, if there is one.
    pub fn not_finite(&self) -> Option<&'static str> {
        self.names.iter().zip(&self.values).find(|(_, value)| !is_finite(value)).map(|(name, _)| *name)
    }

    /// Steps of the optimiser.
    pub fn steps(&self) -> u64 {
        self.optimisers[0].steps
    }

    /// Sets the steps of the optimiser, when a run resumes.
    pub fn set_steps(&mut self, steps: u64) {
        self.optimisers.iter_mut().for_each(|adam| adam.steps = steps);
    }

    /// Returns zeros to which gradients of replicas are added, in the kind of sums, one tensor per parameter.
    pub fn zero_sums(&self) -> Vec<Tensor> {
        let zeros = |value: &Tensor| value.to_kind(sum_kind(value.kind(), value.device())).zeros_like();
        self.values.iter().map(zeros).collect()
    }

    /// Draws the mixing weights of one pass. `epoch` of `num_epochs` (from 0) sets the temperature. Local.
    pub fn draw(&self, masks: &DeviceMasks, place: DrawPlace, (epoch, num_epochs): (u64, u64)) -> Sample {
        let DrawPlace { purpose, step, replica } = place;
        let tables = 0..self.values[0].size()[0];
        let parameter = |table: i64| self.values[0].get(table);
        let random = |table: i64| stream(self.seed, purpose, &[step, replica, table as u64]);
        let mut sample = match self.rules.mixing {
            MixingRule::Dirichlet => Sample::dirichlet(
                tables
                    .map(|table| {
                        dirichlet::sample(&parameter(table), masks.table(table as usize), &mut random(table))
                    })
                    .collect(),
            ),
            MixingRule::Softmax | MixingRule::SoftmaxWithEdges => {
                let p = tables.map(|table| softmax::softmax(&parameter(table), masks.table(table as usize)));
                let edges = self.values.get(1).map_or(Vec::new(), |beta| {
                    beta.unbind(0).iter().map(|beta| softmax::edge_softmax(beta, &self.nodes)).collect()
                });
                Sample::softmax(p.collect(), 1.0, edges, self.nodes.clone())
            }
            MixingRule::Concrete => {
                let tau = ramp(self.section.temperature, self.section.temperature_ramp, epoch, num_epochs);
                let drawn = tables.map(|table| {
                    let alpha = parameter(table);
                    let gumbel = softmax::gumbel(&alpha.size(), &mut random(table)).to_kind(alpha.kind());
                    let gumbel = torch::upload(&gumbel, alpha.device());
                    softmax::concrete(&alpha, &gumbel, tau, masks.table(table as usize))
                });
                Sample::softmax(drawn.collect(), tau, Vec::new(), Vec::new())
            }
            MixingRule::StraightThrough | MixingRule::Categorical => {
                let tau = ramp(self.section.temperature, self.section.temperature_ramp, epoch, num_epochs);
                let drawn: Vec<Drawn> = tables
                    .map(|table| {
                        let alpha = parameter(table).to_device(Device::Cpu).to_kind(Kind::Double);
                        let kept = masks.table(table as usize).to_device(Device::Cpu);
                        let gumbel = softmax::gumbel(&alpha.size(), &mut random(table));
                        match self.rules.mixing {
                            MixingRule::StraightThrough => {
                                path::straight_through(&alpha, &gumbel, tau, &kept)
                            }
                            _ => path::categorical(&alpha, &gumbel, &kept),
                        }
                    })
                    .collect();
                self.path_sample(drawn, tau)
            }
        };
        sample.weights.noise_seed = self.noise_seed(place);
        sample
    }

    /// Returns a sample of one operation per edge, one `Drawn` per table.
    pub fn path_sample(&self, drawn: Vec<Drawn>, tau: f64) -> Sample {
        let values = &self.values[0];
        let upload = |table: &Tensor| torch::upload(&table.to_kind(values.kind()), values.device());
        let (z, q): (Vec<Tensor>, Vec<Tensor>) =
            drawn.iter().map(|drawn| (upload(&drawn.one_hot), upload(&drawn.q))).unzip();
        let masks = drawn.into_iter().map(|drawn| drawn.mask).collect();
        let adds_others =
            self.rules.mixing == MixingRule::StraightThrough && self.section.unsampled == Unsampled::Constant;
        let path = SampledPath { masks, adds_others };
        match self.rules.mixing {
            MixingRule::StraightThrough => Sample::straight_through(z, path, q, tau),
            _ => Sample::categorical(z, path, q),
        }
    }

    /// Returns the seed of `noise` operations in one pass.
    pub fn noise_seed(&self, DrawPlace { purpose, step, replica }: DrawPlace) -> u64 {
        seed_of(self.seed, Purpose::Noise, &[purpose as u64, step, replica])
    }

    /// Adds the regulariser, clips the averaged gradients and takes a step of Adam. `grads`: one tensor per parameter.
    pub fn descend(&mut self, mut grads: Vec<Tensor>) {
        if self.section.regulariser == Regulariser::Kl {
            for table in 0..grads[0].size()[0] {
                let pull = dirichlet::kl_grad(&self.values[0].get(table)) * self.section.kl_scale;
                let _ = grads[0].get(table).g_add_(&pull);
            }
        }
        let coefficient = clip_coefficient(grads.iter(), self.section.grad_clip);
        for ((value, adam), grad) in self.values.iter_mut().zip(&mut self.optimisers).zip(&mut grads) {
            let grad = grad.g_mul_(&coefficient).to_kind(value.kind());
            adam.step(value, &grad);
        }
    }
}

/// Copies tables `[T, E, O]` to the host.
fn tables_on_host(tables: &Tensor) -> Result<Vec<HostTable>> {
    let host = tables.to_device(Device::Cpu).to_kind(Kind::Double);
    (0..host.size()[0]).map(|table| Ok(HostTable::try_from(host.get(table))?)).collect()
}

/// Prunes to `keep` operations per edge: returns the new masks and sets the parameters of pruned operations to 0.
pub fn prune_tables(tables: &mut [HostTable], masks: &[Mask], keep: usize) -> Vec<Mask> {
    tables.iter_mut().zip(masks).map(|(table, mask)| dirichlet::prune(table, mask, keep)).collect()
}

/// Returns a value that changes linearly from `ends[0]` to `ends[1]`; epochs count from 0.
pub fn ramp(ends: [f64; 2], ramp: Ramp, epoch: u64, num_epochs: u64) -> f64 {
    let (done, all) = match ramp {
        Ramp::Start => (epoch, num_epochs),
        Ramp::Both => (epoch, num_epochs.saturating_sub(1).max(1)),
        Ramp::End => (epoch + 1, num_epochs),
    };
    ends[0] + (ends[1] - ends[0]) * done as f64 / all as f64
}

/// Draws the initial values of one table: mean + deviation * N(0, 1), in double precision on the CPU; the same on every
/// rank for one seed.
pub fn initial(
    shape: &[i64],
    [mean, deviation]: [f64; 2],
    seed: u64,
    (purpose, table): (Purpose, usize),
) -> Tensor {
    let mut random = stream(seed, purpose, &[table as u64]);
    let count: i64 = shape.iter().product();
    let values: Vec<f64> = (0..count)
        .map(|_| {
            let normal: f64 = StandardNormal.sample(&mut random);
            mean + deviation * normal
        })
        .collect();
    Tensor::from_slice(&values).view(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Method, StageSection};
    use crate::method::dirichlet::entropy;

    #[test]
    fn scores_are_mean_weights_times_edge_weights() {
        let mut config = Config { method: Method::PcDarts, ..Config::default() };
        config.model.operations = config.method.operations(config.model.space);
        config.search.stages = vec![StageSection { k: 6, ops_kept: 8, epochs: 25 }];
        let parameters = ArchitectureParameters::new(&config, Device::Cpu);
        let masks = config.masks().unwrap();
        let weights = parameters.mean_weights(&masks).unwrap();
        let scores = parameters.scores(&masks).unwrap();
        let sum = |row: &Vec<f64>| row.iter().sum::<f64>();
        for (weights, scores) in weights.iter().zip(&scores) {
            assert!(weights.iter().all(|row| (sum(row) - 1.0).abs() < 1e-12));
            // Almost uniform at the start.
            assert!((entropy(weights) - 8f64.ln()).abs() < 1e-3, "{}", entropy(weights));
            for edges in config.model.space.nodes() {
                let edges = edges.start as usize..edges.end as usize;
                let equal = 1.0 / edges.len() as f64;
                assert!(scores[edges.clone()].iter().all(|row| (sum(row) - equal).abs() < 1e-2));
                assert!((scores[edges].iter().map(sum).sum::<f64>() - 1.0).abs() < 1e-6);
            }
        }
    }
}
