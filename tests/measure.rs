//! `bench` on the CPU: it measures real training steps, in any precision and layout. Also tests the tools of launch/gpu
//! that count, record and time GPU work, as far as possible without a GPU.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

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

/// Runs `bench` in `folder` with `more` options and `variables` in its environment; returns the record that it writes.
fn measured(folder: &Path, more: &[&str], variables: &[(&str, &Path)]) -> Value {
    let config = folder.join("tiny.toml");
    std::fs::write(&config, TINY).unwrap();
    let json = folder.join("result.jsonl");
    let mut command = Command::new(env!("CARGO_BIN_EXE_drnas-dist"));
    command.args(["bench", "--warmup", "1", "--steps", "1", "--blocks", "1", "--set", "device=cpu"]);
    command.arg("--config").arg(&config).arg("--json").arg(&json).args(more);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&json).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn recomputed_cells_train_identically() {
    let folder = tempfile::tempdir().unwrap();
    let plain = measured(folder.path(), &["--stage", "2"], &[]);
    assert_eq!(plain["what"], "supernet, stage 2");
    assert_eq!(plain["images_per_step"], 16);
    // One block of one step.
    let step_ms = plain["step_ms"][0].as_f64().unwrap();
    assert!((plain["images_per_s"].as_f64().unwrap() * step_ms / 16e3 - 1.0).abs() < 1e-9, "{plain}");
    assert!(plain["calls_per_step"].is_null() && plain["card_memory_mib"].is_null());

    // Cells are recomputed by segment, so there must be several segments.
    let cut = ["--stage", "2", "--set", "run.bucket_mib=0.001"];
    let kept = measured(folder.path(), &cut, &[]);
    let again = measured(folder.path(), &[&cut[..], &["--set", "checkpoint_cells=true"]].concat(), &[]);
    assert_eq!(kept["loss"], again["loss"], "recomputed cells change the loss");
    let short = measured(folder.path(), &["--stage", "2", "--set", "precision=bf16"], &[]);
    assert_ne!(plain["loss"], short["loss"]);
    let settings = |result: &Value| [result["precision"].clone(), result["checkpoint_cells"].clone()];
    assert_eq!(settings(&plain), [Value::from("fp32"), false.into()]);
    assert_eq!(settings(&again), [Value::from("fp32"), true.into()]);
    assert_eq!(settings(&short), [Value::from("bf16"), false.into()]);
    // Each stage has its own network; without architecture steps the warm-up step does not change eta.
    let first = measured(folder.path(), &[], &[]);
    let weights_only = measured(folder.path(), &["--weights-only"], &[]);
    assert_eq!((&first["images_per_step"], &weights_only["images_per_step"]), (&16.into(), &8.into()));
    assert!(first["loss"] != plain["loss"] && first["loss"] != weights_only["loss"]);
}

/// Peak memory of `bench`, MiB.
#[allow(clippy::zombie_processes, reason = "wait4 waits for the child and returns its memory usage")]
fn peak_mib(config: &Path, more: &[&str]) -> f64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drnas-dist"));
    command.args(["bench", "--warmup", "1", "--steps", "1", "--blocks", "1", "--weights-only"]);
    command.arg("--config").arg(config).args(["--set", "device=cpu"]).args(more);
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut status = 0;
    // SAFETY: a struct of integers, for which all zeros is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: our child, which is waited for only here; valid out pointers.
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
    // Measured: 400 and 255 MiB, of which the program itself takes 170.
    assert!(again < 0.85 * kept, "{again} MiB, {kept} MiB with all activations kept");
}

/// The path of a file of this package.
fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs the C compiler in `folder`.
fn compile(folder: &Path, arguments: &[&str]) {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = Command::new(compiler);
    command.current_dir(folder).args(["-O2", "-Wall", "-Wextra", "-Werror"]).args(arguments);
    let output = command.output().expect("a C compiler");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Compiles launch/gpu/count.c as a library in `folder`.
fn counter(folder: &Path) -> PathBuf {
    let library = folder.join("libcount.so");
    let file = source("launch/gpu/count.c");
    compile(folder, &["-shared", "-fPIC", "-o", library.to_str().unwrap(), file.to_str().unwrap()]);
    library
}

#[test]
fn runtime_calls_are_counted_and_networks_measured() {
    let folder = tempfile::tempdir().unwrap();
    let library = counter(folder.path());
    // libtorch's CUPTI refuses to work without a driver.
    let variables: [(&str, &Path); 2] = [("LD_PRELOAD", &library), ("DRNAS_COUNT_DRIVER", Path::new("1"))];
    let result = measured(folder.path(), &["--weights-only"], &variables);
    assert_eq!(result["images_per_step"], 8);
    let calls = result["calls_per_step"].as_object().unwrap();
    let launches = ["__cudaLaunchKernel", "cudaLaunchKernel", "cudaLaunchKernelExC", "cudaGraphLaunch"];
    let others = ["cudaMemsetAsync", "cudaMemcpyAsync, host to device", "cudaStreamSynchronize", "cudaFree"];
    for name in launches.iter().chain(&others) {
        assert_eq!(calls.get(*name), Some(&0.0.into()), "{name}: {calls:?}");
    }

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
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.starts_with("network: fp32, channels last"), "{output:?}");
}

#[test]
fn every_call_is_counted_and_forwarded() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let library = counter(here);
    let double = source("tests/double/counted.c");
    let double = double.to_str().unwrap();
    // Versioned symbols as in the real library: libtorch_cuda refers to cudaMalloc@libcudart.so.13 and so on.
    std::fs::write(here.join("versions"), "libcudart.so.13 { global: *; };").unwrap();
    let named = |name: &str| format!("-Wl,-soname,{name}");
    let (runtime, cupti) = ("libcudart.so.13", "libcupti.so.13");
    let shared = ["-shared", "-fPIC", double, "-o"];
    compile(
        here,
        &[&shared[..], &[runtime, "-DRUNTIME", &named(runtime), "-Wl,--version-script=versions"]].concat(),
    );
    compile(here, &[&shared[..], &[cupti, "-DCUPTI", &named(cupti)]].concat());
    compile(here, &[double, "-o", "program", "./libcudart.so.13"]);

    let run = |variables: &[(&str, &str)]| {
        let mut command = Command::new(here.join("program"));
        let output = command.env("LD_LIBRARY_PATH", here).envs(variables.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let [returned, counted] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        let driver = counted.contains("driver: kernel launches");
        let counted: BTreeMap<String, u64> = counted
            .lines()
            .filter_map(|line| line.rsplit_once(" = "))
            .map(|(name, count)| (name.to_string(), count.parse().unwrap()))
            .filter(|(_, count)| *count > 0)
            .collect();
        (returned, driver, counted)
    };
    let (returned, _, counted) = run(&[]);
    assert!(returned.lines().count() == 12 && counted.is_empty(), "{returned} {counted:?}");
    let preload = ("LD_PRELOAD", library.to_str().unwrap());
    let of_the_runtime = [
        ("__cudaLaunchKernel", 3),
        ("cudaDeviceSynchronize", 1),
        // Called although no library defines it: returns 302, cudaErrorSharedObjectSymbolNotFound.
        ("cudaFreeHost", 1),
        ("missing", 302),
        ("cudaLaunchKernel", 1),
        ("cudaLaunchKernelExC", 2),
        ("cudaMemcpyAsync, device to host", 1),
        ("cudaMemcpyAsync, host to device", 1),
        ("cudaMemcpyAsync, other", 1),
        ("cudaMemsetAsync", 1),
        ("cudaStreamWaitEvent", 1),
    ];
    let of_the_driver = [
        ("driver: copies, device to host", 1),
        ("driver: copies, host to device", 1),
        ("driver: copies, other", 1),
        ("driver: cuStreamSynchronize", 1),
        ("driver: graph launches", 1),
        ("driver: kernel launches", 3),
        ("driver: memory sets", 1),
    ];
    let expected = |parts: &[&[(&str, u64)]]| -> BTreeMap<String, u64> {
        parts.concat().into_iter().map(|(name, count)| (name.to_string(), count)).collect()
    };
    assert_eq!(run(&[preload]), (returned.clone(), false, expected(&[&of_the_runtime])));
    let driver = ("DRNAS_COUNT_DRIVER", "1");
    assert_eq!(
        run(&[preload, driver]),
        (returned.clone(), true, expected(&[&of_the_runtime, &of_the_driver]))
    );
    let refused = ("DOUBLE_NO_SUBSCRIBER", "1");
    assert_eq!(run(&[preload, driver, refused]), (returned, false, expected(&[&of_the_runtime])));
}

/// Compiles launch/gpu/record.cpp as a library in `folder`; `None`, with the reason printed, if that is not possible.
fn recorder(folder: &Path) -> Option<PathBuf> {
    let torch = std::env::var_os("LIBTORCH").map_or_else(|| source("native/torch"), PathBuf::from);
    if !torch.join("include/ATen/record_function.h").exists() {
        println!("skipped: {} has no headers", torch.display());
        return None;
    }
    let library = folder.join("librecord.so");
    let start = Instant::now();
    let output = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".into()))
        .args(["-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-isystem"])
        .args([&torch.join("include"), &source("launch/gpu/record.cpp"), Path::new("-o"), &library])
        .arg("-L")
        .arg(torch.join("lib"))
        .args(["-ltorch_cpu", "-lc10"])
        .output();
    let Ok(output) = output else {
        println!("skipped: no C++ compiler");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("record.cpp: compiled in {:.1} s", start.elapsed().as_secs_f64());
    Some(library)
}

#[test]
fn convolutions_are_recorded_and_probed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(library) = recorder(folder.path()) else { return };
    let record = folder.path().join("record.jsonl");
    let variables: [(&str, &Path); 2] = [("LD_PRELOAD", &library), ("DRNAS_RECORD", &record)];
    let idle = measured(folder.path(), &[], &variables[..1]);
    assert!(!record.exists());
    let result = measured(folder.path(), &[], &variables);
    assert_eq!(result["loss"], idle["loss"]);

    let text = std::fs::read_to_string(&record).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let totals = lines.pop().unwrap();
    let operators = totals["operators"].as_object().unwrap();
    let counts: Vec<u64> = serde_json::from_value(totals["convolutions"].clone()).unwrap();
    assert!(counts.len() == lines.len() && lines.len() > 20, "{} {}", counts.len(), lines.len());
    // One warm-up step, one measured, two traced; each for two replicas.
    let (steps, replicas) = (4, 2);
    assert!(counts.iter().all(|count| count % (steps * replicas) == 0), "{counts:?}");
    for (backward, name) in [(false, "aten::convolution"), (true, "aten::convolution_backward")] {
        let these = lines.iter().zip(&counts).filter(|(line, _)| line["backward"] == backward);
        assert_eq!(operators[name], these.map(|(_, count)| count).sum::<u64>(), "{name}");
    }
    assert_eq!(operators["aten::conv2d"], operators["aten::convolution"]);
    assert!(operators["aten::batch_norm"].as_u64().unwrap() > 8 * steps * replicas);
    // The first layer: forward in weight and architecture steps, backward only in weight steps.
    let stem: Vec<(&Value, &u64)> =
        lines.iter().zip(&counts).filter(|(line, _)| line["input"] == json!([4, 3, 32, 32])).collect();
    let [(forward, &forward_count), (backward, &backward_count)] = stem[..] else { panic!("{stem:?}") };
    assert_eq!((forward_count, backward_count), (2 * steps * replicas, steps * replicas));
    let mut expected = json!({
        "process": totals["process"], "convolution": 0, "backward": false, "input": [4, 3, 32, 32],
        "weight": [18, 3, 3, 3], "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "transposed": false,
        "groups": 1, "dtype": "Float", "channels_last": true, "contiguous": false, "device": "cpu",
    });
    assert_eq!(forward, &expected);
    expected["convolution"] = backward["convolution"].clone();
    expected["backward"] = true.into();
    expected["gradients"] = json!([false, true]);
    assert_eq!(backward, &expected);
    assert_probed(folder.path(), &record, lines.iter().filter(|line| line["backward"] == false).count());
}

/// Runs launch/gpu/probe.py on `record` with `num_shapes` forward convolutions and on the record of a crashed process.
fn assert_probed(folder: &Path, record: &Path, num_shapes: usize) {
    let line = |number: u64, weight: [i64; 4], groups: i64| {
        json!({
            "process": 1, "convolution": number, "backward": false, "input": [2, 6, 5, 5], "weight": weight,
            "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "transposed": false, "groups": groups,
        })
    };
    // A grouped 1x1 convolution, an invalid one, and a truncated line.
    let crashed = folder.join("crashed.jsonl");
    let (good, bad) = (line(0, [9, 2, 1, 1], 3), line(1, [4, 5, 1, 1], 1));
    std::fs::write(&crashed, format!("{good}\n{bad}\n{{\"process\": 1, \"conv")).unwrap();
    let json = folder.join("probe.json");
    let run = |seconds: &str| {
        let mut command = Command::new(source("tests/python/torch.sh"));
        command.arg(source("launch/gpu/probe.py")).args([
            "--device",
            "cpu",
            "--steps",
            "4",
            "--seconds",
            seconds,
        ]);
        let output = command.arg("--json").arg(&json).args([record, &crashed]).output().unwrap();
        if output.status.code() == Some(77) {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
            return None;
        }
        assert!(output.status.success(), "{output:?}");
        let result: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
        Some((String::from_utf8(output.stdout).unwrap(), result))
    };
    let Some((printed, result)) = run("100") else { return };
    let shapes = result["shapes"].as_array().unwrap();
    assert!(shapes.len() == num_shapes + 2 && result["stopped"].is_null(), "{printed}");
    let named = |words: &str| {
        shapes.iter().find(|entry| entry["words"] == words).unwrap_or_else(|| panic!("{words}: {printed}"))
    };
    let stem = named("4x3x32x32 * 18x3x3x3 stride 2 padding 1");
    assert_eq!(stem["per_step"][record.to_str().unwrap()], 4.0);
    let grouped = named("2x6x5x5 * 9x2x1x1 groups 3");
    let cases = grouped["cases"].as_array().unwrap();
    // Two precisions in two layouts with two methods each; float64 in two layouts.
    assert_eq!(cases.len(), 10, "{grouped}");
    for case in cases {
        assert!(case["error"].is_null(), "{case}");
        assert_eq!(case["precision"] == "fp64", case["backward_ms"].is_null(), "{case}");
        let difference = if case["precision"] == "fp32" { 1e-5 } else { 2e-2 };
        assert_eq!(
            case["method"] == "bmm",
            case["difference"].as_f64().is_some_and(|it| it < difference),
            "{case}"
        );
    }
    for entry in shapes {
        let failed =
            entry["cases"].as_array().unwrap().iter().filter(|case| !case["error"].is_null()).count();
        assert_eq!(failed, if entry["words"] == "2x6x5x5 * 4x5x1x1" { 6 } else { 0 }, "{entry}");
        assert_eq!(entry["missing"], 0);
    }
    let whole = num_shapes + 1;
    for words in [
        &*format!("{whole} of {} convolutions ran in both precisions and layouts", num_shapes + 2),
        "of 1 grouped 1x1 shapes",
        "failures: 6",
        "2x6x5x5 * 4x5x1x1: Given groups=1",
        "; fp64 last convolution; fp64 first convolution)",
    ] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
    // Without time, all shapes are listed as not run.
    let (printed, result) = run("0").expect("PyTorch is available");
    assert_eq!(result["stopped"], "time limit reached");
    assert!(printed.contains(&format!("only, {} not run in all precisions", num_shapes + 2)), "{printed}");
}

#[test]
fn invalid_options_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tiny.toml");
    std::fs::write(&config, TINY).unwrap();
    for (more, code, expected) in [
        (["--stage", "3"], 1, "--stage must be in 1..=2, found 3"),
        (["--steps", "0"], 2, "expected an integer of at least 1"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_drnas-dist"))
            .args(["bench", "--set", "device=cpu", "--config"])
            .arg(&config)
            .args(more)
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && printed.contains(expected), "{printed}");
    }
}
