//! Mixing weights of one forward pass, prepared for the stacked operations.
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

/// Weights of the operations and edges of a pass: constants, or autograd leaves.
pub struct MixingWeights {
    /// theta: one [E, O] per table.
    pub operations: Vec<Tensor>,
    /// Weight of every edge, which multiplies its output after the partial channels are joined: one `[E]` per table, or
    /// empty if all are 1.
    pub edges: Vec<Tensor>,
    /// Seed of `noise` operations.
    pub noise_seed: u64,
    /// The only operations to compute; all kept ones if `None`.
    pub path: Option<SampledPath>,
}

/// Operations of a pass that does not compute all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledPath {
    /// The operations, one mask per table; kept by the network.
    pub masks: Vec<Mask>,
    /// Whether the weights of the other operations are added to the output of their edge, as numbers. They are 0, so only
    /// their gradient has an effect: that of an operation with the constant output 1. Source: the published GDAS code for
    /// NAS-Bench-201.
    pub adds_others: bool,
}

impl MixingWeights {
    /// Weights without edge weights.
    pub fn of(operations: Vec<Tensor>) -> MixingWeights {
        MixingWeights { operations, edges: Vec::new(), noise_seed: 0, path: None }
    }

    /// Returns copies that are autograd leaves.
    pub fn leaves(&self) -> MixingWeights {
        let leaves = |tensors: &[Tensor]| -> Vec<Tensor> {
            tensors.iter().map(|tensor| tensor.detach().set_requires_grad(true)).collect()
        };
        MixingWeights {
            operations: leaves(&self.operations),
            edges: leaves(&self.edges),
            noise_seed: self.noise_seed,
            path: self.path.clone(),
        }
    }

    /// Returns all tensors: those of the operations, then those of the edges.
    pub fn tensors(&self) -> Vec<&Tensor> {
        self.operations.iter().chain(&self.edges).collect()
    }
}

/// Form of a tensor derived from the mixing weights.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    Scale,
    Matrix,
    Edges,
    Others,
}

/// Key of a derived tensor: entries, channels, form.
type Key = (Entries, i64, Form);

/// Mixing weights of one pass. Not shared between passes: it caches tensors of the graph of this pass.
pub struct Mixing {
    masks: DeviceMasks,
    /// Masked theta times the edge weights, one [E, O] per table.
    tables: Vec<Tensor>,
    /// Edge weights, one [E, 1] per table; empty if all are 1.
    edges: Vec<Tensor>,
    /// Sums of the weights of the operations that are not on the path, one [E, 1] per table; empty unless they are added.
    others: Vec<Tensor>,
    /// Seed of `noise` operations.
    pub noise_seed: u64,
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
    /// Positions of entries in the flattened table of so many columns; filled by the first pass.
    indices: RefCell<HashMap<(Entries, i64), Tensor>>,
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

    /// Returns the positions of `entries` in a flattened table with `columns` columns, on `device`.
    fn index(&self, entries: &Entries, columns: i64, device: Device) -> Tensor {
        let mut indices = self.0.indices.borrow_mut();
        let index = indices.entry((entries.clone(), columns)).or_insert_with(|| {
            let place = |&(edge, operation): &(usize, usize)| edge as i64 * columns + operation as i64;
            let places: Vec<i64> = entries.places.iter().map(place).collect();
            Tensor::from_slice(&places).to_device(device)
        });
        index.shallow_clone()
    }
}

impl Mixing {
    /// Returns an empty instance, for networks without mixing.
    pub fn none() -> Mixing {
        let none = MixingWeights::of(Vec::new());
        Mixing::new(&none, &DeviceMasks::new(&[], Kind::Float, Device::Cpu))
    }

    /// Pruned entries, and those that are not on the path, are multiplied by 0, so that neither they nor their gradients have
    /// an effect.
    pub fn new(weights: &MixingWeights, masks: &DeviceMasks) -> Mixing {
        let all = &masks.0.masks;
        // The indices of a path are of no use for the next one.
        let masks = match (&weights.path, weights.operations.first()) {
            (Some(path), Some(table)) => DeviceMasks::new(&path.masks, table.kind(), table.device()),
            _ => masks.clone(),
        };
        let mut tables: Vec<Tensor> =
            weights.operations.iter().zip(&masks.0.masks).map(|(theta, mask)| theta * mask).collect();
        let edges: Vec<Tensor> = weights.edges.iter().map(|edges| edges.unsqueeze(1)).collect();
        for (table, edges) in tables.iter_mut().zip(&edges) {
            *table = &*table * edges;
        }
        let others = match &weights.path {
            Some(path) if path.adds_others => {
                let rest = weights.operations.iter().zip(all).zip(&masks.0.masks);
                rest.map(|((theta, all), path)| (theta * (all - path)).sum_dim_intlist(-1, true, None))
                    .collect()
            }
            _ => Vec::new(),
        };
        Mixing {
            masks,
            tables,
            edges,
            others,
            noise_seed: weights.noise_seed,
            derived: RefCell::default(),
            cuts: RefCell::default(),
        }
    }

    /// Returns the numbers to add to the outputs of edges, one per entry (edge, 0), if there are any.
    pub fn others(&self, entries: &Entries) -> Option<Tensor> {
        (!self.others.is_empty()).then(|| self.cached(entries, 1, Form::Others, Tensor::shallow_clone))
    }

    /// Returns whether edges have weights.
    pub fn has_edge_weights(&self) -> bool {
        !self.edges.is_empty()
    }

    /// Returns theta of `entries`, each repeated for `channels` channels, as the scale `[S*C]` of a batch norm.
    pub fn scale(&self, entries: &Entries, channels: i64) -> Tensor {
        self.cached(entries, channels, Form::Scale, |values| {
            // Contiguous: for a single entry, `reshape` would return a view of stride 0, but the backward pass of batch
            // norm reads its weight with stride 1.
            values.unsqueeze(1).expand([-1, channels], false).contiguous().view([-1])
        })
    }

    /// Returns the weight [M*C, S*C, 1, 1] of the 1x1 convolution that mixes S tensors without weights (pooled states,
    /// the identity) into M edges: theta (x) identity, in the kind of theta. `entries`: M times S, edge by edge.
    pub fn matrix(&self, entries: &Entries, num_edges: usize, channels: i64) -> Tensor {
        self.cached(entries, channels, Form::Matrix, |values| {
            let (m, s) = (num_edges as i64, (entries.places.len() / num_edges) as i64);
            let eye = Tensor::eye(channels, (values.kind(), values.device()));
            let matrix = values.view([m, 1, s, 1]) * eye.view([1, channels, 1, channels]);
            matrix.view([m * channels, s * channels, 1, 1])
        })
    }

    /// Returns the weights of edges, one per entry (edge, 0).
    pub fn edge_weights(&self, entries: &Entries) -> Tensor {
        self.cached(entries, 1, Form::Edges, Tensor::shallow_clone)
    }

    /// Runs a part of the network on leaves instead of tensors derived from theta; returns its result and the leaves
    /// (none if theta is constant).
    pub fn cut<T>(&self, part: impl FnOnce() -> T) -> (T, Cuts) {
        // With edge weights, tables are products of both; with others, both derive from theta.
        if self.tables.iter().any(Tensor::requires_grad) {
            self.cuts.replace(Some(Cuts::default()));
        }
        let result = part();
        (result, self.cuts.take().unwrap_or_default())
    }

    /// Returns the gradients with respect to `weights` (as passed to `new`), in the order of
    /// [`MixingWeights::tensors`], of the parts that were cut, given the gradients of their leaves in order.
    pub fn grads(&self, weights: &[&Tensor], parts: Vec<(Cuts, Vec<Tensor>)>) -> Result<Vec<Tensor>> {
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
        Ok(Tensor::f_run_backward(&roots, weights, false, false)?)
    }

    fn cached(
        &self,
        entries: &Entries,
        channels: i64,
        form: Form,
        make: impl FnOnce(&Tensor) -> Tensor,
    ) -> Tensor {
        let key = (entries.clone(), channels, form);
        let mut derived = self.derived.borrow_mut();
        let made = derived.entry(key.clone()).or_insert_with(|| {
            let table = match form {
                Form::Edges => &self.edges[entries.table],
                Form::Others => &self.others[entries.table],
                Form::Scale | Form::Matrix => &self.tables[entries.table],
            };
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
