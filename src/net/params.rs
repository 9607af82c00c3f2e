//! Tensors of a network, under the published names, in one bucket per segment.
//!
//! The network stacks tensors that are separate in the published code (one per edge) along dimension 0, so that all
//! out-edges of a state are computed at once. A spec lists the rows of each published tensor; everything outside the
//! network (checkpoints, golden files, widening) uses published tensors only.
//!
//! In bf16, the weights stay float32; every pass uses a bf16 copy, and autograd differentiates with respect to the
//! copy.

use super::placement::Placement;
use crate::net::bucket::Bucket;
use crate::net::error::{Error, Result};
use crate::random::{Purpose, seed_of, torch_seeded};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Tensors by published name, as in checkpoints.
pub type Named = BTreeMap<String, Tensor>;

/// Index of a learned tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightId(pub(super) usize);

/// Index of the running statistics (mean and variance) of a batch norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatId(pub(super) usize);

/// Initialisation of a weight; PyTorch's defaults.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// Uniform in +-1/sqrt(fan_in): convolutions and linear layers.
    FanIn(i64),
    /// A constant: affine batch norms.
    Constant(f64),
}

/// Published tensors in a stacked one: name and rows.
pub type Pieces = Vec<(String, Range<i64>)>;

struct WeightSpec {
    shape: Vec<i64>,
    pieces: Pieces,
    init: Init,
}

struct StatSpec {
    channels: i64,
    /// Names of the batch norms (without `.running_mean`). Several may share rows: pooling has no weights, so all
    /// out-edges of a state have the same statistics.
    pieces: Pieces,
}

/// Tensors that a network requires, in the order of the forward pass; modules add theirs when they are created.
#[derive(Default)]
pub struct Specs {
    weights: Vec<WeightSpec>,
    stats: Vec<StatSpec>,
    /// Number of weights at the end of each part (stem, cells, head).
    part_ends: Vec<usize>,
    affine: bool,
    /// Side of the output maps of the next weights; 0 = not counted.
    out_side: i64,
    multiply_adds: i64,
}

impl Specs {
    /// Creates specs of an evaluation network: batch norms have learned weights and biases (except those after
    /// pooling).
    pub fn affine() -> Specs {
        Specs { affine: true, ..Specs::default() }
    }

    /// Returns whether batch norms have learned weights and biases.
    pub fn is_affine(&self) -> bool {
        self.affine
    }

    /// Sets the output maps of the following weights to `side` x `side` pixels, for counting multiply-adds; 0 = not
    /// counted.
    pub fn count_for(&mut self, side: i64) {
        self.out_side = side;
    }

    /// Returns the multiply-adds of the convolutions and linear layers so far, for one image.
    pub fn multiply_adds(&self) -> i64 {
        self.multiply_adds
    }

    /// Returns the number of parameters so far.
    pub fn num_elements(&self) -> i64 {
        self.weights.iter().map(|spec| spec.shape.iter().product::<i64>()).sum()
    }

    /// Adds a weight. `pieces`: published names and rows of dimension 0, together all rows.
    pub fn weight(&mut self, shape: &[i64], init: Init, pieces: Pieces) -> WeightId {
        // Batch norms and biases, which have one dimension, are not counted, as usual.
        if shape.len() > 1 {
            self.multiply_adds += shape.iter().product::<i64>() * self.out_side * self.out_side;
        }
        self.weights.push(WeightSpec { shape: shape.to_vec(), pieces, init });
        WeightId(self.weights.len() - 1)
    }

    /// Adds running statistics of `channels` channels.
    pub fn stat(&mut self, channels: i64, pieces: Pieces) -> StatId {
        self.stats.push(StatSpec { channels, pieces });
        StatId(self.stats.len() - 1)
    }

    /// Returns the published names and rows of each weight.
    pub(super) fn pieces_of_weights(&self) -> impl Iterator<Item = &Pieces> {
        self.weights.iter().map(|spec| &spec.pieces)
    }

    /// Returns the published names and rows of each batch norm.
    pub(super) fn pieces_of_stats(&self) -> impl Iterator<Item = &Pieces> {
        self.stats.iter().map(|spec| &spec.pieces)
    }

    /// Ends a part; buckets consist of whole parts.
    pub fn end_part(&mut self) {
        self.part_ends.push(self.weights.len());
    }
}

/// Tensors of a network on one rank.
pub struct Params {
    weights: Vec<WeightSpec>,
    stats: Vec<StatSpec>,
    /// Tensor and rows of each published weight and batch norm.
    weight_places: HashMap<String, (WeightId, Range<i64>)>,
    stat_places: HashMap<String, (StatId, Range<i64>)>,
    /// Autograd leaves, one per weight: views of the flat weights or of their copies.
    leaves: Vec<Tensor>,
    /// Copies of the flat weights of each bucket in the kind of activations; empty if the kinds are the same.
    copies: Vec<Tensor>,
    /// (bucket, index in it) of each weight.
    places: Vec<(usize, usize)>,
    /// Parts of each bucket.
    bucket_parts: Vec<Range<usize>>,
    /// Flat buffers, in the order of the forward pass.
    pub buckets: Vec<Bucket>,
    /// Running (mean, variance) per local replica and batch norm. Every replica has its own, as if it were on a
    /// separate rank; tests use their average (they are linear in the batch statistics).
    running: Vec<Vec<(Tensor, Tensor)>>,
    /// Unused statistics, as long as the longest, which recomputed passes update.
    scratch: (Tensor, Tensor),
    kind: Kind,
    device: Device,
}

impl Params {
    /// Allocates the tensors. Buckets are formed from whole parts, starting at the last, until `placement.bucket_bytes`
    /// is reached (the first bucket, whose reduction cannot overlap with anything, is the small remainder).
    pub fn new(specs: Specs, placement: &Placement) -> Params {
        let (kind, activations) = (placement.precision.weights(), placement.precision.activations());
        let Placement { device, replicas, bucket_bytes, .. } = *placement;
        let part_starts: Vec<usize> = std::iter::once(0).chain(specs.part_ends.iter().copied()).collect();
        let part = |index: usize| part_starts[index]..part_starts[index + 1];
        let bytes = |index: usize| -> usize {
            let elements: i64 =
                specs.weights[part(index)].iter().map(|spec| spec.shape.iter().product::<i64>()).sum();
            elements as usize * kind.elt_size_in_bytes()
        };
        let mut bucket_parts: Vec<Range<usize>> = Vec::new();
        let (mut end, mut size) = (specs.part_ends.len(), 0);
        for index in (0..specs.part_ends.len()).rev() {
            size += bytes(index);
            if size >= bucket_bytes || index == 0 {
                bucket_parts.insert(0, index..end);
                (end, size) = (index, 0);
            }
        }
        let (mut buckets, mut leaves, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut copies = Vec::new();
        for parts in &bucket_parts {
            let range = part_starts[parts.start]..part_starts[parts.end];
            let shapes: Vec<Vec<i64>> = specs.weights[range].iter().map(|spec| spec.shape.clone()).collect();
            let bucket = Bucket::new(&shapes, kind, device);
            places.extend((0..shapes.len()).map(|place| (buckets.len(), place)));
            if kind == activations {
                leaves.extend((0..shapes.len()).map(|place| bucket.leaf(place)));
            } else {
                let copy = bucket.weights.to_kind(activations);
                leaves.extend(shapes.iter().enumerate().map(|(place, shape)| match shape.len() {
                    4 => bucket.view(&copy, place).detach().set_requires_grad(true),
                    // Batch norms and the head use the kind of the weights.
                    _ => bucket.leaf(place),
                }));
                copies.push(copy);
            }
            buckets.push(bucket);
        }
        let fresh = |spec: &StatSpec| {
            (Tensor::zeros([spec.channels], (kind, device)), Tensor::ones([spec.channels], (kind, device)))
        };
        let longest = StatSpec {
            channels: specs.stats.iter().map(|spec| spec.channels).max().unwrap_or(0),
            pieces: Pieces::new(),
        };
        let scratch = fresh(&longest);
        let running = (0..replicas).map(|_| specs.stats.iter().map(fresh).collect()).collect();
        Params {
            weight_places: places_of(specs.pieces_of_weights(), WeightId),
            stat_places: places_of(specs.pieces_of_stats(), StatId),
            weights: specs.weights,
            stats: specs.stats,
            leaves,
            copies,
            places,
            bucket_parts,
            buckets,
            running,
            scratch,
            kind,
            device,
        }
    }

    /// Kind of all weights.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Device of all tensors.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Returns the parts (stem, cells, head by index) of each bucket, in forward order: the segments of a backward
    /// pass.
    pub fn segments(&self) -> &[Range<usize>] {
        &self.bucket_parts
    }

    /// Number of replicas of this rank.
    pub fn num_replicas(&self) -> usize {
        self.running.len()
    }

    /// Number of parameters.
    pub fn num_elements(&self) -> i64 {
        self.buckets.iter().map(Bucket::num_elements).sum()
    }

    /// Updates the copies from the weights ([`super::ops::Pass::new`] calls it).
    pub(super) fn refresh(&self) {
        tch::no_grad(|| {
            for (copy, bucket) in self.copies.iter().zip(&self.buckets) {
                copy.shallow_clone().copy_(&bucket.weights);
            }
        });
    }

    /// Returns a weight for computation: convolutions in the kind of activations.
    pub fn weight(&self, id: WeightId) -> &Tensor {
        &self.leaves[id.0]
    }

    /// Returns the weight with rows of the published tensor `name`, and the rows.
    pub(super) fn place_of_weight(&self, name: &str) -> (WeightId, Range<i64>) {
        self.weight_places.get(name).unwrap_or_else(|| panic!("no weight {name}")).clone()
    }

    /// Returns the batch norm with channels of the published one `name`, and the channels.
    pub(super) fn place_of_stat(&self, name: &str) -> (StatId, Range<i64>) {
        self.stat_places.get(name).unwrap_or_else(|| panic!("no batch norm {name}")).clone()
    }

    /// Returns the running mean and variance of a batch norm for local replica `replica`.
    pub fn running(&self, id: StatId, replica: usize) -> &(Tensor, Tensor) {
        &self.running[replica][id.0]
    }

    /// Returns unused running statistics of `channels` channels.
    pub(super) fn scratch(&self, channels: i64) -> (Tensor, Tensor) {
        let (mean, var) = &self.scratch;
        (mean.narrow(0, 0, channels), var.narrow(0, 0, channels))
    }

    /// Returns the leaves of bucket `bucket`, in the order of its buffers.
    pub fn leaves(&self, bucket: usize) -> &[Tensor] {
        let first = self.places.partition_point(|place| place.0 < bucket);
        &self.leaves[first..first + self.buckets[bucket].num_params()]
    }

    /// Draws the initial weights; the same on every rank for one seed.
    pub fn initialise(&mut self, seed: u64) {
        for (index, spec) in self.weights.iter().enumerate() {
            let seed = seed_of(seed, Purpose::Weights, &[index as u64]);
            let (bucket, place) = self.places[index];
            let bucket = &self.buckets[bucket];
            let mut weight = bucket.view(&bucket.weights, place);
            match spec.init {
                Init::FanIn(fan_in) => {
                    let bound = 1.0 / (fan_in as f64).sqrt();
                    // Drawn on the CPU, so that all devices start from the same weights.
                    let mut drawn = Tensor::empty(&spec.shape, (self.kind, Device::Cpu));
                    let drawn = torch_seeded(seed, || drawn.uniform_(-bound, bound));
                    weight.copy_(&drawn);
                }
                Init::Constant(value) => {
                    let _ = weight.fill_(value);
                }
            }
        }
    }

    /// Copies the published tensors of a flat buffer: weights, momentum or gradients.
    pub fn export(&self, buffer: impl Fn(&Bucket) -> &Tensor) -> Named {
        let mut named = Named::new();
        for (spec, &(bucket, place)) in self.weights.iter().zip(&self.places) {
            let bucket = &self.buckets[bucket];
            let stacked = bucket.view(buffer(bucket), place);
            for (name, rows) in &spec.pieces {
                named.insert(name.clone(), rows_of(&stacked, rows).copy());
            }
        }
        named
    }

    /// Copies published tensors into a flat buffer. Unknown names (pruned operations) are ignored. Errors: a tensor is
    /// missing or has a different shape.
    pub fn import(&mut self, named: &Named, buffer: impl Fn(&Bucket) -> &Tensor) -> Result<()> {
        for (spec, &(bucket, place)) in self.weights.iter().zip(&self.places) {
            let bucket = &self.buckets[bucket];
            let stacked = bucket.view(buffer(bucket), place);
            for (name, rows) in &spec.pieces {
                copy_into(&rows_of(&stacked, rows), named, name)?;
            }
        }
        Ok(())
    }

    /// Loads published weights and running statistics (the same for every replica); errors as in `import`.
    pub fn load(&mut self, named: &Named) -> Result<()> {
        self.import(named, |bucket| &bucket.weights)?;
        (0..self.num_replicas()).try_for_each(|replica| self.import_running(replica, named))
    }

    /// Copies the running statistics of local replica `replica`.
    pub fn export_running(&self, replica: usize) -> Named {
        let mut named = Named::new();
        for (spec, (mean, var)) in self.stats.iter().zip(&self.running[replica]) {
            for (name, rows) in &spec.pieces {
                named.insert(format!("{name}.running_mean"), rows_of(mean, rows).copy());
                named.insert(format!("{name}.running_var"), rows_of(var, rows).copy());
            }
        }
        named
    }

    /// Copies running statistics into local replica `replica`; errors as in `import`.
    pub fn import_running(&mut self, replica: usize, named: &Named) -> Result<()> {
        for (spec, (mean, var)) in self.stats.iter().zip(&self.running[replica]) {
            for (name, rows) in &spec.pieces {
                copy_into(&rows_of(mean, rows), named, &format!("{name}.running_mean"))?;
                copy_into(&rows_of(var, rows), named, &format!("{name}.running_var"))?;
            }
        }
        Ok(())
    }
}

fn places_of<'a, Id: Copy>(
    pieces: impl Iterator<Item = &'a Pieces>,
    id: impl Fn(usize) -> Id,
) -> HashMap<String, (Id, Range<i64>)> {
    let of_one = |(index, pieces): (usize, &'a Pieces)| {
        let id = id(index);
        pieces.iter().map(move |(name, rows)| (name.clone(), (id, rows.clone())))
    };
    pieces.enumerate().flat_map(of_one).collect()
}

fn rows_of(stacked: &Tensor, rows: &Range<i64>) -> Tensor {
    stacked.narrow(0, rows.start, rows.end - rows.start)
}

fn copy_into(into: &Tensor, named: &Named, name: &str) -> Result<()> {
    let from = named.get(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
    if from.size() != into.size() {
        return Err(Error::TensorShape { name: name.to_string(), found: from.size(), expected: into.size() });
    }
    tch::no_grad(|| into.shallow_clone().copy_(from));
    Ok(())
}
