//! Golden files of the published code: some are in tests/golden, all in ../shared when it is there.

use drnas_dist::net::placement::Placement;
use drnas_dist::precision::Precision;
use drnas_dist::verify::{PLACEMENT, verify};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of a folder, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn own() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Verifies every file; how many there are.
fn verified(folder: &Path) -> usize {
    let files = files(folder);
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
    assert_eq!(verified(&own()), 7);
}

#[test]
fn all_golden_files_pass() {
    tch::set_num_threads(1);
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = std::env::var_os("DRNAS_SHARED").map_or_else(here, PathBuf::from).join("reference/golden");
    if !folder.is_dir() {
        println!("skipped: {} is not there", folder.display());
        return;
    }
    assert!(verified(&folder) >= 11, "six supernets, two networks, the Dirichlet, schedules, counts");
}

/// Memory is filled with rubbish as it is handed out: what reads more than was written gives NaN.
#[test]
fn the_program_passes_on_dirty_memory() {
    let output = Command::new(env!("CARGO_BIN_EXE_drnas-dist"))
        .arg("verify")
        .args(files(&own()))
        .env("MALLOC_PERTURB_", "128")
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("ok     gradients of weights") && !said.contains("FAILED"), "{said}");
}

#[test]
fn a_wrong_figure_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("darts_cifar_stage1.safetensors");
    let mut bytes = std::fs::read(own().join("darts_cifar_stage1.safetensors")).unwrap();
    // The last tensor of the file, a little off.
    let at = bytes.len() - 4;
    let value = f32::from_le_bytes(bytes[at..].try_into().unwrap());
    bytes[at..].copy_from_slice(&(value * 1.5 + 0.1).to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_drnas-dist")).arg("verify").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("FAILED"), "{said}");

    let missing =
        Command::new(env!("CARGO_BIN_EXE_drnas-dist")).args(["verify", "nowhere.json"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
}

/// The supernets of `own()` as `placement` computes them; the largest error of their logits.
fn supernets_pass(placement: Placement) -> f64 {
    tch::set_num_threads(1);
    let mut logits = 0.0f64;
    for file in files(&own()).iter().filter(|file| file.to_string_lossy().contains("_stage")) {
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
    supernets_pass(Placement { channels_last: false, ..PLACEMENT });
    supernets_pass(Placement { checkpoint_cells: true, bucket_bytes: 20_000, ..PLACEMENT });
}

#[test]
fn golden_files_pass_in_bf16() {
    for channels_last in [true, false] {
        let placement = Placement { precision: Precision::Bf16, channels_last, ..PLACEMENT };
        let worst = supernets_pass(placement);
        assert!(worst > 3e-4, "{worst}: this is not bf16");
    }
}
