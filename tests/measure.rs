//! `bench` on the CPU: what it measures is trained as a search trains, on any ranks, precision and layout.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

const TINY: &str = "
[model]
init_channels = 12
layers = 3
num_classes = 4
[data]
px = 32
[search]
replicas = 2
global_batch = 8
[weights]
lr = 0.01
[run]
threads = 1
";

/// What `bench` writes, with `more` options, in `folder`; `preload` goes before every library.
fn measured(folder: &Path, more: &[&str], preload: Option<&Path>) -> Value {
    let config = folder.join("tiny.toml");
    std::fs::write(&config, TINY).unwrap();
    let json = folder.join("result.jsonl");
    let mut command = Command::new(env!("CARGO_BIN_EXE_drnas-dist"));
    command.args(["bench", "--warmup", "1", "--steps", "1", "--blocks", "1", "--set", "device=cpu"]);
    command.arg("--config").arg(&config).arg("--json").arg(&json).args(more);
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&json).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn the_same_steps_whatever_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let plain = measured(folder.path(), &["--stage", "2"], None);
    assert_eq!(plain["what"], "supernet, stage 2");
    assert_eq!(plain["images_per_step"], 16);
    // One block of one step.
    let step_ms = plain["step_ms"][0].as_f64().unwrap();
    assert!((plain["images_per_s"].as_f64().unwrap() * step_ms / 16e3 - 1.0).abs() < 1e-9, "{plain}");
    assert!(plain["calls_per_step"].is_null() && plain["card_memory_mib"].is_null());

    // Cells are computed again segment by segment: there have to be some.
    let cut = ["--stage", "2", "--set", "run.bucket_mib=0.001"];
    let kept = measured(folder.path(), &cut, None);
    let again = measured(folder.path(), &[&cut[..], &["--set", "checkpoint_cells=true"]].concat(), None);
    assert_eq!(kept["loss"], again["loss"], "recomputed cells train bit for bit as kept ones");
    let short = measured(folder.path(), &["--stage", "2", "--set", "precision=bf16"], None);
    assert_ne!(plain["loss"], short["loss"]);
    let told = |measured: &Value| [measured["precision"].clone(), measured["checkpoint_cells"].clone()];
    assert_eq!(told(&plain), ["fp32".into(), Value::from(false)]);
    assert_eq!((told(&again), told(&short)), (["fp32".into(), true.into()], ["bf16".into(), false.into()]));
    // Another stage is another network; without architecture steps the warming-up step leaves eta alone.
    let first = measured(folder.path(), &[], None);
    let weights_only = measured(folder.path(), &["--weights-only"], None);
    assert_eq!((&first["images_per_step"], &weights_only["images_per_step"]), (&16.into(), &8.into()));
    assert!(first["loss"] != plain["loss"] && first["loss"] != weights_only["loss"]);
}

/// Most memory that `bench` had, MiB.
#[allow(clippy::zombie_processes, reason = "wait4 is a wait, and tells the memory")]
fn peak_mib(config: &Path, more: &[&str]) -> f64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drnas-dist"));
    command.args(["bench", "--warmup", "1", "--steps", "1", "--blocks", "1", "--weights-only"]);
    command.arg("--config").arg(config).args(["--set", "device=cpu"]).args(more);
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut status = 0;
    // SAFETY: a struct of numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a child of this process that nobody else waits for; live out pointers.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert!(waited == child.id() as i32 && status == 0, "{more:?}: {status}");
    usage.ru_maxrss as f64 / 1024.0
}

#[test]
fn recomputed_cells_take_less_memory() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("deep.toml");
    std::fs::write(&config, TINY).unwrap();
    let sets = ["model.layers=12", "data.px=64", "search.replicas=1", "search.global_batch=64"];
    let sets: Vec<&str> =
        sets.iter().chain(&["run.bucket_mib=0.001"]).flat_map(|set| ["--set", set]).collect();
    let kept = peak_mib(&config, &sets);
    let again = peak_mib(&config, &[&sets[..], &["--set", "checkpoint_cells=true"]].concat());
    // 400 and 255, of which the program itself is 170.
    assert!(again < 0.85 * kept, "{again} MiB, {kept} MiB with all activations kept");
}

#[test]
fn calls_of_the_runtime_are_counted_and_networks_measured() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libgpu-count.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/gpu/count.c");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let built = Command::new(compiler)
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(built.unwrap().success());
    let result = measured(folder.path(), &["--weights-only"], Some(&library));
    assert_eq!(result["images_per_step"], 8);
    let calls = result["calls_per_step"].as_object().unwrap();
    assert!(calls.len() > 5 && calls["cudaStreamSynchronize"] == 0.0, "{calls:?}");

    std::fs::write(folder.path().join("e.toml"), "[model]\ninit_channels = 8\nlayers = 3\nnum_classes = 4")
        .unwrap();
    let config = folder.path().join("e.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_drnas-dist"))
        .args(["bench", "--genotype", "DrNAS_imagenet", "--warmup", "1", "--steps", "1", "--blocks", "1"])
        .args(["--set", "device=cpu", "--set", "data.px=32", "--set", "evaluate.auxiliary_weight=0"])
        .args(["--set", "evaluate.replicas=1", "--set", "evaluate.global_batch=4", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.starts_with("network: fp32, channels last"), "{output:?}");
}

#[test]
fn wrong_words_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tiny.toml");
    std::fs::write(&config, TINY).unwrap();
    for (more, code, expected) in
        [(["--stage", "3"], 1, "--stage 3 of 2 stages"), (["--steps", "0"], 2, "a whole number from 1 on")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_drnas-dist"))
            .args(["bench", "--set", "device=cpu", "--config"])
            .arg(&config)
            .args(more)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(expected), "{said}");
    }
}
