//! Checkpoints after a crash, a full disk or a flipped bit.

use drnas_dist::train::checkpoint::{self, Checkpoint};
use serde_json::json;
use std::fs;
use std::path::Path;
use tch::{Kind, Tensor};

/// A state that depends on the step, with every tensor kind and the most error-prone shapes.
fn state(step: u64) -> Checkpoint {
    let number = step as f64;
    let floats = [0.1 + number, -0.0, f64::MIN_POSITIVE / 2.0, f64::INFINITY, f64::NAN];
    let tensors = [
        ("cells.0.weight", Tensor::from_slice(&floats).to_kind(Kind::Float)),
        ("eta", Tensor::from_slice(&floats)),
        ("counts", Tensor::from_slice(&[i64::MIN, step as i64, i64::MAX])),
        ("small", Tensor::from_slice(&[i32::MIN, 7])),
        ("bytes", Tensor::from_slice(&(0..=255).collect::<Vec<u8>>()).view([16, 16])),
        ("mask", Tensor::from_slice(&[true, false, true])),
        ("scalar", Tensor::from(number)),
        ("empty", Tensor::zeros([0, 3], (Kind::Float, tch::Device::Cpu))),
        // Not contiguous, and requires a gradient.
        (
            "transposed",
            Tensor::arange(6, (Kind::Float, tch::Device::Cpu)).view([2, 3]).tr().set_requires_grad(true),
        ),
    ];
    Checkpoint {
        tensors: tensors.map(|(name, tensor)| (name.to_string(), tensor)).into(),
        meta: json!({"step": step, "loss": 0.1 + 0.2, "smallest": 5e-324, "text": "ä\n"}),
    }
}

fn bits(tensor: &Tensor) -> (Kind, Vec<i64>, Vec<u8>) {
    let tensor = tensor.detach().contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    (tensor.kind(), tensor.size(), bytes)
}

fn assert_equals_state(found: &Checkpoint, step: u64) {
    let expected = state(step);
    assert_eq!(found.meta, expected.meta);
    assert_eq!(found.tensors.len(), expected.tensors.len());
    for (name, tensor) in &expected.tensors {
        assert_eq!(bits(found.tensor(name).unwrap()), bits(tensor), "{name}");
    }
}

/// A folder with checkpoints of steps 10, 20 and 30.
fn three_checkpoints() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for step in [10, 20, 30] {
        checkpoint::write(dir.path(), step, &state(step), 3).unwrap();
    }
    dir
}

fn newest(dir: &Path) -> (u64, Vec<String>) {
    let latest = checkpoint::latest(dir).unwrap();
    let (step, found) = latest.found.expect("a checkpoint");
    assert_equals_state(&found, step);
    (step, latest.warnings)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_kind_is_restored_bit_for_bit_and_the_newest_is_found() {
    let dir = three_checkpoints();
    assert_eq!(checkpoint::list(dir.path()).unwrap(), [10, 20, 30]);
    assert_eq!(newest(dir.path()), (30, vec![]));
    assert_equals_state(&checkpoint::read(dir.path(), 10).unwrap(), 10);
}

#[test]
fn missing_folder_means_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let latest = checkpoint::latest(&dir.path().join("none")).unwrap();
    assert!(latest.found.is_none() && latest.warnings.is_empty());
}

#[test]
fn the_newest_checkpoints_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for step in 1..=5 {
        checkpoint::write(dir.path(), step, &state(step), 2).unwrap();
    }
    assert_eq!(names(dir.path()), ["step-000000004", "step-000000005"]);
    // At least one is kept.
    checkpoint::write(dir.path(), 6, &state(6), 0).unwrap();
    assert_eq!(names(dir.path()), ["step-000000006"]);
}

#[test]
fn interrupted_write_keeps_the_previous_checkpoint_and_the_next_write_cleans_up() {
    let dir = three_checkpoints();
    let path = dir.path();
    // Killed while writing the files, after the rename, and while writing the marker.
    fs::create_dir(path.join("step-000000040.tmp")).unwrap();
    fs::write(path.join("step-000000040.tmp/state.safetensors"), b"half").unwrap();
    fs::create_dir(path.join("step-000000050")).unwrap();
    fs::copy(path.join("step-000000030/state.json"), path.join("step-000000050/state.json")).unwrap();
    fs::create_dir(path.join("step-000000060")).unwrap();
    fs::write(path.join("step-000000060/DONE.tmp"), b"{").unwrap();
    assert_eq!(checkpoint::list(path).unwrap(), [10, 20, 30]);
    assert_eq!(newest(path), (30, vec![]));
    // Unrelated files are left alone.
    fs::write(path.join("notes.tmp"), b"mine").unwrap();
    checkpoint::write(path, 40, &state(40), 4).unwrap();
    assert_eq!(
        names(path),
        ["notes.tmp", "step-000000010", "step-000000020", "step-000000030", "step-000000040"]
    );
}

#[test]
fn corruption_is_reported_and_the_previous_checkpoint_is_used() {
    type Corruption = fn(&Path);
    let cases: [(&str, Corruption); 6] = [
        ("state.safetensors: checksum mismatch", |folder| {
            let path = folder.join("state.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("state.json: checksum mismatch", |folder| {
            let path = folder.join("state.json");
            let text = fs::read_to_string(&path).unwrap().replace("30", "31");
            fs::write(path, text).unwrap();
        }),
        ("bytes, found ", |folder| {
            let path = folder.join("state.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("state.json: No such file", |folder| {
            fs::remove_file(folder.join("state.json")).unwrap();
        }),
        ("DONE: ", |folder| fs::write(folder.join("DONE"), b"").unwrap()),
        ("expected version 1 and step 30", |folder| {
            let done = folder.join("DONE");
            let text = fs::read_to_string(&done).unwrap();
            fs::write(done, text.replace("\"step\": 30", "\"step\": 20")).unwrap();
        }),
    ];
    for (expected, corrupt) in cases {
        let dir = three_checkpoints();
        corrupt(&dir.path().join("step-000000030"));
        let (step, warnings) = newest(dir.path());
        assert_eq!(step, 20, "{expected}");
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains(expected) && warnings[0].contains("step-000000030"),
            "{expected}: {warnings:?}"
        );
    }
}

#[test]
fn corrupt_newer_checkpoint_neither_removes_nor_blocks_new_ones() {
    let dir = three_checkpoints();
    fs::write(dir.path().join("step-000000030/state.safetensors"), b"").unwrap();
    // The run resumes from 20 and writes 25, which must be kept although 30 exists.
    checkpoint::write(dir.path(), 25, &state(25), 1).unwrap();
    assert_eq!(newest(dir.path()).0, 25);
    checkpoint::write(dir.path(), 30, &state(30), 1).unwrap();
    assert_eq!(newest(dir.path()), (30, vec![]));
    assert_eq!(names(dir.path()), ["step-000000030"]);
}

#[test]
fn arbitrary_bytes_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint::write(dir.path(), 1, &state(1), 1).unwrap();
    let folder = dir.path().join("step-000000001");
    let good = fs::read(folder.join("state.safetensors")).unwrap();
    let done: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("DONE")).unwrap()).unwrap();
    let with = |bytes: &[u8]| {
        // With a correct hash, so that the parser itself is reached.
        fs::write(folder.join("state.safetensors"), bytes).unwrap();
        let mut done = done.clone();
        done["files"]["state.safetensors"] = json!({
            "bytes": bytes.len(),
            "xxh3": format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytes)),
        });
        fs::write(folder.join("DONE"), done.to_string()).unwrap();
        checkpoint::read(dir.path(), 1)
    };
    assert_equals_state(&with(&good).unwrap(), 1);
    for length in 0..good.len() {
        assert!(with(&good[..length]).is_err(), "cut to {length}");
    }
    // A flipped bit may give another valid file, but never a panic.
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for at in 0..header {
        for bit in [0, 3, 6] {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            refused += usize::from(with(&bytes).is_err());
        }
    }
    assert!(refused > header, "{refused} of {}", 3 * header);
    assert!(with(b"\xff\xff\xff\xff\xff\xff\xff\xff{}").is_err());
}

#[test]
fn failed_write_is_an_error_and_older_checkpoints_are_kept() {
    let dir = three_checkpoints();
    // A file in place of the folder; unlike permission bits, this also stops root.
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = checkpoint::write(&file, 40, &state(40), 1).unwrap_err().to_string();
    assert!(error.contains("step 40 was not written") && error.contains("file"), "{error}");
    // A file in place of the temporary folder.
    fs::write(dir.path().join("step-000000040.tmp"), b"").unwrap();
    let error = checkpoint::write(dir.path(), 40, &state(40), 1).unwrap_err().to_string();
    assert!(error.contains("step-000000040.tmp"), "{error}");
    let twice = Checkpoint {
        tensors: vec![("a".into(), Tensor::from(1.0)), ("a".into(), Tensor::from(2.0))],
        meta: json!(null),
    };
    let error = checkpoint::write(dir.path(), 50, &twice, 1).unwrap_err().to_string();
    assert!(error.contains("tensor a: duplicate name"), "{error}");
    let half =
        Checkpoint { tensors: vec![("h".into(), Tensor::from(1.0).to_kind(Kind::Half))], meta: json!(null) };
    let error = checkpoint::write(dir.path(), 50, &half, 1).unwrap_err().to_string();
    assert!(error.contains("kind Half cannot be stored"), "{error}");
    assert_eq!(checkpoint::list(dir.path()).unwrap(), [10, 20, 30]);
    assert_eq!(newest(dir.path()).0, 30);
}

/// Writes beyond the file size limit fail as on a full disk. The limit applies to a process, so the test starts itself.
#[test]
fn full_disk_keeps_the_previous_checkpoints() {
    const FOLDER: &str = "DRNAS_TEST_FULL_DISK";
    if let Some(folder) = std::env::var_os(FOLDER) {
        let big = Checkpoint {
            tensors: vec![("big".into(), Tensor::zeros([100_000], tch::kind::FLOAT_CPU))],
            meta: json!(null),
        };
        // SAFETY: `limit` is valid for the call; this process does nothing else.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: 100_000, rlim_max: 100_000 };
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
        let error = checkpoint::write(Path::new(&folder), 40, &big, 1).unwrap_err();
        print!("{error}");
        return;
    }
    let dir = three_checkpoints();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "full_disk_keeps_the_previous_checkpoints", "--nocapture"])
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("step 40 was not written") && text.contains("state.safetensors"), "{text}");
    assert_eq!(names(dir.path()), ["step-000000010", "step-000000020", "step-000000030"]);
    assert_eq!(newest(dir.path()).0, 30);
}
