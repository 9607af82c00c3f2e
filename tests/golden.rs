//! Golden files of the published code: some are in tests/golden, all are in ../shared if it exists.

#[path = "common/shared.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod shared;

use drnas_dist::commands::verify::{PLACEMENT, verify};
use drnas_dist::config::Precision;
use drnas_dist::net::placement::Placement;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of a folder, sorted by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Verifies every file and returns their number. Files of other search methods (`methods_*`) are verified by tests/golden_methods.rs.
fn verify_all(folder: &Path) -> usize {
    let of_other_methods =
        |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("methods_"));
    let (others, files): (Vec<_>, Vec<_>) = files(folder).into_iter().partition(of_other_methods);
    for file in others {
        println!("{}: see tests/golden_methods.rs", file.display());
    }
    for file in &files {
        let findings = verify(file, PLACEMENT).unwrap();
        println!("{}\n{findings}", file.display());
        assert!(!findings.0.is_empty() && findings.pass(), "{} differs", file.display());
    }
    files.len()
}

#[test]
fn golden_files_pass() {
    tch::set_num_threads(1);
    assert_eq!(verify_all(&golden_folder()), 7);
}

#[test]
fn all_golden_files_pass() {
    tch::set_num_threads(1);
    let Some(folder) = shared::path("reference/golden") else { return };
    let number = verify_all(&folder);
    assert!(
        number >= 11,
        "expected six supernets, two networks, Dirichlet, schedules and counts, found {number}"
    );
}

/// The gradients of a final network can be compared only in float64 (see `verify::network`).
#[test]
fn final_networks_pass_in_float64_with_their_gradients() {
    tch::set_num_threads(1);
    for name in ["eval_cifar", "eval_imagenet"] {
        let Some(file) = shared::path(&format!("reference/golden/{name}.safetensors")) else { return };
        let findings = verify(&file, Placement { precision: Precision::Fp64, ..PLACEMENT }).unwrap();
        println!("{findings}");
        assert!(findings.pass());
        let gradients = findings.0.iter().find(|finding| finding.kind.starts_with("gradients"));
        assert!(gradients.is_some_and(|finding| finding.count > 100), "{name}: no gradients");
    }
}

/// One line of JSON per file; a file that fails does not prevent the next one from being verified.
#[test]
fn findings_are_written_as_json_for_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let good = golden_folder().join("nb201_stage1.safetensors");
    let (broken, json) = (folder.path().join("broken.safetensors"), folder.path().join("found.jsonl"));
    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(&broken, &bytes[..bytes.len() - 8]).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_drnas-dist"))
        .args(["verify", "--precision", "bf16", "--json"])
        .args([&json, &broken, &good])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let lines: Vec<serde_json::Value> = std::fs::read_to_string(&json)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0]["pass"] == false
            && lines[0]["problem"].is_string()
            && lines[0]["findings"] == serde_json::json!([])
    );
    assert_eq!(
        (&lines[1]["file"], &lines[1]["precision"]),
        (&"nb201_stage1.safetensors".into(), &"bf16".into())
    );
    assert!(lines[1]["pass"] == true && lines[1]["problem"].is_null());
    let logits = &lines[1]["findings"][0];
    assert_eq!(
        (&logits["kind"], &logits["pass"], &logits["allowed"]),
        (&"logits, training".into(), &true.into(), &0.02.into())
    );
    assert!(logits["error"].as_f64().is_some_and(|error| error > 1e-4 && error < 0.02), "{logits}");
}

/// malloc fills new memory with a pattern, so that reads of uninitialised memory give wrong values.
#[test]
fn golden_files_pass_on_uninitialised_memory() {
    let output = Command::new(env!("CARGO_BIN_EXE_drnas-dist"))
        .arg("verify")
        .args(files(&golden_folder()))
        .env("MALLOC_PERTURB_", "128")
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    assert!(stdout.contains("ok     gradients of weights") && !stdout.contains("FAILED"), "{stdout}");
}

#[test]
fn wrong_value_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("darts_cifar_stage1.safetensors");
    let mut bytes = std::fs::read(golden_folder().join("darts_cifar_stage1.safetensors")).unwrap();
    // Changes the last element of the file.
    let at = bytes.len() - 4;
    let value = f32::from_le_bytes(bytes[at..].try_into().unwrap());
    bytes[at..].copy_from_slice(&(value * 1.5 + 0.1).to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_drnas-dist")).arg("verify").arg(&file).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    assert!(stdout.contains("FAILED"), "{stdout}");

    let missing =
        Command::new(env!("CARGO_BIN_EXE_drnas-dist")).args(["verify", "nowhere.json"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
}

/// Verifies the supernets of tests/golden with `placement`; returns the largest error of their logits.
fn verify_supernets(placement: Placement) -> f64 {
    tch::set_num_threads(1);
    let mut logits = 0.0f64;
    for file in files(&golden_folder()).iter().filter(|file| file.to_string_lossy().contains("_stage")) {
        for finding in &verify(file, placement).unwrap().0 {
            assert!(finding.passes(), "{} with {placement:?}: {finding:?}", file.display());
            if finding.kind.starts_with("logits") {
                logits = logits.max(finding.worst.0);
            }
        }
    }
    logits
}

#[test]
fn golden_files_pass_channels_first_and_recomputed() {
    verify_supernets(Placement { channels_last: false, ..PLACEMENT });
    verify_supernets(Placement { checkpoint_cells: true, bucket_bytes: 20_000, ..PLACEMENT });
}

#[test]
fn golden_files_pass_in_bf16() {
    for channels_last in [true, false] {
        let placement = Placement { precision: Precision::Bf16, channels_last, ..PLACEMENT };
        let worst = verify_supernets(placement);
        assert!(worst > 3e-4, "error {worst} is too small for bf16");
    }
}
