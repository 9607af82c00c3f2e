//! Mixing weights theta of one forward pass, prepared for the stacked operations.
//!
//! All cells of a kind share a table, so tensors derived from theta are computed once per pass and table, not per cell.
//! The masks are known on the host: no value of theta is read back, and only the first pass uploads anything.

use crate::net::error::Result;
use crate::space::Mask;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Entries (edge, operation) of a table, in the order in which a stacked tensor is mixed with them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Entries {
    /// Index of the table.
    pub table: usize,
    /// (edge, operation).
    pub places: Vec<(usize, usize)>,
}

/// Key of a derived tensor: entries, channels, whether it is a matrix.
type Key = (Entries, i64, bool);

/// Mixing weights of one pass. Not shared between passes: it caches tensors of the graph of this pass.
pub struct Mixing {
    masks: DeviceMasks,
    /// Masked theta, one [E, O] per table.
    tables: Vec<Tensor>,
    derived: RefCell<HashMap<Key, Tensor>>,
    /// Leaves returned in place of derived tensors while the graph is cut.
    cuts: RefCell<Option<Cuts>>,
}

/// Leaves at which a part of the network starts instead of at theta.
#[derive(Default)]
pub struct Cuts {
    keys: Vec<Key>,
    leaves: Vec<Tensor>,
}

impl Cuts {
    /// Returns the tensors to differentiate for.
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }
}

/// Masks and indices of entries on the device; created once per stage.
#[derive(Clone)]
pub struct DeviceMasks(Rc<Constants>);

struct Constants {
    masks: Vec<Tensor>,
    /// Positions of entries in the flattened table; filled by the first pass.
    indices: RefCell<HashMap<Entries, Tensor>>,
}

impl DeviceMasks {
    /// Copies the masks to `device`.
    pub fn new(masks: &[Mask], kind: Kind, device: Device) -> DeviceMasks {
        let table = |mask: &Mask| {
            let rows: Vec<Tensor> = mask.0.iter().map(|row| Tensor::from_slice(row)).collect();
            Tensor::stack(&rows, 0).to_kind(kind).to_device(device)
        };
        DeviceMasks(Rc::new(Constants {
            masks: masks.iter().map(table).collect(),
            indices: RefCell::default(),
        }))
    }

    /// Returns the mask of one table, [E, O], 0 or 1 in the kind of the weights.
    pub fn table(&self, table: usize) -> &Tensor {
        &self.0.masks[table]
    }

    /// Returns the positions of `entries` in a flattened table with `operations` columns, on `device`.
    fn index(&self, entries: &Entries, operations: i64, device: Device) -> Tensor {
        let mut indices = self.0.indices.borrow_mut();
        if let Some(index) = indices.get(entries) {
            return index.shallow_clone();
        }
        let place = |&(edge, operation): &(usize, usize)| edge as i64 * operations + operation as i64;
        let places: Vec<i64> = entries.places.iter().map(place).collect();
        let index = Tensor::from_slice(&places).to_device(device);
        indices.insert(entries.clone(), index.shallow_clone());
        index
    }
}

impl Mixing {
    /// Returns an empty instance, for networks without mixing.
    pub fn none() -> Mixing {
        Mixing::new(&[], &DeviceMasks::new(&[], Kind::Float, Device::Cpu))
    }

    /// `theta`: one [E, O] per table. Pruned entries are multiplied by 0, so that neither they nor their gradients have
    /// an effect.
    pub fn new(theta: &[Tensor], masks: &DeviceMasks) -> Mixing {
        let tables = theta.iter().zip(&masks.0.masks).map(|(theta, mask)| theta * mask).collect();
        Mixing { masks: masks.clone(), tables, derived: RefCell::default(), cuts: RefCell::default() }
    }

    /// Returns theta of `entries`, each repeated for `channels` channels, as the scale `[S*C]` of a batch norm.
    pub fn scale(&self, entries: &Entries, channels: i64) -> Tensor {
        self.cached(entries, channels, false, |values| {
            // Contiguous: for a single entry, `reshape` would return a view of stride 0, but the backward pass of batch
            // norm reads its weight with stride 1.
            values.unsqueeze(1).expand([-1, channels], false).contiguous().view([-1])
        })
    }

    /// Returns the weight [M*C, S*C, 1, 1] of the 1x1 convolution that mixes S tensors without weights (pooled states,
    /// the identity) into M edges: theta (x) identity, in the kind of theta. `entries`: M times S, edge by edge.
    pub fn matrix(&self, entries: &Entries, num_edges: usize, channels: i64) -> Tensor {
        self.cached(entries, channels, true, |values| {
            let (m, s) = (num_edges as i64, (entries.places.len() / num_edges) as i64);
            let eye = Tensor::eye(channels, (values.kind(), values.device()));
            let matrix = values.view([m, 1, s, 1]) * eye.view([1, channels, 1, channels]);
            matrix.view([m * channels, s * channels, 1, 1])
        })
    }

    /// Runs a part of the network on leaves instead of tensors derived from theta; returns its result and the leaves
    /// (none if theta is constant).
    pub fn cut<T>(&self, part: impl FnOnce() -> T) -> (T, Cuts) {
        if self.tables.iter().any(Tensor::requires_grad) {
            self.cuts.replace(Some(Cuts::default()));
        }
        let result = part();
        (result, self.cuts.take().unwrap_or_default())
    }

    /// Returns the gradient with respect to theta of the parts that were cut, given the gradients of their leaves in
    /// order. `theta`: as passed to `new`.
    pub fn grads(&self, theta: &[Tensor], parts: Vec<(Cuts, Vec<Tensor>)>) -> Result<Vec<Tensor>> {
        let mut sums: HashMap<Key, Tensor> = HashMap::new();
        for (cuts, grads) in parts {
            for (key, grad) in cuts.keys.into_iter().zip(grads).filter(|(_, grad)| grad.defined()) {
                let sum = match sums.remove(&key) {
                    Some(sum) => sum + grad,
                    None => grad,
                };
                sums.insert(key, sum);
            }
        }
        let derived = self.derived.borrow();
        // Autograd starts from ones, so the gradient of x * g starts with g.
        let roots: Vec<Tensor> = sums.iter().map(|(key, sum)| &derived[key] * sum).collect();
        Ok(Tensor::f_run_backward(&roots, theta, false, false)?)
    }

    fn cached(
        &self,
        entries: &Entries,
        channels: i64,
        matrix: bool,
        make: impl FnOnce(&Tensor) -> Tensor,
    ) -> Tensor {
        let key = (entries.clone(), channels, matrix);
        let mut derived = self.derived.borrow_mut();
        let made = derived.entry(key.clone()).or_insert_with(|| {
            let table = &self.tables[entries.table];
            let index = self.masks.index(entries, table.size()[1], table.device());
            // Also for parts computed without a graph.
            tch::with_grad(|| make(&table.reshape([-1]).index_select(0, &index)))
        });
        let mut cuts = self.cuts.borrow_mut();
        let Some(cuts) = cuts.as_mut() else {
            return made.shallow_clone();
        };
        let leaf = made.detach().set_requires_grad(true);
        cuts.keys.push(key);
        cuts.leaves.push(leaf.shallow_clone());
        leaf
    }
}
