//! Golden files of the published code of other search methods than DrNAS, in ../shared if it exists.

#[path = "common/shared.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod shared;

use drnas_dist::commands::verify::{Findings, PLACEMENT, verify};
use drnas_dist::config::Precision;
use drnas_dist::net::placement::Placement;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FP64: Placement = Placement { precision: Precision::Fp64, ..PLACEMENT };

/// The files that this program reproduces, with the number of tensors compared, so that none is left out unnoticed.
const FILES: [(&str, usize); 20] = [
    ("methods_darts_cifar.safetensors", 1281),
    ("methods_darts_nb201.safetensors", 156),
    ("methods_dsnas_darts.safetensors", 180),
    ("methods_dsnas_nb201.safetensors", 7),
    ("methods_gdas_darts.safetensors", 9),
    ("methods_gdas_nb201.safetensors", 47),
    ("methods_genotypes.json", 24),
    ("methods_genotypes_published.json", 26),
    ("methods_mixing.safetensors", 35),
    ("methods_net_darts.safetensors", 548),
    ("methods_net_nb201.safetensors", 141),
    ("methods_pcdarts_cifar.safetensors", 1275),
    ("methods_pcdarts_imagenet.safetensors", 1286),
    ("methods_pcdarts_nb201.safetensors", 147),
    ("methods_schedules.json", 12),
    ("methods_sdarts_darts.safetensors", 18),
    ("methods_sdarts_nb201.safetensors", 17),
    ("methods_snas_darts.safetensors", 9),
    ("methods_snas_nb201.safetensors", 5),
    ("methods_steps_nb201.safetensors", 63),
];

/// Returns the folder of the golden files, if it exists.
fn golden() -> Option<PathBuf> {
    tch::set_num_threads(1);
    shared::path("reference/golden")
}

/// Verifies all files that this program reproduces and returns the findings.
fn verify_all(folder: &Path, placement: Placement) -> Vec<Findings> {
    let mut all = Vec::new();
    for (name, number) in FILES {
        let findings = verify(&folder.join(name), placement).unwrap();
        println!("{name}\n{findings}");
        assert!(findings.pass(), "{name} differs");
        let compared: usize = findings.0.iter().map(|finding| finding.count).sum();
        assert_eq!(compared, number, "{name}: number of tensors compared");
        all.push(findings);
    }
    all
}

#[test]
fn golden_files_pass_in_float32() {
    let Some(folder) = golden() else { return };
    verify_all(&folder, PLACEMENT);
    let other = Placement { channels_last: false, checkpoint_cells: true, bucket_bytes: 20_000, ..PLACEMENT };
    verify_all(&folder, other);
}

/// Both programs compute in float64; what the files hold as float32 (weights and their gradients) limits the agreement.
#[test]
fn golden_files_agree_in_float64() {
    let Some(folder) = golden() else { return };
    for finding in verify_all(&folder, FP64).iter().flat_map(|findings| &findings.0) {
        // The weights move by less than 1 %.
        let limit = match finding.kind {
            "movement of weights" => 1e-4,
            "gradients of weights" | "running statistics" => 2e-7,
            _ => 1e-12,
        };
        assert!(finding.worst.0 < limit, "{finding}");
    }
}

#[test]
fn methods_that_do_not_exist_are_named() {
    let Some(folder) = golden() else { return };
    for (name, method) in [
        ("methods_enas_nb201", "enas"),
        ("methods_enas_micro", "enas"),
        ("methods_dartspt_nb201", "dartspt"),
        ("methods_dartspt_darts", "dartspt"),
    ] {
        let error = verify(&folder.join(format!("{name}.safetensors")), PLACEMENT).unwrap_err().to_string();
        assert!(error.ends_with(&format!("kind {method}: no method of this program yet")), "{error}");
    }
}

/// A copy of a golden file, under another name, beside the files of weights.
struct Copy {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Copy {
    fn new(golden: &Path, name: &str) -> Copy {
        let folder = tempfile::tempdir().unwrap();
        for weights in ["methods_net_nb201.safetensors", "methods_net_darts.safetensors"] {
            std::fs::copy(golden.join(weights), folder.path().join(weights)).unwrap();
        }
        Copy { folder, bytes: std::fs::read(golden.join(name)).unwrap() }
    }

    /// Returns the names of the tensors, one for each group such as `grad/`.
    fn names(&self) -> Vec<String> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let group = |name: &str| name.split_once('/').map_or(name, |(group, _)| group).to_string();
        let one_each: BTreeMap<String, String> =
            tensors.names().iter().map(|name| (group(name), name.to_string())).collect();
        one_each.into_values().collect()
    }

    /// Returns whether `verify` notices that the last element of a tensor is wrong.
    fn notices(&self, name: &str) -> bool {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let size = tensor.dtype().bitsize() / 8;
        let end = tensor.data().as_ptr_range().end as usize - self.bytes.as_ptr() as usize;
        let mut bytes = self.bytes.clone();
        let last = &mut bytes[end - size..end];
        match tensor.dtype() {
            safetensors::Dtype::F64 => {
                let value = f64::from_le_bytes((&*last).try_into().unwrap());
                last.copy_from_slice(&(0.3 - value).to_le_bytes());
            }
            safetensors::Dtype::F32 => {
                let value = f32::from_le_bytes((&*last).try_into().unwrap());
                last.copy_from_slice(&(0.3 - value).to_le_bytes());
            }
            _ => last[0] ^= 1,
        }
        let file = self.folder.path().join("copy.safetensors");
        std::fs::write(&file, bytes).unwrap();
        verify(&file, PLACEMENT).map_or(true, |findings| !findings.pass())
    }
}

/// Changes one tensor at a time: whatever is not noticed is neither used nor compared.
#[test]
fn wrong_values_are_noticed() {
    let Some(folder) = golden() else { return };
    for (name, skipped) in [
        ("methods_mixing", &[][..]),
        ("methods_darts_nb201", &[]),
        ("methods_snas_nb201", &[]),
        ("methods_gdas_nb201", &[]),
        ("methods_gdas_darts", &[]),
        ("methods_dsnas_nb201", &[]),
        ("methods_dsnas_darts", &[]),
        ("methods_pcdarts_nb201", &[]),
        ("methods_sdarts_nb201", &[]),
        // The other loops are compared by the same lines as these two.
        (
            "methods_steps_nb201",
            &["autodl_darts_v1.", "drnas_gdas.", "drnas_darts.", "drnas_snas.", "sdarts_rs."],
        ),
    ] {
        let copy = Copy::new(&folder, &format!("{name}.safetensors"));
        let unnoticed: Vec<String> = copy
            .names()
            .into_iter()
            .filter(|tensor| {
                !skipped.iter().any(|skipped| tensor.starts_with(skipped)) && !copy.notices(tensor)
            })
            .collect();
        assert!(unnoticed.is_empty(), "{name}: {unnoticed:?}");
    }
}
