//! Between two stages: prune, then widen, then carry the optimiser over.
//!
//! Everything is drawn from the run's seed and the stage's number, so every rank does the same without a word.

use super::dirichlet::prune;
use crate::error::Result;
use crate::net::supernet::{Supernet, SupernetShape};
use crate::net::widen::{Indices, draw_indices, widen, widen_running};
use crate::space::Mask;

/// Keeps `keep` operations per edge: the new masks and eta with 0 for what went. `eta`: one `[E][O]` per table.
pub fn pruned(eta: &mut [Vec<Vec<f64>>], masks: &[Mask], keep: usize) -> Vec<Mask> {
    eta.iter_mut().zip(masks).map(|(eta, mask)| prune(eta, mask, keep)).collect()
}

/// The network of the next stage: kept operations only, C/k channels each; weights, momentum and every replica's running
/// statistics are carried over. `stage`: the number of the stage that begins.
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
