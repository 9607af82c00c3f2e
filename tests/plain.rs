//! The plain PyTorch networks of benches/plain, the baseline of our benchmarks: they match the published code, and
//! their timings have the format of `bench`. Uses the PyTorch of native/, see `tests/python/torch.sh`.

#[path = "common/torch.rs"]
mod torch;

use serde_json::Value;
use std::path::Path;
use torch::torch;

/// Runs a script of benches/plain, which must succeed, and returns its output; `None` if PyTorch is not available.
fn run(script: &str, arguments: &[&str]) -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/plain").join(script);
    let arguments = arguments.iter().map(Path::new);
    let output = torch(&[script.as_path()].into_iter().chain(arguments).collect::<Vec<_>>())?;
    let [printed, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{}: {printed}{errors}", script.display());
    print!("{printed}");
    Some(printed.into_owned())
}

/// Runs check.py on all golden files of tests/golden.
fn check(options: &[&str]) {
    let names =
        ["darts_imagenet_stage1", "darts_imagenet_stage2", "darts_cifar_stage1", "nb201_stage1", "dirichlet"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let paths = names.map(|name| folder.join(format!("{name}.safetensors")).display().to_string());
    let arguments: Vec<&str> = options.iter().copied().chain(paths.iter().map(String::as_str)).collect();
    let Some(printed) = run("check.py", &arguments) else { return };
    assert_eq!(printed.matches(": ok: ").count(), names.len(), "{printed}");
}

#[test]
fn golden_files_in_float32() {
    check(&[]);
}

#[test]
fn golden_files_in_float64() {
    check(&["--float64"]);
}

#[test]
fn golden_files_channels_last() {
    check(&["--channels-last"]);
}

/// Runs time_steps.py with `options` on small networks and returns the record that it writes.
fn measured(options: &[&str]) -> Option<Value> {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("result.jsonl").display().to_string();
    let tiny =
        "--channels 12 --layers 3 --classes 4 --px 32 --batch 4 --threads 1 --warmup 1 --steps 1 --blocks 2";
    let arguments: Vec<&str> =
        tiny.split(' ').chain(["--json", &json]).chain(options.iter().copied()).collect();
    run("time_steps.py", &arguments)?;
    let text = std::fs::read_to_string(&json).unwrap();
    Some(serde_json::from_str(text.trim_end()).unwrap())
}

#[test]
fn steps_are_timed() {
    let Some(plain) = measured(&["--space", "cifar", "--stage", "2"]) else { return };
    assert_eq!(plain["images_per_step"], 8);
    assert!(plain["card_memory_mib"].is_null(), "{plain}");
    let step_ms: Vec<f64> = serde_json::from_value(plain["step_ms"].clone()).unwrap();
    assert_eq!(step_ms.len(), 2);
    // The slower of the two blocks counts, as in `bench`.
    let slower = step_ms[0].max(step_ms[1]);
    assert!((plain["images_per_s"].as_f64().unwrap() * slower / 8e3 - 1.0).abs() < 1e-9, "{plain}");

    // The omitted gradients are never used.
    let needed = measured(&["--space", "cifar", "--stage", "2", "--needed-gradients-only"]).unwrap();
    assert_eq!(plain["loss"], needed["loss"]);

    let weights = measured(&["--weights-only", "--channels-last", "--precision", "bf16"]).unwrap();
    assert_eq!(weights["images_per_step"], 4);
    assert_eq!(
        [&weights["precision"], &weights["channels_last"]],
        [&Value::from("bf16"), &Value::from(true)]
    );
}
