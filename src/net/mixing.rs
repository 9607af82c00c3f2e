//! Mixing: theta of one forward pass, prepared for the stacked operations.
//!
//! All cells of a kind share a table, so what is derived from theta is computed once per pass and table, not per cell.
//! Masks are known on the host: no value of theta is ever looked at.

use crate::space::Mask;
use std::cell::RefCell;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// Which rows (edges) and column (operation) of a table a stacked tensor needs.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    table: usize,
    edges: Vec<usize>,
    operations: Vec<usize>,
    channels: i64,
}

/// The mixing weights of one pass. Not shared between passes: it caches tensors of this pass's graph.
pub struct Mixing {
    /// Masked theta, one [E, O] per table.
    tables: Vec<Tensor>,
    cache: RefCell<HashMap<Key, Tensor>>,
}

/// What the masks are on the device: made once per stage.
pub struct DeviceMasks(Vec<Tensor>);

impl DeviceMasks {
    /// Copies the masks to `device`.
    pub fn new(masks: &[Mask], kind: Kind, device: Device) -> DeviceMasks {
        let table = |mask: &Mask| {
            let rows: Vec<Tensor> = mask.0.iter().map(|row| Tensor::from_slice(row)).collect();
            Tensor::stack(&rows, 0).to_kind(kind).to_device(device)
        };
        DeviceMasks(masks.iter().map(table).collect())
    }

    /// The mask of one table, [E, O], 0 or 1 in the network's kind.
    pub fn table(&self, table: usize) -> &Tensor {
        &self.0[table]
    }
}

impl Mixing {
    /// `theta`: one [E, O] per table. Pruned entries are multiplied by 0, so that neither they nor their gradients
    /// count, whatever the caller passes.
    pub fn new(theta: &[Tensor], masks: &DeviceMasks) -> Mixing {
        let tables = theta.iter().zip(&masks.0).map(|(theta, mask)| theta * mask).collect();
        Mixing { tables, cache: RefCell::default() }
    }

    /// theta of `operation` on `edges`, each repeated for `channels` channels: [M*C], the scale of a batch norm.
    pub fn scale(&self, table: usize, edges: &[usize], operation: usize, channels: i64) -> Tensor {
        let key = Key { table, edges: edges.to_vec(), operations: vec![operation], channels };
        self.cached(key, |theta| {
            let m = edges.len() as i64;
            // Contiguous: `reshape` would hand out a view of stride 0 for one edge, and batch norm's backward reads
            // its weight as if it had stride 1.
            column(theta, edges, operation).view([m, 1]).expand([m, channels], false).contiguous().view([-1])
        })
    }

    /// The 1x1 convolution [M*C, S*C, 1, 1] that mixes S tensors without weights (pooled states, the identity) into M
    /// edges: theta (x) identity. `operations`: the S columns, in the order of the tensors.
    pub fn matrix(&self, table: usize, edges: &[usize], operations: &[usize], channels: i64) -> Tensor {
        let key = Key { table, edges: edges.to_vec(), operations: operations.to_vec(), channels };
        self.cached(key, |theta| {
            let (m, s) = (edges.len() as i64, operations.len() as i64);
            let columns: Vec<Tensor> =
                operations.iter().map(|&operation| column(theta, edges, operation)).collect();
            let eye = Tensor::eye(channels, (theta.kind(), theta.device()));
            (Tensor::stack(&columns, 1).view([m, 1, s, 1]) * eye.view([1, channels, 1, channels])).view([
                m * channels,
                s * channels,
                1,
                1,
            ])
        })
    }

    fn cached(&self, key: Key, make: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
        let table = &self.tables[key.table];
        self.cache.borrow_mut().entry(key).or_insert_with(|| make(table)).shallow_clone()
    }
}

/// Entries (edges, operation) of a table, [M].
fn column(theta: &Tensor, edges: &[usize], operation: usize) -> Tensor {
    let rows: Vec<Tensor> =
        edges.iter().map(|&edge| theta.get(edge as i64).narrow(0, operation as i64, 1)).collect();
    Tensor::cat(&rows, 0)
}
