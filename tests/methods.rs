//! Search methods: whole runs do not depend on the number of ranks or on interruptions, gradients of the architecture
//! parameters match finite differences, and known faults of published codes are absent.

#[path = "common/bench.rs"]
#[allow(dead_code, reason = "other test programs use the rest")]
mod bench;

use bench::{Bench, Run, assert_same_result_after, finish, kill_all, output_text};
use clap::ValueEnum;
use drnas_dist::config::{Attack, Config, Method, Precision};
use drnas_dist::method::ArchitectureParameters;
use drnas_dist::method::parameters::DrawPlace;
use drnas_dist::method::perturbation::{noise, start};
use drnas_dist::net::loss::cross_entropy;
use drnas_dist::net::mixing::{DeviceMasks, MixingWeights};
use drnas_dist::net::ops::Mode;
use drnas_dist::net::placement::Placement;
use drnas_dist::net::supernet::{Supernet, SupernetShape};
use drnas_dist::random::{Purpose, stream, torch_seeded};
use drnas_dist::search::adversary::Adversary;
use drnas_dist::space::{Mask, SearchSpace};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Two stages of two epochs of three steps; the second epoch of each trains the architecture.
const STEPS: u64 = 12;
const CONFIG: &str = "
device = \"cpu\"
[model]
space = \"SPACE\"
init_channels = 4
layers = LAYERS
num_classes = 4
[data]
px = PX
crop_area_min = 0.3
[search]
replicas = 2
global_batch = 8
architecture_from_epoch = 1
steps_per_epoch = 3
[[search.stage]]
k = 2
ops_kept = ALL
epochs = 2
[[search.stage]]
k = 1
ops_kept = 2
epochs = 2
[weights]
lr = 0.02
warmup_epochs = 0
[architecture]
lr = 0.05
[run]
log_every = 3
compare_every = 4
checkpoint_every = 100
time_limit_s = 100
threads = 1
";

fn bench() -> &'static Bench {
    static READY: std::sync::Once = std::sync::Once::new();
    let bench = Bench::get();
    READY.call_once(|| {
        let write = |name: &str, space: &str, layers: &str, px: &str, all: &str| {
            let text = CONFIG.replace("SPACE", space).replace("LAYERS", layers);
            std::fs::write(bench.path(name), text.replace("PX", px).replace("ALL", all)).unwrap();
        };
        write("nb201.toml", "nas-bench-201", "1", "16", "5");
        write("cifar.toml", "darts-cifar", "3", "16", "8");
        write("noise.toml", "darts-cifar", "3", "16", "3");
    });
    bench
}

/// The command of a search on `ranks` ranks (0: without mpirun); `words`: the configuration file, then more arguments.
fn search(ranks: usize, run: &str, config: &str, more: &[&str]) -> std::process::Command {
    let words: &[&str] = match config {
        "nb201.toml" => &["search-nb201", "--dataset", "cifar10", "--config", config],
        _ => &["search-cifar", "--config", config],
    };
    let fixed: &[&str] = match config {
        "nb201.toml" => &["--set", "model.num_classes=4", "--set", "data.px=16"],
        _ => &[],
    };
    let mut command = if ranks == 0 { bench().program() } else { bench().mpirun() };
    if ranks > 0 {
        command.args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_drnas-dist")]);
    }
    command.args(words).args(["--train", "train", "--out", run]).args(fixed).args(more);
    if !more.contains(&"search.scheme=single-level") {
        command.args(["--valid", "valid"]);
    }
    command
}

fn run_search(ranks: usize, run: &str, config: &str, more: &[&str]) -> Run {
    let output = finish(search(ranks, run, config, more), Duration::from_secs(300));
    assert!(output.status.success(), "{ranks} ranks, {more:?}: {}", output_text(&output));
    bench().run(run)
}

/// A way to search: name, configuration file, arguments.
type Variant = (&'static str, &'static str, &'static [&'static str]);

/// Every method, and the options that change what is communicated.
const VARIANTS: [Variant; 15] = [
    ("darts", "nb201.toml", &["--method", "darts"]),
    ("weights-first", "nb201.toml", &["--method", "darts", "--set", "search.first=weights"]),
    ("second-order", "nb201.toml", &["--method", "darts", "--set", "search.order=2"]),
    ("nesterov", "nb201.toml", &["--method", "darts", "--set", "weights.nesterov=true"]),
    ("snas", "nb201.toml", &["--method", "snas"]),
    ("single-level", "nb201.toml", &["--method", "snas", "--set", "search.scheme=single-level"]),
    ("gdas", "nb201.toml", &["--method", "gdas"]),
    ("dsnas", "nb201.toml", &["--method", "dsnas"]),
    ("pc-darts", "nb201.toml", &["--method", "pc-darts"]),
    ("sdarts-rs", "nb201.toml", &["--method", "sdarts-rs"]),
    ("sdarts-adv", "nb201.toml", &["--method", "sdarts-adv"]),
    ("own-attack", "nb201.toml", &["--method", "sdarts-adv", "--set", "architecture.attack=per-replica"]),
    ("darts-cells", "cifar.toml", &["--method", "pc-darts", "--set", "search.order=2"]),
    ("one-path", "cifar.toml", &["--method", "dsnas", "--set", "search.scheme=single-level"]),
    (
        "noise",
        "noise.toml",
        &["--method", "sdarts-rs", "--set", "model.operations=['none', 'noise', 'sep_conv_3x3']"],
    ),
];

#[test]
fn searches_do_not_depend_on_the_number_of_ranks() {
    let mut losses: Vec<(&str, Vec<f64>)> = Vec::new();
    for (name, config, more) in VARIANTS {
        let start = Instant::now();
        let one = run_search(0, &format!("{name}-1"), config, more);
        let two = run_search(2, &format!("{name}-2"), config, more);
        assert_same_result_after(STEPS, &two, &one);
        // Every variant computes something else from the first architecture step on.
        let found = one.step_values("loss");
        println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
        assert!(found.iter().all(|loss| loss.is_finite()));
        for (other, values) in losses.iter().filter(|_| config == "nb201.toml") {
            assert_ne!(*values, found, "{name} computes the same as {other}");
        }
        losses.push((name, found));
    }
}

#[test]
fn killed_and_resumed_equals_uninterrupted() {
    for (name, kill_after) in [("pc-darts", 5), ("sdarts-adv", 7), ("single-level", 10), ("gdas", 4)] {
        let &(_, config, more) = VARIANTS.iter().find(|(other, ..)| *other == name).unwrap();
        let more = [more, &["--set", "run.checkpoint_every=1"]].concat();
        let whole = run_search(2, &format!("{name}-whole"), config, &more);
        let run_name = format!("{name}-killed");
        let more = [&more[..], &["--resume"]].concat();
        let mut command = search(2, &run_name, config, &more);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let run = bench().run(&run_name);
        let start = Instant::now();
        while run.checkpoints().last().is_none_or(|&step| step < kill_after) {
            assert!(start.elapsed() < Duration::from_secs(200), "no checkpoint after step {kill_after}");
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_all(child, &run.folder);
        println!("{name}: killed; complete checkpoints: {:?}", run.checkpoints());
        assert!(!run.folder.join("genotype.json").exists(), "the run finished before it was killed");
        let output = finish(search(2, &run_name, config, &more), Duration::from_secs(300));
        assert!(output_text(&output).contains("resumed after step"), "{}", output_text(&output));
        assert_same_result_after(STEPS, &run, &whole);
    }
}

#[test]
fn checkpoints_hold_all_parameters_of_a_method() {
    let (_, config, more) = *VARIANTS.iter().find(|(name, ..)| *name == "pc-darts").unwrap();
    let run = run_search(0, "parameters", config, more);
    let state = run.state(STEPS);
    let names: Vec<&str> = state
        .keys()
        .map(String::as_str)
        .filter(|name| name.starts_with("alpha") || name.starts_with("beta"))
        .collect();
    assert_eq!(names, ["alpha", "alpha.mean", "alpha.square", "beta", "beta.mean", "beta.square"]);
    assert_eq!((state["alpha"].size(), state["beta"].size()), (vec![1, 6, 5], vec![1, 6]));
    // The edge weights have been trained: by Adam's learning rate in each of six steps, at most. Node 1 has one input,
    // whose weight is always 1.
    let moved = Vec::<f64>::try_from(state["beta.mean"].get(0).abs().to_kind(Kind::Double)).unwrap();
    assert!(moved[1..].iter().all(|value| *value > 1e-6), "{moved:?}");
    let epochs = run.log().into_iter().filter(|line| line["event"] == "epoch");
    for epoch in epochs {
        assert_eq!(epoch["method"], "pc-darts");
        assert_eq!(epoch["beta"][0].as_array().unwrap().len(), 6);
    }
}

#[test]
fn the_second_data_set_goes_with_the_scheme() {
    let refused = |more: &[&str], expected: &str| {
        let mut command = bench().program();
        command.args(["search-cifar", "--config", "cifar.toml", "--train", "train", "--out", "refused"]);
        let output = finish(
            {
                command.args(more);
                command
            },
            Duration::from_secs(60),
        );
        let text = output_text(&output);
        assert!(!output.status.success() && text.contains(expected), "{text}");
        assert!(!bench().path("refused").join("checkpoints").exists());
    };
    refused(
        &["--method", "darts"],
        "--valid is missing: the architecture parameters are trained on its images",
    );
    let single = ["--method", "snas", "--set", "search.scheme=single-level", "--valid", "valid"];
    refused(&single, "--valid has no effect with search.scheme = \"single-level\"");
}

// -- gradients -----------------------------------------------------------------------------------------------------

/// A small NAS-Bench-201 supernet in float64 with parameters of a method.
struct Fixture {
    net: Supernet,
    parameters: ArchitectureParameters,
    images: Tensor,
    labels: Tensor,
}

impl Fixture {
    fn new(method: Method, k: i64) -> Fixture {
        tch::set_num_threads(1);
        let space = SearchSpace::NasBench201;
        let mut config = Config { method, precision: Precision::Fp64, ..Config::default() };
        config.model.space = space;
        config.model.operations = method.operations(space);
        config.architecture.initial = [0.0, 0.7];
        config.architecture.temperature = [0.8, 0.5];
        let mut masks = vec![Mask::full(6, 5)];
        masks[0].0[2][1] = false;
        let shape = SupernetShape {
            space,
            operations: config.operations(),
            init_channels: 4,
            layers: 1,
            num_classes: 3,
            k,
            masks,
        };
        let placement = Placement::on_cpu(Precision::Fp64);
        let mut net = Supernet::new(shape, placement);
        net.params.initialise(5);
        let (images, labels) = torch_seeded(6, || {
            (Tensor::randn([6, 3, 8, 8], F64), Tensor::from_slice(&[0i64, 1, 2, 0, 1, 2]))
        });
        Fixture { net, parameters: ArchitectureParameters::new(&config, Device::Cpu), images, labels }
    }

    fn loss(&self, theta: &MixingWeights) -> Tensor {
        cross_entropy(&self.net.trial_logits(&self.images, theta), &self.labels)
    }

    /// The mixing weights of the present parameters, always with the same noise.
    fn draw(&self) -> drnas_dist::method::Sample {
        let place = DrawPlace { purpose: Purpose::ThetaArchitectureStep, step: 4, replica: 1 };
        self.parameters.draw(self.net.masks(), place, (1, 3))
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (method, k) in [(Method::Darts, 1), (Method::Snas, 1), (Method::PcDarts, 2), (Method::SdartsAdv, 2)] {
        let mut fixture = Fixture::new(method, k);
        let sample = fixture.draw();
        let theta = sample.weights.leaves();
        let grads = Tensor::run_backward(&[fixture.loss(&theta)], &theta.tensors(), false, false);
        let sums = fixture.parameters.zero_sums();
        sample.add_grads(fixture.parameters.values(), &grads, 1.0, &sums);
        assert_eq!(sums.len(), if method == Method::PcDarts { 2 } else { 1 });
        let (step, mut largest) = (1e-5, 0f64);
        for (parameter, sums) in sums.iter().enumerate() {
            for entry in 0..sums.numel() as i64 {
                let mut at = |offset: f64| {
                    let value = fixture.parameters.values_mut()[parameter].view(-1).narrow(0, entry, 1);
                    let kept = value.copy();
                    let _ = value.shallow_clone().g_add_scalar_(offset);
                    let loss = fixture.loss(&fixture.draw().weights).double_value(&[]);
                    value.shallow_clone().copy_(&kept);
                    loss
                };
                let expected = (at(step) - at(-step)) / (2.0 * step);
                let found = sums.view(-1).double_value(&[entry]);
                largest = largest.max(found.abs());
                assert!(
                    (found - expected).abs() < 1e-8 + 1e-5 * expected.abs(),
                    "{method:?}, parameter {parameter}, entry {entry}: {found:e}, expected {expected:e}"
                );
            }
        }
        assert!(largest > 1e-4, "{method:?}: all gradients are tiny: {largest:e}");
    }
}

/// The log-probability of the drawn operations has the gradient one-hot - p, which finite differences confirm; a loss
/// multiplies it by the credit of the operation. GDAS: the gradient of the relaxed weights q.
#[test]
fn gradients_of_one_path_match_finite_differences() {
    for method in [Method::Gdas, Method::Dsnas] {
        let mut fixture = Fixture::new(method, 1);
        let sample = fixture.draw();
        let path = sample.weights.path.as_ref().unwrap().masks[0].clone();
        assert!(path.0.iter().all(|row| row.iter().filter(|kept| **kept).count() == 1));
        let upstream = torch_seeded(8, || Tensor::randn([6, 5], F64));
        let sums = fixture.parameters.zero_sums();
        sample.add_grads(fixture.parameters.values(), &[upstream.shallow_clone()], 1.0, &sums);
        let mask = fixture.net.masks().table(0).shallow_clone();
        let gumbel = drnas_dist::method::softmax::gumbel(
            &[6, 5],
            &mut stream(0, Purpose::ThetaArchitectureStep, &[4, 1, 0]),
        );
        // The credit of the drawn operation does not depend on alpha.
        let z = &sample.weights.operations[0];
        let credit = (z * &upstream).sum_dim_intlist(-1, true, None::<Kind>);
        let objective = |alpha: &Tensor| -> f64 {
            use drnas_dist::method::softmax::{concrete, softmax};
            match method {
                Method::Gdas => (concrete(alpha, &gumbel, 0.7, &mask) * &upstream).sum(None::<Kind>),
                _ => ((softmax(alpha, &mask).clamp_min(1e-300).log() * z) * &credit).sum(None::<Kind>),
            }
            .double_value(&[])
        };
        let alpha = fixture.parameters.values_mut()[0].get(0).copy();
        let step = 1e-6;
        for entry in 0..30 {
            let at = |offset: f64| {
                let moved = alpha.copy();
                let _ = moved.view(-1).narrow(0, entry, 1).g_add_scalar_(offset);
                objective(&moved)
            };
            let expected = (at(step) - at(-step)) / (2.0 * step);
            let found = sums[0].view(-1).double_value(&[entry]);
            assert!((found - expected).abs() < 1e-7, "{method:?} {entry}: {found:e}, expected {expected:e}");
        }
    }
}

#[test]
fn an_attack_raises_the_loss() {
    let fixture = Fixture::new(Method::SdartsAdv, 1);
    let p = fixture.draw().weights.operations;
    let batches = [(fixture.images.shallow_clone(), fixture.labels.shallow_clone())];
    let mask = fixture.net.masks().table(0);
    let loss = |point: &Tensor| {
        let theta = MixingWeights::of(vec![point.shallow_clone()]);
        cross_entropy(&fixture.net.logits(&fixture.images, &theta, Mode::Eval, 0), &fixture.labels)
            .double_value(&[])
    };
    let plain = loss(&p[0]);
    let (mut random_rises, mut attack_rises) = (0.0, 0.0);
    for seed in 0..5 {
        let drawn = noise(&[6, 5], &mut stream(seed, Purpose::Perturbation, &[])) * 0.2;
        let from = start(&p[0], &(drawn * mask));
        random_rises += loss(&from) - plain;
        let adversary = Adversary {
            net: &fixture.net,
            batches: &batches,
            p: &p,
            epsilon: 0.2,
            attack: Attack::Shared,
            noise_seeds: &[0],
        };
        let points = adversary.attack(vec![vec![from]], &drnas_dist::comm::Solo).unwrap();
        let point = &points[0][0];
        let rise = loss(point) - plain;
        assert!(rise > 0.0, "seed {seed}: the attack lowered the loss by {}", -rise);
        attack_rises += rise;
        // Weights: rows sum to 1, nothing negative, pruned entries 0.
        let sums = Vec::<f64>::try_from(point.sum_dim_intlist(-1, false, None::<Kind>)).unwrap();
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-12), "{sums:?}");
        assert!(point.min().double_value(&[]) >= 0.0 && point.double_value(&[2, 1]) == 0.0);
    }
    println!("loss {plain:.4}; random {:+.4}, attack {:+.4}", random_rises / 5.0, attack_rises / 5.0);
    assert!(attack_rises > 2.0 * random_rises.abs(), "{attack_rises} against {random_rises}");
}

// -- a toy with a planted best operation ---------------------------------------------------------------------------

/// The loss of an edge is its mixing weights times costs, of which one is lower on average: which one is known. Costs are
/// noisy in every step.
#[test]
fn every_method_finds_a_planted_operation() {
    let space = SearchSpace::NasBench201;
    for &method in Method::value_variants() {
        let found = (0..10).filter(|&seed| planted_is_found(method, space, seed)).count();
        println!("{method:?}: {found} of 10");
        assert!(found >= 9, "{method:?}: found in {found} of 10 seeds");
    }
}

fn planted_is_found(method: Method, space: SearchSpace, seed: u64) -> bool {
    let mut config = Config { method, seed, precision: Precision::Fp64, ..Config::default() };
    config.model.space = space;
    config.model.operations = method.operations(space);
    config.architecture.lr = 0.05;
    config.architecture.grad_clip = 0.0;
    let (edges, operations) = (space.num_edges() as i64, config.operations().len() as i64);
    let masks = vec![Mask::full(edges as usize, operations as usize)];
    let device_masks = DeviceMasks::new(&masks, Kind::Double, Device::Cpu);
    let planted = |edge: i64| (edge + seed as i64) % operations;
    let mut parameters = ArchitectureParameters::new(&config, Device::Cpu);
    let num_steps = 300;
    for step in 0..num_steps {
        let place = DrawPlace { purpose: Purpose::ThetaArchitectureStep, step, replica: 0 };
        let sample = parameters.draw(&device_masks, place, (step, num_steps));
        let costs = torch_seeded(1000 * seed + step, || Tensor::randn([edges, operations], F64) * 0.5);
        for edge in 0..edges {
            let _ = costs.get(edge).narrow(0, planted(edge), 1).g_sub_scalar_(0.5);
        }
        let theta = sample.weights.leaves();
        // Of a path, only the weights of its operations have a gradient.
        let computed =
            theta.path.as_ref().map(|path| DeviceMasks::new(&path.masks, Kind::Double, Device::Cpu));
        let costs = computed.map_or(costs.shallow_clone(), |path| costs * path.table(0));
        let of_edges = (&theta.operations[0] * &costs).sum_dim_intlist(-1, false, None::<Kind>);
        let loss = match theta.edges.first() {
            Some(weights) => (of_edges * weights).sum(None::<Kind>),
            None => of_edges.sum(None::<Kind>),
        };
        let grads = Tensor::run_backward(&[loss], &theta.tensors(), false, false);
        let sums = parameters.zero_sums();
        sample.add_grads(parameters.values(), &grads, 1.0, &sums);
        parameters.descend(sums);
    }
    let scores = &parameters.scores(&masks).unwrap()[0];
    (0..edges).all(|edge| {
        let row = &scores[edge as usize];
        (0..operations).all(|operation| row[operation as usize] <= row[planted(edge) as usize])
    })
}
