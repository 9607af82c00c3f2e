//! The golden files of the published code, when they are there.

use drnas_dist::verify::{Outcome, verify};
use std::path::PathBuf;

/// The folder of golden files: `../shared/reference/golden`, or below `DRNAS_SHARED`.
fn golden() -> Option<PathBuf> {
    let shared = std::env::var_os("DRNAS_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let folder = shared.join("reference/golden");
    if !folder.is_dir() {
        println!("skipped: {} is not there", folder.display());
        return None;
    }
    Some(folder)
}

#[test]
fn golden_files_pass() {
    tch::set_num_threads(1);
    let Some(folder) = golden() else { return };
    let mut compared = 0;
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for file in files {
        let outcome = verify(&file).unwrap();
        println!("{}\n{outcome}", file.display());
        if let Outcome::Compared(findings) = outcome {
            assert!(!findings.is_empty());
            assert!(findings.iter().all(|finding| finding.passes()), "{} differs", file.display());
            compared += 1;
        }
    }
    assert!(compared >= 6, "the four supernets, the Dirichlet, the schedules");
}
