//! Compares the second-order architecture step in float64 with exact derivatives of the naive network, differentiated
//! twice.

#[path = "common/naive.rs"]
mod naive;

use drnas_dist::comm::Solo;
use drnas_dist::config::Precision;
use drnas_dist::method::{Sample, dirichlet};
use drnas_dist::net::loss::cross_entropy;
use drnas_dist::net::mixing::MixingWeights;
use drnas_dist::net::params::Named;
use drnas_dist::net::placement::Placement;
use drnas_dist::net::supernet::{Supernet, SupernetShape};
use drnas_dist::random::{Purpose, stream, torch_seeded};
use drnas_dist::search::unrolled::{LENGTH, ReplicaInput, Unrolled};
use drnas_dist::space::{Mask, SearchSpace};
use drnas_dist::train::optimiser::Sgd;
use drnas_dist::train::tally::StepOutcome;
use naive::Naive;
use tch::{Device, Kind, Tensor};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
const SGD: Sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.03 };
const LR: f64 = 0.1;

/// A small search at mid-training: weights, momentum, eta, and the batches and samples of two replicas.
struct Fixture {
    net: Supernet,
    /// The only parameter.
    eta: [Tensor; 1],
    replicas: Vec<ReplicaInput>,
}

impl Fixture {
    fn new(space: SearchSpace, k: i64) -> Fixture {
        tch::set_num_threads(1);
        let (edges, num_operations) = (space.num_edges(), space.operations().len());
        let tables = space.tables().len();
        let mut masks = vec![Mask::full(edges, num_operations); tables];
        masks[0].0[2][1] = false;
        let layers = if space == SearchSpace::NasBench201 { 1 } else { 3 };
        let operations = space.operations().to_vec();
        let shape = SupernetShape { space, operations, init_channels: 4, layers, num_classes: 3, k, masks };
        let placement = Placement {
            precision: Precision::Fp64,
            device: Device::Cpu,
            channels_last: true,
            checkpoint_cells: false,
            replicas: 2,
            bucket_bytes: 2000,
        };
        let mut net = Supernet::new(shape, placement);
        net.params.initialise(5);
        let (eta, batches, targets) = torch_seeded(6, || {
            for bucket in &net.params.buckets {
                // One draw for all parameters of the bucket, none for the gaps between them.
                let drawn =
                    Tensor::randn([bucket.num_elements()], (bucket.momentum.kind(), Device::Cpu)) * 0.1;
                let mut from = 0;
                for index in 0..bucket.num_params() {
                    let mut momentum = bucket.view(&bucket.momentum, index);
                    let length = momentum.numel() as i64;
                    momentum.copy_(&drawn.narrow(0, from, length).view_as(&momentum));
                    from += length;
                }
            }
            let eta = Tensor::randn([tables as i64, edges as i64, num_operations as i64], F64) * 0.3;
            let images = [(); 4].map(|()| Tensor::randn([4, 3, 8, 8], F64));
            let labels = [(); 4].map(|()| Tensor::randint(3, [4], (Kind::Int64, Device::Cpu)));
            (eta, images, labels)
        });
        // Samples with which no ReLU switches within the two shorter lengths of `compare`.
        let sample = |seed: u64| -> Sample {
            let table = |table: i64| {
                dirichlet::sample(
                    &eta.get(table),
                    net.masks().table(table as usize),
                    &mut stream(seed, Purpose::ThetaArchitectureStep, &[table as u64]),
                )
            };
            Sample::dirichlet((0..tables as i64).map(table).collect())
        };
        let replicas = (0..2)
            .map(|replica: usize| ReplicaInput {
                train: (batches[replica].copy(), targets[replica].copy()),
                train_sample: sample(replica as u64),
                valid: (batches[2 + replica].copy(), targets[2 + replica].copy()),
                valid_sample: sample(2 + replica as u64),
            })
            .collect();
        Fixture { net, eta: [eta], replicas }
    }

    fn grad(&self, lr: f64, length: f64) -> Tensor {
        let step = Unrolled { net: &self.net, values: &self.eta, sgd: SGD, lr, length };
        let sums = [self.eta[0].zeros_like()];
        step.add_grads(&self.replicas, &sums, &Solo, &mut StepOutcome::default()).unwrap();
        &sums[0] / self.replicas.len() as f64
    }

    /// The same gradient by double differentiation, without approximation.
    fn exact(&self, lr: f64) -> Tensor {
        let params = &self.net.params;
        let weights: Named = params
            .export(|bucket| &bucket.weights)
            .into_iter()
            .map(|(name, tensor)| (name, tensor.set_requires_grad(true)))
            .collect();
        let momentum = params.export(|bucket| &bucket.momentum);
        let running = params.export_running(0);
        let loss = |weights: &Named, batch: &(Tensor, Tensor), theta: &MixingWeights| {
            let naive = Naive { shape: self.net.shape(), weights, running: &running };
            cross_entropy(&naive.logits(&batch.0, &theta.operations), &batch.1)
        };
        let train_theta: Vec<MixingWeights> =
            self.replicas.iter().map(|replica| replica.train_sample.weights.leaves()).collect();
        let valid_theta: Vec<MixingWeights> =
            self.replicas.iter().map(|replica| replica.valid_sample.weights.leaves()).collect();

        let mean = |losses: Vec<Tensor>| Tensor::stack(&losses, 0).mean(Kind::Double);
        let train = mean(
            self.replicas
                .iter()
                .zip(&train_theta)
                .map(|(s, theta)| loss(&weights, &s.train, theta))
                .collect(),
        );
        let by_weight: Vec<&Tensor> = weights.values().collect();
        let grads = Tensor::run_backward(&[&train], &by_weight, true, true);
        let moved: Named = weights
            .iter()
            .zip(&grads)
            .map(|((name, weight), grad)| {
                let step = &momentum[name] * SGD.momentum + grad + weight * SGD.weight_decay;
                (name.clone(), weight - step * lr)
            })
            .collect();
        let valid = mean(
            self.replicas.iter().zip(&valid_theta).map(|(s, theta)| loss(&moved, &s.valid, theta)).collect(),
        );
        let theta: Vec<&Tensor> =
            train_theta.iter().chain(&valid_theta).flat_map(|theta| &theta.operations).collect();
        let grads = Tensor::run_backward(&[&valid], &theta, false, false);

        let sums = [self.eta[0].zeros_like()];
        let train = self.replicas.iter().map(|replica| &replica.train_sample);
        let samples = train.chain(self.replicas.iter().map(|replica| &replica.valid_sample));
        let num_tables = train_theta[0].operations.len();
        for (sample, grads) in samples.zip(grads.chunks(num_tables)) {
            sample.add_grads(&self.eta, grads, 1.0, &sums);
        }
        let [sum] = sums;
        sum
    }
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).norm().double_value(&[]) / b.norm().double_value(&[])
}

fn compare(space: SearchSpace, k: i64) {
    let fixture = Fixture::new(space, k);
    let before: Vec<Tensor> = fixture.net.params.buckets.iter().map(|bucket| bucket.weights.copy()).collect();
    let exact = fixture.exact(LR);
    // The finite difference equals the derivative if no ReLU switches along it. In such a small network many switch
    // over the published length, and their jumps dominate the difference.
    let errors = [LENGTH, 1e-5, 1e-6].map(|length| distance(&fixture.grad(LR, length), &exact));
    println!("{space:?} k {k}: relative errors {errors:?} for the published length, 1e-5 and 1e-6");
    assert!(errors[1] < 1e-6 && errors[2] < 1e-6, "{errors:?}");
    // The second-order term is not negligible; otherwise a virtual step without effect would pass this test.
    let first_order = fixture.exact(0.0);
    assert!(distance(&fixture.grad(0.0, LENGTH), &first_order) < 1e-9);
    assert!(distance(&exact, &first_order) > 0.1, "{}", distance(&exact, &first_order));
    for (bucket, before) in fixture.net.params.buckets.iter().zip(&before) {
        assert!(bucket.weights.equal(before), "the weights were not restored");
    }
}

#[test]
fn equals_the_exact_gradient_on_nas_bench_201() {
    compare(SearchSpace::NasBench201, 1);
    compare(SearchSpace::NasBench201, 2);
}

#[test]
fn equals_the_exact_gradient_on_darts_cells() {
    compare(SearchSpace::DartsCifar, 2);
}

#[test]
fn step_draws_no_samples_and_updates_statistics_once() {
    let fixture = Fixture::new(SearchSpace::NasBench201, 2);
    // No random draws inside: two calls agree.
    assert!(fixture.grad(LR, LENGTH).equal(&fixture.grad(LR, LENGTH)));
    // Only the pass with the real weights updates the running statistics, as any training pass does.
    let other = Fixture::new(SearchSpace::NasBench201, 2);
    for _ in 0..2 {
        for (local, replica) in other.replicas.iter().enumerate() {
            other.net.forward(&replica.train.0, &replica.train_sample.weights, local);
        }
    }
    for local in 0..2 {
        let [moved, expected] = [&fixture, &other].map(|fixture| fixture.net.params.export_running(local));
        assert!(moved.iter().all(|(name, tensor)| tensor.equal(&expected[name])), "replica {local}");
    }
}
