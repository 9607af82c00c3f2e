//! The final network beside PyTorch: an exported network loads there and computes the same, and 20 training steps from one
//! state end in the same weights. PyTorch is the one in native/, see `tests/python/torch.sh`.

use drnas_dist::comm::Solo;
use drnas_dist::config::{DecayKind, EvaluateConfig, Precision, Settings};
use drnas_dist::eval::Evaluation;
use drnas_dist::export::export;
use drnas_dist::random::{Purpose, stream};
use drnas_dist::space::SearchSpace;
use drnas_dist::space::genotype::Genotype;
use rand::RngExt;
use std::path::Path;
use std::process::Command;
use tch::{Device, Kind, Tensor};

/// Every operation in both kinds of cells, some of them twice from one state, one node left out of an output.
const GENOTYPE: &str = "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('max_pool_3x3', 0), \
    ('skip_connect', 1), ('dil_conv_5x5', 2), ('sep_conv_5x5', 1), ('dil_conv_3x3', 2), ('avg_pool_3x3', 4)], \
    normal_concat=[2, 4, 5], reduce=[('skip_connect', 0), ('skip_connect', 1), ('sep_conv_5x5', 1), ('dil_conv_3x3', 0), \
    ('max_pool_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_5x5', 1), ('sep_conv_3x3', 2)], reduce_concat=range(2, 6))";

const STEPS: usize = 20;
/// Batches, which the steps take in turn.
const BATCHES: i64 = 4;
const STEPS_PER_EPOCH: u64 = 4;

/// The PyTorch of native/ as a command; `None`, with the reason printed, where it does not start.
fn torch(arguments: &[&Path]) -> Option<std::process::Output> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let output = Command::new(here.join("torch.sh")).args(arguments).output().expect("bash is there");
    if output.status.code() == Some(77) {
        println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(output)
}

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
    // Gradients are of length 5 to 20 here: some are clipped, some are not.
    config.evaluate.grad_clip = 10.0;
    // The published rate. In float32 a small one: a rounding flips a ReLU in every other step, that moves the weights by the
    // rate times one pixel's gradient, and so on: at the published rate any two float32 programs are apart in the third
    // digit after these steps.
    config.weights.lr = if precision == Precision::Fp64 { 0.025 } else { 1e-4 };
    config.weights.warmup_epochs = 2;
    config.check().unwrap();
    config
}

/// Relative error, Frobenius, in float64.
fn error(ours: &Tensor, theirs: &Tensor) -> f64 {
    let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
    assert_eq!(ours.size(), theirs.size());
    (ours - &theirs).norm().double_value(&[]) / theirs.norm().double_value(&[]).max(1e-30)
}

fn compare(space: SearchSpace, precision: Precision, tolerance: f64) {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let config = config(space, precision);
    let genotype = Genotype::read(GENOTYPE).unwrap();
    let (kind, px, n) = (precision.weights(), config.data.px, config.evaluate.global_batch);
    let mut random = stream(3, Purpose::Demo, &[]);
    // Coarse pictures: of fine noise the heads see the same mean in every image, and a batch norm over a few nearly equal
    // values makes rounding large.
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
    let mut evaluation = Evaluation::new(&config, &genotype, STEPS_PER_EPOCH, 0..1, Device::Cpu);
    // Statistics as they are after some steps: with the initial ones activations fade and the logits are the last bias.
    for pass in 0..12 {
        tch::no_grad(|| drop(evaluation.net().forward(&images.get(pass % BATCHES), None, 0)));
    }
    let mut exported = evaluation.net().params.export(|bucket| &bucket.weights);
    exported.extend(evaluation.net().params.export_running(0));
    export(&config, &genotype, &exported, "a test".into(), &path("export")).unwrap();

    Tensor::write_safetensors(&[("images", &images), ("labels", &labels)], path("batches.safetensors"))
        .unwrap();
    let lr: Vec<f64> = (0..STEPS as u64).map(|step| evaluation.lr(step / STEPS_PER_EPOCH)).collect();
    let settings = serde_json::json!({
        "momentum": config.weights.momentum, "weight_decay": config.weights.weight_decay,
        "grad_clip": config.evaluate.grad_clip, "label_smoothing": config.evaluate.label_smoothing,
        "auxiliary_weight": config.evaluate.auxiliary_weight, "lr": lr,
    });
    std::fs::write(path("settings.json"), settings.to_string()).unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/steps.py");
    let Some(output) = torch(&[&script, folder.path()]) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: std::collections::BTreeMap<String, Tensor> =
        Tensor::read_safetensors(path("torch.safetensors")).unwrap().into_iter().collect();
    let counted: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path("torch.json")).unwrap()).unwrap();
    assert_eq!(counted["parameters"], evaluation.net().num_parameters());
    assert_eq!(counted["multiply_adds"], evaluation.net().multiply_adds());

    let logits = |evaluation: &Evaluation| tch::no_grad(|| evaluation.net().logits(&images.get(0), 0));
    let before = error(&logits(&evaluation), &theirs["logits.before"]);
    println!("{space:?} {precision}: exported logits differ by {before:.1e}");
    assert!(before < 1e-5_f64.min(tolerance), "{before}");

    let mut losses = Vec::new();
    for step in 0..STEPS as i64 {
        let batch = |_: &mut _, _: &mut _| Ok((images.get(step % BATCHES), labels.get(step % BATCHES)));
        let outcome = evaluation.train_on(batch, &Solo).unwrap();
        losses.push(outcome.weights[0].double_value(&[0]));
    }
    let losses = error(&Tensor::from_slice(&losses), &theirs["losses"]);
    let mut weights = evaluation.net().params.export(|bucket| &bucket.weights);
    weights.extend(evaluation.net().params.export_running(0));
    let of_torch: Vec<&String> = theirs.keys().filter(|name| name.starts_with("after/")).collect();
    assert_eq!(weights.len(), of_torch.len(), "a tensor is not compared");
    let all = |name: &dyn Fn(&str) -> Tensor| {
        Tensor::cat(
            &weights.keys().map(|key| name(key).to_kind(Kind::Double).flatten(0, -1)).collect::<Vec<_>>(),
            0,
        )
    };
    let ours = all(&|key| weights[key].shallow_clone());
    let weights = error(&ours, &all(&|key| theirs[&format!("after/{key}")].shallow_clone()));
    let after = error(&logits(&evaluation), &theirs["logits.after"]);
    println!(
        "after {STEPS} steps losses differ by {losses:.1e}, weights and statistics by {weights:.1e}, logits by {after:.1e}"
    );
    for found in [losses, weights, after] {
        assert!(found < tolerance, "{found}");
    }
}

#[test]
fn float64_on_cifar() {
    compare(SearchSpace::DartsCifar, Precision::Fp64, 1e-9);
}

#[test]
fn float32_on_cifar() {
    compare(SearchSpace::DartsCifar, Precision::Fp32, 1e-4);
}

#[test]
fn float64_on_imagenet() {
    compare(SearchSpace::DartsImagenet, Precision::Fp64, 1e-9);
}

#[test]
fn float32_on_imagenet() {
    compare(SearchSpace::DartsImagenet, Precision::Fp32, 1e-4);
}
