//! Compares the final network with PyTorch: an exported network gives the same logits there, and 20 training steps from
//! the same state give the same weights. Uses the PyTorch of native/, see `tests/python/torch.sh`.

#[path = "common/torch.rs"]
mod torch;

use drnas_dist::comm::Solo;
use drnas_dist::commands::export::{Trained, export};
use drnas_dist::config::{DecayKind, EvaluateConfig, Precision, Settings};
use drnas_dist::eval::Evaluation;
use drnas_dist::random::{Purpose, stream};
use drnas_dist::space::SearchSpace;
use drnas_dist::space::genotype::Genotype;
use rand::RngExt;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use torch::torch;

/// Every operation in normal and reduction cells; some states feed several edges, and one node is not in the output.
const GENOTYPE: &str = "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('max_pool_3x3', 0), \
    ('skip_connect', 1), ('dil_conv_5x5', 2), ('sep_conv_5x5', 1), ('dil_conv_3x3', 2), ('avg_pool_3x3', 4)], \
    normal_concat=[2, 4, 5], reduce=[('skip_connect', 0), ('skip_connect', 1), ('sep_conv_5x5', 1), ('dil_conv_3x3', 0), \
    ('max_pool_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_5x5', 1), ('sep_conv_3x3', 2)], reduce_concat=range(2, 6))";

const STEPS: usize = 20;
/// Number of batches; the steps use them in turn.
const BATCHES: i64 = 4;
const STEPS_PER_EPOCH: u64 = 4;

fn config(space: SearchSpace, precision: Precision) -> EvaluateConfig {
    let mut config = EvaluateConfig { precision, ..EvaluateConfig::default() };
    config.model.space = space;
    (config.model.init_channels, config.model.num_classes) = (4, 7);
    (config.data.px, config.model.layers, config.evaluate.global_batch) = match space {
        SearchSpace::DartsCifar => (32, 5, 16),
        _ => (224, 4, 8),
    };
    config.evaluate.replicas = 1;
    config.evaluate.epochs = STEPS as u64 / STEPS_PER_EPOCH;
    config.evaluate.decay = DecayKind::Cosine;
    // Gradient norms are 5 to 20 here, so only some are clipped.
    config.evaluate.grad_clip = 10.0;
    // Float64 uses the published learning rate, float32 a small one: in every other step rounding flips a ReLU, which
    // moves the weights by the rate times one pixel's gradient, and the error grows. At the published rate, the float32
    // of PyTorch differs from its float64 by 6e-2 (CIFAR) and 7e-2 (ImageNet) in weights and statistics and by 0.15 and
    // 0.85 in the logits; this program by 6e-2 and 1e-1, 0.3 and 0.9. For the small rate see `float32_on_imagenet`.
    // Measured by `float32_errors_against_float64_of_pytorch`.
    config.weights.lr = if precision == Precision::Fp64 { 0.025 } else { 2e-5 };
    config.weights.warmup_epochs = 2;
    config.check().unwrap();
    config
}

/// Relative error in the Frobenius norm, computed in float64.
fn error(ours: &Tensor, theirs: &Tensor) -> f64 {
    let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
    assert_eq!(ours.size(), theirs.size());
    (ours - &theirs).norm().double_value(&[]) / theirs.norm().double_value(&[]).max(1e-30)
}

/// A network at mid-training with images [B, N, 3, px, px] and labels [B, N], drawn from `seed`; also written to
/// `folder` for tests/python/steps.py.
fn fixture(config: &EvaluateConfig, seed: u64, folder: &Path) -> (Evaluation, Tensor, Tensor) {
    tch::set_num_threads(1);
    let genotype = Genotype::read(GENOTYPE).unwrap();
    let (kind, px, n) = (config.precision.weights(), config.data.px, config.evaluate.global_batch);
    let mut random = stream(seed, Purpose::Demo, &[]);
    // Coarse images: fine noise has almost the same mean in every image, and a batch norm over a few nearly equal
    // values amplifies rounding.
    let tile = px / 4;
    let coarse: Vec<f64> = (0..BATCHES * n * 3 * 16).map(|_| random.random_range(-2.0..2.0)).collect();
    let coarse = Tensor::from_slice(&coarse).view([BATCHES, n, 3, 4, 1, 4, 1].as_slice());
    let fine: Vec<f64> = (0..n * 3 * px * px).map(|_| random.random_range(-0.3..0.3)).collect();
    let fine = Tensor::from_slice(&fine).view([n, 3, px, px]);
    let images =
        coarse.expand([BATCHES, n, 3, 4, tile, 4, tile].as_slice(), false).reshape([BATCHES, n, 3, px, px]);
    let images = (images + fine).to_kind(kind);
    let labels: Vec<i64> = (0..BATCHES * n).map(|_| random.random_range(0..7)).collect();
    let labels = Tensor::from_slice(&labels).view([BATCHES, n]);
    let evaluation = Evaluation::new(config, &genotype, STEPS_PER_EPOCH, 0..1, Device::Cpu);
    // Running statistics as after some steps: with the initial ones, activations vanish and the logits equal the last
    // bias.
    for pass in 0..12 {
        tch::no_grad(|| drop(evaluation.net().forward(&images.get(pass % BATCHES), None, 0)));
    }
    let mut exported = evaluation.net().params.export(|bucket| &bucket.weights);
    exported.extend(evaluation.net().params.export_running(0));
    let trained = Trained { weights: exported, classes: None, from: "a test".into() };
    export(config, &genotype, trained, &folder.join("export"), false).unwrap();

    Tensor::write_safetensors(
        &[("images", &images), ("labels", &labels)],
        folder.join("batches.safetensors"),
    )
    .unwrap();
    let lr: Vec<f64> = (0..STEPS as u64).map(|step| evaluation.lr(step / STEPS_PER_EPOCH)).collect();
    let settings = serde_json::json!({
        "momentum": config.weights.momentum, "weight_decay": config.weights.weight_decay,
        "grad_clip": config.evaluate.grad_clip, "label_smoothing": config.evaluate.label_smoothing,
        "auxiliary_weight": config.evaluate.auxiliary_weight, "lr": lr,
    });
    std::fs::write(folder.join("settings.json"), settings.to_string()).unwrap();

    (evaluation, images, labels)
}

/// The results of tests/python/steps.py in `folder`; `None` if PyTorch is not available.
fn steps_of_torch(folder: &Path, more: &[&str]) -> Option<BTreeMap<String, Tensor>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/steps.py");
    let more = more.iter().map(Path::new);
    let output = torch(&[script.as_path(), folder].into_iter().chain(more).collect::<Vec<_>>())?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(Tensor::read_safetensors(folder.join("torch.safetensors")).unwrap().into_iter().collect())
}

/// The results of this program, with the names of tests/python/steps.py.
fn steps(evaluation: &mut Evaluation, images: &Tensor, labels: &Tensor) -> BTreeMap<String, Tensor> {
    let logits = |evaluation: &Evaluation| tch::no_grad(|| evaluation.net().logits(&images.get(0), 0));
    let before = logits(evaluation);
    let mut losses = Vec::new();
    for step in 0..STEPS as i64 {
        let batch = |_: &mut _, _: &mut _| Ok((images.get(step % BATCHES), labels.get(step % BATCHES)));
        let outcome = evaluation.train_on(batch, &Solo).unwrap();
        losses.push(outcome.weights[0].double_value(&[0]));
    }
    let mut after = evaluation.net().params.export(|bucket| &bucket.weights);
    after.extend(evaluation.net().params.export_running(0));
    let after = after.into_iter().map(|(name, tensor)| (format!("after/{name}"), tensor));
    let numbers = [
        ("logits.before", before),
        ("losses", Tensor::from_slice(&losses)),
        ("logits.after", logits(evaluation)),
    ];
    numbers.map(|(name, tensor)| (name.to_string(), tensor)).into_iter().chain(after).collect()
}

/// Relative errors between two programs: logits before, losses, weights and statistics as one tensor, logits after.
fn distances(ours: &BTreeMap<String, Tensor>, theirs: &BTreeMap<String, Tensor>) -> [f64; 4] {
    assert!(ours.keys().eq(theirs.keys()), "a tensor is not compared");
    let after = |all: &BTreeMap<String, Tensor>| {
        let after = all.iter().filter(|(name, _)| name.starts_with("after/"));
        let flat: Vec<Tensor> = after.map(|(_, x)| x.to_kind(Kind::Double).flatten(0, -1)).collect();
        Tensor::cat(&flat, 0)
    };
    let off = |name: &str| error(&ours[name], &theirs[name]);
    [off("logits.before"), off("losses"), error(&after(ours), &after(theirs)), off("logits.after")]
}

/// `tolerance` applies to losses and to weights and statistics; `logits` to the logits after all steps.
fn compare(space: SearchSpace, precision: Precision, channels_last: bool, [tolerance, logits]: [f64; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let config = EvaluateConfig { channels_last, ..config(space, precision) };
    let (mut evaluation, images, labels) = fixture(&config, 3, folder.path());
    let Some(theirs) = steps_of_torch(folder.path(), &[]) else { return };
    let counted = std::fs::read_to_string(folder.path().join("torch.json")).unwrap();
    let counted: serde_json::Value = serde_json::from_str(&counted).unwrap();
    assert_eq!(counted["parameters"], evaluation.net().num_parameters());
    assert_eq!(counted["multiply_adds"], evaluation.net().multiply_adds());

    let ours = steps(&mut evaluation, &images, &labels);
    let [before, losses, weights, after] = distances(&ours, &theirs);
    println!("{space:?} {precision}: exported logits differ by {before:.1e}");
    println!(
        "after {STEPS} steps losses differ by {losses:.1e}, weights and statistics by {weights:.1e}, logits by {after:.1e}"
    );
    assert!(before < 1e-5_f64.min(tolerance), "{before}");
    for (found, allowed) in [(losses, tolerance), (weights, tolerance), (after, logits)] {
        assert!(found < allowed, "{found}, allowed {allowed}");
    }
}

#[test]
fn float64_on_cifar() {
    compare(SearchSpace::DartsCifar, Precision::Fp64, true, [1e-9; 2]);
}

#[test]
fn float32_on_cifar() {
    compare(SearchSpace::DartsCifar, Precision::Fp32, true, [1e-4; 2]);
}

#[test]
fn float64_on_imagenet() {
    compare(SearchSpace::DartsImagenet, Precision::Fp64, true, [1e-9; 2]);
}

#[test]
fn float32_on_imagenet() {
    compare(SearchSpace::DartsImagenet, Precision::Fp32, false, [1e-4; 2]);
    // With channels last, libtorch's CPU batch norm sums in float32 (in float64 with channels first): the error of
    // running variances over 8 x 112 x 112 values is 2e-5. Over six draws of images, the error of the logits against
    // PyTorch's float64 is 3e-7 to 3e-5 for PyTorch's float32, 2e-5 to 1e-4 for this program, and 9e-7 to 3e-5 for this
    // program with channels first.
    compare(SearchSpace::DartsImagenet, Precision::Fp32, true, [1e-4, 1e-3]);
}

/// A measurement: float32 errors of this program and of PyTorch against PyTorch's float64, for several draws of images.
/// `cargo test --release --test torch -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn float32_errors_against_float64_of_pytorch() {
    for (space, lr) in [2e-5, 0.025]
        .into_iter()
        .flat_map(|lr| [SearchSpace::DartsImagenet, SearchSpace::DartsCifar].map(|space| (space, lr)))
    {
        for seed in 3..9 {
            let folder = tempfile::tempdir().unwrap();
            let mut config = config(space, Precision::Fp32);
            config.weights.lr = lr;
            let (mut evaluation, images, labels) = fixture(&config, seed, folder.path());
            let Some(long) = steps_of_torch(folder.path(), &["float64"]) else { return };
            let short = steps_of_torch(folder.path(), &[]).unwrap();
            let ours = steps(&mut evaluation, &images, &labels);
            config.channels_last = false;
            let (mut evaluation, images, labels) = fixture(&config, seed, folder.path());
            let first = steps(&mut evaluation, &images, &labels);
            for (name, short) in
                [("PyTorch", short), ("this program", ours), ("this program, channels first", first)]
            {
                let [_, losses, weights, logits] = distances(&short, &long);
                println!(
                    "{space:?} rate {lr} images {seed}, {name}: losses {losses:.1e}, weights and statistics {weights:.1e}, \
                     logits {logits:.1e}"
                );
            }
        }
    }
}
