//! Self-consistency of the final network: gradients and statistics do not depend on how the backward pass is split or
//! recomputed. (For comparisons with PyTorch and the published code see tests/torch.rs and tests/golden.rs.)

use drnas_dist::config::Precision;
use drnas_dist::net::loss::smoothed_cross_entropy;
use drnas_dist::net::network::{Network, NetworkShape};
use drnas_dist::net::params::Named;
use drnas_dist::net::placement::Placement;
use drnas_dist::random::torch_seeded;
use drnas_dist::space::SearchSpace;
use drnas_dist::space::genotype::Genotype;
use tch::{Device, Kind, Tensor};

/// Every operation, in normal and reduction cells.
const GENOTYPE: &str = "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('max_pool_3x3', 0), \
    ('skip_connect', 1), ('dil_conv_5x5', 2), ('sep_conv_5x5', 1), ('dil_conv_3x3', 2), ('avg_pool_3x3', 4)], \
    normal_concat=[2, 4, 5], reduce=[('skip_connect', 0), ('skip_connect', 1), ('sep_conv_5x5', 1), ('dil_conv_3x3', 0), \
    ('max_pool_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_5x5', 1), ('sep_conv_3x3', 2)], reduce_concat=range(2, 6))";

const N: i64 = 4;

fn shape(genotype: &str) -> NetworkShape {
    NetworkShape {
        space: SearchSpace::DartsCifar,
        genotype: Genotype::read(genotype).unwrap(),
        init_channels: 4,
        layers: 4,
        num_classes: 5,
        px: 32,
        auxiliary: true,
    }
}

/// Gradients, running statistics and logits of one training pass.
fn pass(
    precision: Precision,
    drop_path: f64,
    bucket_bytes: usize,
    checkpoint_cells: bool,
) -> (Named, Named, Tensor) {
    pass_of(GENOTYPE, precision, drop_path, bucket_bytes, checkpoint_cells)
}

fn pass_of(
    genotype: &str,
    precision: Precision,
    drop_path: f64,
    bucket_bytes: usize,
    checkpoint_cells: bool,
) -> (Named, Named, Tensor) {
    tch::set_num_threads(1);
    let placement = Placement {
        precision,
        device: Device::Cpu,
        channels_last: true,
        checkpoint_cells,
        replicas: 1,
        bucket_bytes,
    };
    let mut net = Network::new(shape(genotype), placement);
    net.params.initialise(1);
    let kind = (precision.weights(), Device::Cpu);
    let images = torch_seeded(2, || Tensor::randn([N, 3, 32, 32], kind));
    let labels = Tensor::from_slice(&[0i64, 1, 2, 4]);
    let tape = net.forward(&images, net.drop_path(drop_path, (1, 2, 3), N), 0);
    let [logits, auxiliary] = tape.results() else { panic!("two results") };
    let logits = logits.detach();
    let loss = |logits: &Tensor| smoothed_cross_entropy(logits, &labels, 0.1);
    let loss = loss(tape.logits()) + loss(auxiliary) * 0.4;
    let gradients: Vec<_> = tape.backward(&loss).map(Result::unwrap).collect();
    for (bucket, grads) in gradients {
        net.params.buckets[bucket].add(&grads);
    }
    (net.params.export(|bucket| &bucket.grads), net.params.export_running(0), logits)
}

fn distance(a: &Named, b: &Named) -> f64 {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let all = |named: &Named| {
        Tensor::cat(&named.values().map(|x| x.to_kind(Kind::Double).reshape([-1])).collect::<Vec<_>>(), 0)
    };
    (all(a) - all(b)).norm().double_value(&[]) / all(b).norm().double_value(&[])
}

#[test]
fn splitting_backward_does_not_change_gradients() {
    let (whole, _, logits) = pass(Precision::Fp64, 0.3, usize::MAX, false);
    let (cut, _, same) = pass(Precision::Fp64, 0.3, 1, false);
    assert!(logits.equal(&same));
    assert!(distance(&cut, &whole) < 1e-12, "{}", distance(&cut, &whole));
    assert!(whole.values().all(|grad| grad.norm().double_value(&[]) > 0.0), "a weight has no gradient");
}

#[test]
fn recomputed_cells_are_bit_identical() {
    for precision in [Precision::Fp32, Precision::Fp64] {
        let (plain, statistics, logits) = pass(precision, 0.3, 1, false);
        let (again, repeated, same) = pass(precision, 0.3, 1, true);
        assert!(logits.equal(&same));
        assert!(plain.iter().all(|(name, grad)| grad.equal(&again[name])), "{precision}");
        assert!(statistics.iter().all(|(name, stat)| stat.equal(&repeated[name])), "{precision}");
    }
}

#[test]
fn unused_nodes_have_zero_gradients() {
    // Node 4, and therefore two edges of each normal cell, become unused.
    let [edges, loose] = [
        "('dil_conv_3x3', 2), ('avg_pool_3x3', 4)], normal_concat=[2, 4, 5]",
        "('sep_conv_3x3', 2), ('avg_pool_3x3', 3)], normal_concat=[2, 3, 5]",
    ];
    assert!(GENOTYPE.contains(edges));
    let genotype = GENOTYPE.replacen(edges, loose, 1);
    for (bucket_bytes, checkpoint_cells) in [(1, false), (1, true), (usize::MAX, false)] {
        let (grads, _, _) = pass_of(&genotype, Precision::Fp64, 0.0, bucket_bytes, checkpoint_cells);
        for (name, grad) in &grads {
            let parts: Vec<&str> = name.split('.').collect();
            let unused = matches!(parts[..], ["cells", "0" | "3", "_ops", "4" | "5", ..]);
            assert_eq!(grad.norm().double_value(&[]) == 0.0, unused, "{name}");
        }
    }
}

#[test]
fn drop_path_changes_the_logits() {
    let logits = |probability| pass(Precision::Fp64, probability, usize::MAX, false).2;
    assert!(logits(0.3).equal(&logits(0.3)));
    assert!(!logits(0.3).equal(&logits(0.0)));
    let shape = shape("DARTS_V2");
    assert!(shape.is_reduction(1) && shape.is_reduction(2) && !shape.is_reduction(3));
}

/// Refuses weights with matching names and different shapes, and incomplete weights.
#[test]
fn weights_of_another_network_are_refused() {
    let network = |channels| {
        let shape = NetworkShape { init_channels: channels, auxiliary: false, ..shape(GENOTYPE) };
        let mut net = Network::new(shape, drnas_dist::commands::verify::PLACEMENT);
        net.params.initialise(1);
        net
    };
    let mut named = network(8).params.export(|bucket| &bucket.weights);
    named.extend(network(8).params.export_running(0));
    let why = |named: &Named, channels| match network(channels).params.load(named) {
        Ok(()) => "loaded".to_owned(),
        Err(why) => why.to_string(),
    };
    assert_eq!(why(&named, 8), "loaded");
    assert!(why(&named, 4).contains(": expected shape ["), "{}", why(&named, 4));
    // A single row must not be broadcast to all rows.
    let classifier = named["classifier.weight"].narrow(0, 0, 1);
    named.insert("classifier.weight".into(), classifier);
    assert!(why(&named, 8).contains("classifier.weight: expected shape [5, "), "{}", why(&named, 8));
    named.remove("classifier.weight");
    assert!(why(&named, 8).contains("classifier.weight is missing"), "{}", why(&named, 8));
}
