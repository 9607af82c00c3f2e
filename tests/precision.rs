//! Effects of precision, memory layout and recomputation of cells on the results of a network.

use drnas_dist::config::Precision;
use drnas_dist::net::loss::cross_entropy;
use drnas_dist::net::mixing::MixingWeights;
use drnas_dist::net::ops::Mode;
use drnas_dist::net::params::Named;
use drnas_dist::net::placement::Placement;
use drnas_dist::net::supernet::{Supernet, SupernetShape};
use drnas_dist::random::torch_seeded;
use drnas_dist::space::{Mask, SearchSpace};
use tch::kind::{DOUBLE_CPU, FLOAT_CPU};
use tch::{Device, Kind, Tensor};

const PLACEMENT: Placement = Placement {
    precision: Precision::Fp32,
    device: Device::Cpu,
    channels_last: true,
    checkpoint_cells: false,
    replicas: 2,
    bucket_bytes: 20_000, // buckets of one cell and of several
};

/// The results of one weight step and one architecture step.
struct Computed {
    logits: [Tensor; 2],
    grads: Named,
    grads_theta: Vec<Tensor>,
    running: Named,
}

fn compute(space: SearchSpace, placement: Placement) -> Computed {
    tch::set_num_threads(1);
    let (edges, operations, tables) = (space.num_edges(), space.operations().len(), space.tables().len());
    let pruned = |edge| (0..operations).map(|op| (op + edge) % operations < 4).collect();
    let masks = [Mask((0..edges).map(pruned).collect()), Mask::full(edges, operations)];
    let shape = SupernetShape {
        space,
        operations: space.operations().to_vec(),
        init_channels: 12,
        // NAS-Bench-201: cells in each of three groups.
        layers: if tables == 2 { 6 } else { 2 },
        num_classes: 5,
        k: 3,
        masks: masks.into_iter().take(tables).collect(),
    };
    let mut net = Supernet::new(shape, placement);
    net.params.initialise(3);
    let (px, kind) =
        (if space == SearchSpace::DartsImagenet { 64 } else { 16 }, placement.precision.weights());
    let images = torch_seeded(4, || Tensor::randn([4, 3, px, px], DOUBLE_CPU)).to_kind(kind);
    let labels = Tensor::from_slice(&[0i64, 3, 4, 1]);
    let size = [tables as i64, edges as i64, operations as i64];
    let theta = torch_seeded(5, || Tensor::rand(size, DOUBLE_CPU)).softmax(-1, Kind::Double).to_kind(kind);
    let theta = MixingWeights::of(theta.unbind(0));

    let tape = net.forward(&images, &theta, 1);
    let weight_logits = tape.logits().detach();
    let loss = cross_entropy(tape.logits(), &labels);
    assert_eq!(loss.kind(), kind, "losses are never in bf16");
    let buckets = &net.params.buckets;
    let mut order = Vec::new();
    for segment in tape.backward(&loss) {
        let (number, grads) = segment.unwrap();
        order.push(number);
        buckets[number].add(&grads);
    }
    assert!(order.len() > 3 && order.iter().rev().copied().eq(0..order.len()), "{order:?}");

    let theta = theta.leaves();
    let tape = net.forward_theta(&images, &theta, Mode::Train, 1);
    let logits = [weight_logits, tape.logits().detach()];
    let loss = cross_entropy(tape.logits(), &labels);
    let grads_theta = tape.backward(&loss).unwrap();
    let grads = net.params.export(|bucket| &bucket.grads);
    let running = net.params.export_running(1);
    let untouched = net.params.export_running(0);
    assert!(untouched.values().all(|stat| stat.equal(&stat.zeros_like()) || stat.equal(&stat.ones_like())));
    Computed { logits, grads, grads_theta, running }
}

/// Recomputing activations must not change a single bit of a step.
#[test]
fn recomputed_cells_are_bit_identical() {
    for space in [SearchSpace::DartsImagenet, SearchSpace::DartsCifar, SearchSpace::NasBench201] {
        for precision in [Precision::Fp32, Precision::Fp64, Precision::Bf16] {
            let kept = compute(space, Placement { precision, ..PLACEMENT });
            let again = compute(space, Placement { precision, checkpoint_cells: true, ..PLACEMENT });
            let what = format!("{space:?} {precision}");
            for (kept, again) in kept.logits.iter().zip(&again.logits) {
                assert!(kept.equal(again), "{what}: logits");
            }
            for (name, kept) in &kept.grads {
                assert!(kept.equal(&again.grads[name]), "{what}: gradient of {name}");
            }
            for (table, (kept, again)) in kept.grads_theta.iter().zip(&again.grads_theta).enumerate() {
                assert!(kept.equal(again), "{what}: gradient of theta {table}");
                assert!(
                    kept.abs().max().double_value(&[]) > 0.0,
                    "{what}: the gradient of theta {table} is zero"
                );
            }
            for (name, kept) in &kept.running {
                assert!(kept.equal(&again.running[name]), "{what}: statistics {name}");
            }
        }
    }
}

/// A forward pass uses the current weights, however they were changed; in bf16 it makes a fresh copy.
#[test]
fn forward_uses_the_current_weights() {
    tch::set_num_threads(1);
    let shape = || SupernetShape {
        space: SearchSpace::DartsCifar,
        operations: SearchSpace::DartsCifar.operations().to_vec(),
        init_channels: 12,
        layers: 3,
        num_classes: 5,
        k: 6,
        masks: vec![Mask::full(14, 7), Mask::full(14, 7)],
    };
    let images = torch_seeded(4, || Tensor::randn([2, 3, 16, 16], FLOAT_CPU));
    let theta =
        MixingWeights::of(vec![Tensor::full([14, 7], 0.2, FLOAT_CPU), Tensor::full([14, 7], 0.1, FLOAT_CPU)]);
    for precision in [Precision::Fp32, Precision::Bf16] {
        let placement = Placement { precision, ..PLACEMENT };
        let mut net = Supernet::new(shape(), placement);
        net.params.initialise(3);
        let before = net.forward(&images, &theta, 0).logits().copy();
        for bucket in &mut net.params.buckets {
            let _ = tch::no_grad(|| bucket.weights.g_mul_scalar_(1.25));
        }
        let after = net.forward(&images, &theta, 0).logits().copy();
        assert!(!after.equal(&before), "{precision}");
        let mut fresh = Supernet::new(shape(), placement);
        fresh.params.import(&net.params.export(|bucket| &bucket.weights), |bucket| &bucket.weights).unwrap();
        assert!(after.equal(fresh.forward(&images, &theta, 0).logits()), "{precision}");
        let kind = fresh.params.buckets[0].weights.kind();
        assert_eq!(kind, Kind::Float, "master weights of {precision}");
    }
}
