//! Compares the stacked supernet with the naive one in float64: logits, every gradient, running statistics.

#[path = "common/naive.rs"]
mod naive;

use drnas_dist::config::Precision;
use drnas_dist::net::loss::cross_entropy;
use drnas_dist::net::mixing::MixingWeights;
use drnas_dist::net::params::Named;
use drnas_dist::net::placement::Placement;
use drnas_dist::net::supernet::{Supernet, SupernetShape};
use drnas_dist::net::widen::{draw_indices, widen, widen_running};
use drnas_dist::random::{Purpose, stream, torch_seeded};
use drnas_dist::search::stage::next_network;
use drnas_dist::space::{Mask, SearchSpace};
use naive::Naive;
use rand::RngExt;
use tch::{Device, Kind, Tensor};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

/// A mask that keeps `keep` random operations per edge.
fn random_mask(seed: u64, keep: usize) -> Mask {
    random_mask_of(SearchSpace::DartsCifar, seed, keep)
}

fn random_mask_of(space: SearchSpace, seed: u64, keep: usize) -> Mask {
    let mut random = stream(seed, Purpose::Split, &[]);
    let operations = space.operations().len();
    let mut mask = Mask::full(space.num_edges(), operations);
    for row in &mut mask.0 {
        while row.iter().filter(|kept| **kept).count() > keep {
            row[random.random_range(0..operations)] = false;
        }
    }
    mask
}

fn shape(space: SearchSpace, k: i64, keep: usize) -> SupernetShape {
    let masks = (1..).zip(space.tables()).map(|(seed, _)| random_mask_of(space, seed, keep)).collect();
    let layers = if space == SearchSpace::NasBench201 { 2 } else { 3 };
    let operations = space.operations().to_vec();
    SupernetShape { space, operations, init_channels: 12, layers, num_classes: 5, k, masks }
}

fn placement(bucket_bytes: usize, channels_last: bool) -> Placement {
    Placement {
        precision: Precision::Fp64,
        device: Device::Cpu,
        channels_last,
        checkpoint_cells: false,
        replicas: 1,
        bucket_bytes,
    }
}

fn relative(ours: &Tensor, theirs: &Tensor, floor: f64) -> f64 {
    (ours - theirs).norm().double_value(&[]) / theirs.norm().double_value(&[]).max(floor)
}

fn compare(space: SearchSpace, px: i64, k: i64, keep: usize, bucket_bytes: usize, channels_last: bool) {
    compare_shape(shape(space, k, keep), px, bucket_bytes, channels_last);
}

fn compare_shape(shape: SupernetShape, px: i64, bucket_bytes: usize, channels_last: bool) {
    let mut net = Supernet::new(shape.clone(), placement(bucket_bytes, channels_last));
    net.params.initialise(3);
    let images = torch_seeded(4, || Tensor::randn([3, 3, px, px], F64));
    let labels = Tensor::from_slice(&[0i64, 3, 4]);
    let (edges, operations) = (shape.space.num_edges() as i64, shape.operations.len() as i64);
    let tables = shape.space.tables().len() as i64;
    let theta = torch_seeded(5, || Tensor::rand([tables, edges, operations], F64)).softmax(-1, Kind::Double);
    let theta = MixingWeights::of(theta.unbind(0));
    let theta_leaves = theta.leaves();

    let weights: Named = net
        .params
        .export(|bucket| &bucket.weights)
        .into_iter()
        .map(|(name, tensor)| (name, tensor.set_requires_grad(true)))
        .collect();
    let running = net.params.export_running(0);
    let theirs = Naive { shape: &shape, weights: &weights, running: &running }
        .logits(&images, &theta_leaves.operations);
    let loss = cross_entropy(&theirs, &labels);
    let leaves: Vec<&Tensor> = weights.values().chain(&theta_leaves.operations).collect();
    let grads = Tensor::run_backward(&[&loss], &leaves, false, false);

    let tape = net.forward(&images, &theta, 0);
    let ours = tape.logits().shallow_clone();
    assert!(relative(&ours, &theirs, 0.0) < 1e-11, "logits");
    let mut order = Vec::new();
    let mut found = Vec::new();
    for segment in tape.backward(&cross_entropy(&ours, &labels)) {
        let (bucket, grads) = segment.unwrap();
        order.push(bucket);
        found.push((bucket, grads));
    }
    assert!(order.iter().rev().copied().eq(0..order.len()), "last segment first: {order:?}");
    for (bucket, grads) in found {
        net.params.buckets[bucket].add(&grads);
    }
    let floor = 1e-5 * grads.iter().map(|grad| grad.norm().double_value(&[])).fold(0.0, f64::max);
    let ours = net.params.export(|bucket| &bucket.grads);
    assert_eq!(ours.len(), weights.len());
    for ((name, ours), theirs) in ours.iter().zip(&grads) {
        assert!(
            relative(ours, theirs, floor) < 1e-9,
            "gradient of {name}: {}",
            relative(ours, theirs, floor)
        );
    }
    for (name, ours) in net.params.export_running(0) {
        // In the naive network, an edge with a pruned pooling leaves its statistics untouched.
        let theirs = &running[&name];
        let untouched = theirs.equal(&net_initial(&name, theirs));
        let off = relative(&ours, theirs, 1e-3);
        assert!(untouched || off < 1e-10, "statistics {name}: {off}");
    }

    net.params.import_running(0, &running).unwrap();
    let loss =
        cross_entropy(&net.logits(&images, &theta_leaves, drnas_dist::net::ops::Mode::Train, 0), &labels);
    let ours = Tensor::run_backward(&[&loss], &theta_leaves.operations, false, false);
    for (ours, theirs) in ours.iter().zip(&grads[weights.len()..]) {
        assert!(relative(ours, theirs, floor) < 1e-9, "gradient of theta");
    }
}

fn net_initial(name: &str, like: &Tensor) -> Tensor {
    if name.ends_with("mean") { like.zeros_like() } else { like.ones_like() }
}

#[test]
fn equals_the_naive_network() {
    tch::set_num_threads(1);
    // Bucket sizes, bytes.
    let many = 1;
    let one = usize::MAX;
    compare(SearchSpace::DartsImagenet, 64, 6, 7, many, true);
    compare(SearchSpace::DartsImagenet, 64, 3, 4, one, true);
    compare(SearchSpace::DartsImagenet, 64, 3, 1, 40_000, false);
    // Odd sizes: many pixels in total, although feature maps are smaller than a kernel.
    compare(SearchSpace::DartsImagenet, 160, 3, 4, many, true);
    compare(SearchSpace::DartsCifar, 16, 6, 7, 40_000, true);
    compare(SearchSpace::DartsCifar, 16, 3, 2, many, true);
    compare(SearchSpace::DartsCifar, 16, 2, 3, many, false);
    compare(SearchSpace::DartsCifar, 16, 1, 3, many, true);
}

#[test]
fn nas_bench_201_equals_the_naive_network() {
    tch::set_num_threads(1);
    let space = SearchSpace::NasBench201;
    compare(space, 16, 4, 5, 1, true);
    compare(space, 16, 2, 3, usize::MAX, true);
    compare(space, 12, 1, 5, 40_000, false);
    compare(space, 16, 1, 2, 1, true);
    // Cells with only `none` left, and cells in which only one edge has another operation.
    let mut bare = shape(space, 1, 5);
    bare.masks[0].0.iter_mut().for_each(|row| row[1..].fill(false));
    compare_shape(bare.clone(), 16, 1, true);
    bare.masks[0].0[3][3] = true;
    compare_shape(bare.clone(), 16, 1, true);
    bare.k = 2;
    compare_shape(bare, 16, usize::MAX, true);
}

#[test]
fn published_parameter_counts() {
    for (k, count) in [(6, 3_642_896), (3, 5_739_344)] {
        let shape = SupernetShape {
            space: SearchSpace::DartsImagenet,
            operations: SearchSpace::DartsImagenet.operations().to_vec(),
            init_channels: 48,
            layers: 14,
            num_classes: 1000,
            k,
            masks: vec![Mask::full(14, 7), Mask::full(14, 7)],
        };
        let net = Supernet::new(shape, placement(1 << 20, true));
        assert_eq!(net.params.num_elements(), count, "k = {k}");
        // Buckets follow cells, so that a reduction overlaps with backward of the preceding cells.
        assert!(net.params.segments().len() > 8, "{:?}", net.params.segments());
    }
}

#[test]
fn widening_copies_channels_and_aligns_them() {
    tch::set_num_threads(1);
    let before = shape(SearchSpace::DartsImagenet, 6, 7);
    let mut small = Supernet::new(before.clone(), placement(usize::MAX, true));
    small.params.initialise(3);
    let images = torch_seeded(4, || Tensor::randn([2, 3, 64, 64], F64));
    let theta = MixingWeights::of(vec![Tensor::full([14, 7], 0.2, F64), Tensor::full([14, 7], 0.2, F64)]);
    small.forward(&images, &theta, 0); // updates the running statistics
    let (weights, running) = (small.params.export(|bucket| &bucket.weights), small.params.export_running(0));

    let indices = draw_indices(&weights, &running, 6, 3, 9, 1);
    assert_eq!(indices, draw_indices(&weights, &running, 6, 3, 9, 1));
    assert_ne!(indices, draw_indices(&weights, &running, 6, 3, 10, 1));
    let after = SupernetShape { k: 3, masks: vec![random_mask(1, 4), random_mask(2, 4)], ..before };
    let mut large = Supernet::new(after, placement(usize::MAX, true));
    let (wide, wide_running) = (widen(&weights, &indices), widen_running(&running, &indices));
    large.params.import(&wide, |bucket| &bucket.weights).unwrap();
    large.params.import_running(0, &wide_running).unwrap();

    // Old channels stay, new ones are copies; a convolution's new input channels match the outputs of its predecessor.
    let name = |rest: &str| format!("cells.0._ops.0._ops.3.op.{rest}");
    let (old, new) = (&weights[&name("2.weight")], &wide[&name("2.weight")]);
    assert!(new.narrow(0, 0, 2).narrow(1, 0, 2).equal(old));
    let depthwise = &indices.convolutions[&name("1.weight")];
    let pointwise = &indices.convolutions[&name("2.weight")];
    assert!(depthwise.input.is_empty());
    for (name, copied) in &indices.convolutions {
        if let Some(before) = name.strip_suffix(".op.2.weight") {
            assert_eq!(copied.input, indices.convolutions[&format!("{before}.op.1.weight")].output, "{name}");
        }
    }
    for (at, &from) in pointwise.output.iter().enumerate() {
        let at = at as i64 + 2;
        assert!(new.get(at).equal(&new.get(from)));
        let mean = &wide_running[&name("3.running_mean")];
        assert_eq!(mean.double_value(&[at]), mean.double_value(&[from]));
        let inner = new.narrow(1, at, 1);
        assert!(inner.equal(&new.narrow(1, depthwise.output[at as usize - 2], 1)));
    }
    // The two halves of a factorized reduction stay separate.
    let reduce = "cells.1._ops.0._ops.2";
    let (old, new) =
        (&running[&format!("{reduce}.bn.running_mean")], &wide_running[&format!("{reduce}.bn.running_mean")]);
    assert!(new.narrow(0, 4, 2).equal(&old.narrow(0, 2, 2)));
    // All edges of a state share the pooled tensor, so they share its statistics.
    let pool = |edge: usize| &wide_running[&format!("cells.0._ops.{edge}._ops.0.op.1.running_mean")];
    assert!(pool(0).equal(pool(2)) && pool(0).equal(pool(5)) && pool(0).size() == [4]);
}

#[test]
fn a_stage_change_carries_momentum_and_every_replicas_statistics() {
    tch::set_num_threads(1);
    let before = shape(SearchSpace::DartsCifar, 6, 7);
    let mut net = Supernet::new(before, Placement { replicas: 2, ..placement(usize::MAX, true) });
    net.params.initialise(3);
    let images = torch_seeded(4, || Tensor::randn([2, 3, 16, 16], F64));
    let theta = MixingWeights::of(vec![Tensor::full([14, 7], 0.2, F64), Tensor::full([14, 7], 0.2, F64)]);
    // Only the second replica has seen images.
    net.forward(&images, &theta, 1);
    let momentum: Named = net
        .params
        .export(|bucket| &bucket.momentum)
        .into_iter()
        .map(|(name, tensor)| (name, torch_seeded(5, || tensor.rand_like())))
        .collect();
    net.params.import(&momentum, |bucket| &bucket.momentum).unwrap();

    let masks = vec![random_mask(5, 4), random_mask(6, 4)];
    let next = next_network(&net, masks, 3, 9, 1).unwrap();
    assert_eq!(next.shape().k, 3);
    let indices = draw_indices(&momentum, &net.params.export_running(0), 6, 3, 9, 1);
    let expected = widen(&momentum, &indices);
    let carried = next.params.export(|bucket| &bucket.momentum);
    assert!(carried.len() < expected.len(), "pruned operations still have weights");
    assert!(carried.iter().all(|(name, tensor)| tensor.equal(&expected[name])));
    for replica in 0..2 {
        let expected = widen_running(&net.params.export_running(replica), &indices);
        let carried = next.params.export_running(replica);
        assert!(carried.iter().all(|(name, tensor)| tensor.equal(&expected[name])), "replica {replica}");
    }
    let mean = |replica| next.params.export_running(replica)["stem.1.running_mean"].abs().sum(Kind::Double);
    assert_eq!(mean(0).double_value(&[]), 0.0);
    assert!(mean(1).double_value(&[]) > 0.0);
}
