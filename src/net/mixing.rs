//! Mixing: theta of one forward pass, prepared for the stacked operations.
//!
//! All cells of a kind share a table, so what is derived from theta is computed once per pass and table, not per cell.
//! Masks are known on the host: no value of theta is ever looked at.

use crate::space::Mask;
use std::cell::RefCell;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// Entries (edge, operation) of a table that a stacked tensor is mixed with, in its order.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Entries {
    /// The table.
    pub table: usize,
    /// (edge, operation).
    pub places: Vec<(usize, usize)>,
}

/// The mixing weights of one pass. Not shared between passes: it caches tensors of this pass's graph.
pub struct Mixing {
    /// Masked theta, one [E, O] per table.
    tables: Vec<Tensor>,
    cache: RefCell<HashMap<(Entries, i64, bool), Tensor>>,
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
    /// What a network passes that mixes nothing.
    pub fn none() -> Mixing {
        Mixing { tables: Vec::new(), cache: RefCell::default() }
    }

    /// `theta`: one [E, O] per table. Pruned entries are multiplied by 0, so that neither they nor their gradients
    /// count, whatever the caller passes.
    pub fn new(theta: &[Tensor], masks: &DeviceMasks) -> Mixing {
        let tables = theta.iter().zip(&masks.0).map(|(theta, mask)| theta * mask).collect();
        Mixing { tables, cache: RefCell::default() }
    }

    /// theta of `entries`, each repeated for `channels` channels: `[S*C]`, the scale of a batch norm.
    pub fn scale(&self, entries: &Entries, channels: i64) -> Tensor {
        self.cached(entries, channels, false, |values| {
            // Contiguous: `reshape` would hand out a view of stride 0 for one entry, and batch norm's backward reads
            // its weight as if it had stride 1.
            values.unsqueeze(1).expand([-1, channels], false).contiguous().view([-1])
        })
    }

    /// The 1x1 convolution [M*C, S*C, 1, 1] that mixes S tensors without weights (pooled states, the identity) into M
    /// edges: theta (x) identity. `entries`: M times S, edge by edge.
    pub fn matrix(&self, entries: &Entries, num_edges: usize, channels: i64) -> Tensor {
        self.cached(entries, channels, true, |values| {
            let (m, s) = (num_edges as i64, (entries.places.len() / num_edges) as i64);
            let eye = Tensor::eye(channels, (values.kind(), values.device()));
            let matrix = values.view([m, 1, s, 1]) * eye.view([1, channels, 1, channels]);
            matrix.view([m * channels, s * channels, 1, 1])
        })
    }

    fn cached(
        &self,
        entries: &Entries,
        channels: i64,
        matrix: bool,
        make: impl FnOnce(&Tensor) -> Tensor,
    ) -> Tensor {
        let key = (entries.clone(), channels, matrix);
        let mut cache = self.cache.borrow_mut();
        let made = cache.entry(key).or_insert_with(|| {
            let table = &self.tables[entries.table];
            let operations = table.size()[1];
            let places: Vec<i64> = entries
                .places
                .iter()
                .map(|&(edge, operation)| edge as i64 * operations + operation as i64)
                .collect();
            make(&table.reshape([-1]).index_select(0, &Tensor::from_slice(&places).to_device(table.device())))
        });
        made.shallow_clone()
    }
}
