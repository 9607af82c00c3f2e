//! Transition to the next stage: prunes operations, widens the network and carries the optimisers over.
//!
//! Everything is derived from the seed of the run and the index of the stage, so all ranks do the same without
//! communication.

use super::Search;
use crate::config::Config;
use crate::error::Result;
use crate::net::placement::Placement;
use crate::net::supernet::{Supernet, SupernetShape};
use crate::net::widen::{Indices, draw_indices, widen, widen_running};
use crate::space::Mask;
use tch::Device;

/// Creates the network of the next stage: kept operations only, with C/k channels each; weights, momentum and the
/// running statistics of every replica are carried over. `stage`: index of the next stage.
pub fn next_network(net: &Supernet, masks: Vec<Mask>, k: i64, seed: u64, stage: u64) -> Result<Supernet> {
    let old = net.shape();
    let weights = net.params.export(|bucket| &bucket.weights);
    let momentum = net.params.export(|bucket| &bucket.momentum);
    let indices = if k == old.k {
        Indices::default()
    } else {
        draw_indices(&weights, &net.params.export_running(0), old.k, k, seed, stage)
    };
    let mut next = Supernet::new(SupernetShape { k, masks, ..old.clone() }, net.placement());
    next.params.import(&widen(&weights, &indices), |bucket| &bucket.weights)?;
    next.params.import(&widen(&momentum, &indices), |bucket| &bucket.momentum)?;
    for replica in 0..net.params.num_replicas() {
        let running = widen_running(&net.params.export_running(replica), &indices);
        next.params.import_running(replica, &running)?;
    }
    Ok(next)
}

/// Creates the supernet of a stage with zero weights.
pub(super) fn supernet(
    config: &Config,
    k: i64,
    masks: Vec<Mask>,
    replicas: usize,
    device: Device,
) -> Supernet {
    let shape = SupernetShape {
        space: config.model.space,
        operations: config.operations(),
        init_channels: config.model.init_channels,
        layers: config.model.layers as usize,
        num_classes: config.model.num_classes,
        k,
        masks,
    };
    Supernet::new(shape, Placement::of(config, device, replicas))
}

impl Search {
    /// Advances to the next stage: prunes, widens, carries the optimisers over. Local; the same on all ranks.
    pub fn advance(&mut self) -> Result<()> {
        self.stage += 1;
        let next = self.config.search.stages[self.stage];
        let masks = self.architecture.prune(&self.net.shape().masks, next.ops_kept)?;
        self.net = next_network(&self.net, masks, next.k, self.config.seed, self.stage as u64)?;
        Ok(())
    }
}
