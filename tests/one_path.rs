//! A pass over a path computes the same as the whole supernet with the same mixing weights, which are 0 elsewhere.

use drnas_dist::config::{Method, Precision};
use drnas_dist::net::loss::cross_entropy;
use drnas_dist::net::mixing::{MixingWeights, SampledPath};
use drnas_dist::net::ops::Mode;
use drnas_dist::net::params::Named;
use drnas_dist::net::placement::Placement;
use drnas_dist::net::supernet::{Supernet, SupernetShape};
use drnas_dist::random::{Purpose, stream, torch_seeded};
use drnas_dist::space::{Mask, SearchSpace};
use rand::RngExt;
use tch::{Device, Kind, Tensor};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

struct Fixture {
    net: Supernet,
    images: Tensor,
    labels: Tensor,
    /// One operation per edge.
    masks: Vec<Mask>,
}

impl Fixture {
    fn new(space: SearchSpace, k: i64, checkpoint_cells: bool, seed: u64) -> Fixture {
        tch::set_num_threads(1);
        let operations = Method::Darts.operations(space);
        let columns = operations.len();
        let layers = if space == SearchSpace::NasBench201 { 1 } else { 3 };
        let masks = vec![Mask::full(space.num_edges(), columns); space.tables().len()];
        let shape = SupernetShape { space, operations, init_channels: 4, layers, num_classes: 3, k, masks };
        let placement = Placement { checkpoint_cells, ..Placement::on_cpu(Precision::Fp64) };
        let mut net = Supernet::new(shape, placement);
        net.params.initialise(5);
        let (images, labels) = torch_seeded(6, || {
            (Tensor::randn([6, 3, 16, 16], F64), Tensor::from_slice(&[0i64, 1, 2, 0, 1, 2]))
        });
        let mut random = stream(seed, Purpose::Trajectory, &[]);
        let mut row = || {
            let drawn = random.random_range(0..columns);
            (0..columns).map(|column| column == drawn).collect()
        };
        let mut table = || Mask((0..space.num_edges()).map(|_| row()).collect());
        let masks = space.tables().iter().map(|_| table()).collect();
        Fixture { net, images, labels, masks }
    }

    /// One-hot weights, which are leaves; with `path`, only those operations are computed.
    fn theta(&self, path: Option<SampledPath>) -> MixingWeights {
        let table = |mask: &Mask| {
            let rows: Vec<Tensor> = mask.0.iter().map(|row| Tensor::from_slice(row)).collect();
            Tensor::stack(&rows, 0).to_kind(Kind::Double)
        };
        let weights = MixingWeights::of(self.masks.iter().map(table).collect());
        MixingWeights { path, ..weights.leaves() }
    }

    fn path(&self, adds_others: bool) -> Option<SampledPath> {
        Some(SampledPath { masks: self.masks.clone(), adds_others })
    }

    /// Loss, gradients of the weights and of theta, and running statistics after a training pass.
    fn train(&mut self, theta: &MixingWeights) -> (f64, Named, Vec<Tensor>, Named) {
        let kept = self.net.params.export_running(0);
        let tape = self.net.forward(&self.images, theta, 0);
        let loss = cross_entropy(tape.logits(), &self.labels);
        let mut pass = tape.backward(&loss);
        for segment in pass.by_ref() {
            let (bucket, grads) = segment.unwrap();
            self.net.params.buckets[bucket].add(&grads);
        }
        let of_theta = pass.theta_grads(theta).unwrap();
        let grads = self.net.params.export(|bucket| &bucket.grads);
        self.net.params.buckets.iter().for_each(|bucket| bucket.clear());
        let running = self.net.params.export_running(0);
        self.net.params.import_running(0, &kept).unwrap();
        (loss.double_value(&[]), grads, of_theta, running)
    }

    /// Whether a published tensor belongs to an operation on the path, or to no operation.
    fn on_path(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split('.').collect();
        let number = |text: &str| text.parse::<usize>().unwrap();
        let (edge, operation) = match parts[..] {
            ["cells", _, "_ops", edge, "_ops", operation, ..] => (number(edge), number(operation) + 1),
            ["cells", _, "edges", ends, operation, ..] => {
                let edges = ["1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2"];
                (edges.iter().position(|edge| *edge == ends).unwrap(), number(operation))
            }
            _ => return true,
        };
        self.masks[self.net.shape().table(number(parts[1]))].keeps(edge, operation)
    }
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    let scale = b.abs().max().double_value(&[]).max(1e-3);
    (a - b).abs().max().double_value(&[]) <= 1e-10 * scale
}

const CASES: [(SearchSpace, i64, bool); 6] = [
    (SearchSpace::NasBench201, 1, false),
    (SearchSpace::NasBench201, 2, true),
    (SearchSpace::DartsCifar, 1, false),
    (SearchSpace::DartsCifar, 2, false),
    (SearchSpace::DartsCifar, 1, true),
    (SearchSpace::DartsImagenet, 2, false),
];

#[test]
fn a_path_equals_the_supernet_with_its_weights() {
    for (space, k, checkpoint_cells) in CASES {
        for seed in 0..3 {
            let mut fixture = Fixture::new(space, k, checkpoint_cells, seed);
            if space == SearchSpace::DartsImagenet {
                fixture.images = torch_seeded(7, || Tensor::randn([6, 3, 64, 64], F64));
            }
            let before = fixture.net.params.export_running(0);
            let (path, whole) = (fixture.theta(fixture.path(false)), fixture.theta(None));
            let (loss, grads, of_theta, running) = fixture.train(&path);
            let (loss_of_whole, expected, expected_of_theta, expected_running) = fixture.train(&whole);
            assert!((loss - loss_of_whole).abs() < 1e-10, "{loss} and {loss_of_whole}");
            let mut moved = 0;
            for (name, grad) in &grads {
                assert!(close(grad, &expected[name]), "{space:?}, k {k}: gradient of {name}");
                moved += i32::from(grad.abs().max().double_value(&[]) > 0.0);
            }
            assert!(moved > 0);
            for (table, mask) in fixture.masks.iter().enumerate() {
                for (edge, row) in mask.0.iter().enumerate() {
                    for (operation, kept) in row.iter().enumerate() {
                        let at = [edge as i64, operation as i64];
                        let found = of_theta[table].double_value(&at);
                        let expected = if *kept { expected_of_theta[table].double_value(&at) } else { 0.0 };
                        assert!((found - expected).abs() < 1e-10, "{space:?}, k {k}: {table} {at:?}");
                    }
                }
            }
            for (name, value) in &running {
                // The edges of a state share the statistics of pooling.
                let shared = name.contains(".op.1.running");
                if fixture.on_path(name) {
                    assert!(close(value, &expected_running[name]), "{space:?}, k {k}: {name}");
                } else if !shared {
                    assert!(value.equal(&before[name]), "{space:?}, k {k}: {name} has moved");
                }
            }
            let logits = |theta| tch::no_grad(|| fixture.net.logits(&fixture.images, theta, Mode::Eval, 0));
            assert!(close(&logits(&path), &logits(&whole)), "{space:?}, k {k}: evaluation");
        }
    }
}

#[test]
fn weights_of_other_operations_are_added_as_numbers() {
    for (space, k, checkpoint_cells) in [CASES[0], CASES[3], CASES[4]] {
        let mut fixture = Fixture::new(space, k, checkpoint_cells, 1);
        let theta = fixture.theta(fixture.path(true));
        let (loss, grads, of_theta, _) = fixture.train(&theta);
        let (plain, plain_grads, ..) = fixture.train(&fixture.theta(fixture.path(false)));
        // Their values are 0.
        assert!((loss - plain).abs() < 1e-12);
        assert!(grads.iter().all(|(name, grad)| close(grad, &plain_grads[name])));
        let step = 1e-5;
        for (table, edge, operation) in [(0, 1, 0), (0, 2, 1), (0, 4, 3), (0, 5, 4)] {
            let at = |offset: f64| {
                let moved = fixture.theta(fixture.path(true));
                let entry = moved.operations[table].get(edge).narrow(0, operation, 1);
                let _ = tch::no_grad(|| entry.shallow_clone().g_add_scalar_(offset));
                let logits = fixture.net.trial_logits(&fixture.images, &moved);
                cross_entropy(&logits, &fixture.labels).double_value(&[])
            };
            let expected = (at(step) - at(-step)) / (2.0 * step);
            let found = of_theta[table].double_value(&[edge, operation]);
            assert!(
                (found - expected).abs() < 1e-7 + 1e-4 * expected.abs(),
                "{space:?}, k {k}, edge {edge}, operation {operation}: {found:e}, expected {expected:e}"
            );
        }
    }
}
