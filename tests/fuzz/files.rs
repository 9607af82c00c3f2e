//! Files written by the program (shards, `set.json`, checkpoints, `metrics.jsonl`), and images.
//!
//! Files with checksums are mutated twice: as they are, and with corrected checksums, to reach the code behind the
//! verification.

use crate::packing::pack_args;
use crate::{Target, fuzz};
use drnas_dist::cli::{DemoArgs, PackArgs};
use drnas_dist::comm::Solo;
use drnas_dist::commands::demo_data;
use drnas_dist::commands::verify;
use drnas_dist::config::{Config, Settings};
use drnas_dist::data::ShardSet;
use drnas_dist::data::decode::{MAX_PIXELS, decode, dimensions};
use drnas_dist::data::pack::pack;
use drnas_dist::data::set::{SetFile, content_hash, hex, read_set_file};
use drnas_dist::data::shard::Shard;
use drnas_dist::eval::state::{read_weights, write_weights};
use drnas_dist::net::network::{Network, NetworkShape};
use drnas_dist::report::MetricsLog;
use drnas_dist::search::Search;
use drnas_dist::search::timeline::Timeline;
use drnas_dist::space::SearchSpace;
use drnas_dist::space::genotype::Genotype;
use drnas_dist::train::checkpoint::{self, Checkpoint};
use drnas_dist::train::state::State;
use drnas_dist::{Error, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};
use xxhash_rust::xxh3::xxh3_64;

/// A small packed data set: 3 classes x 4 images, in shards of `shard_images`.
fn packed(shard_images: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (root, out) = (dir.path().join("images"), dir.path().join("shards"));
    let px = "16..24".into();
    demo_data::run(&DemoArgs { out: root.clone(), classes: 3, per_class: 4, seed: 1, px }).unwrap();
    let args = PackArgs { no_decode: true, seed: 3, shard_images, threads: 1, ..pack_args(&root, &out) };
    pack(&args, &|_| true).unwrap();
    (dir, out)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(number)
}

/// Corrects magic number, version, size and checksums of a mutated shard.
fn reseal(shard: &mut [u8]) {
    if shard.len() < 64 {
        return;
    }
    shard[..8].copy_from_slice(b"DRNASHRD");
    shard[8..12].copy_from_slice(&1u32.to_le_bytes());
    let file_bytes = (shard.len() as u64).to_le_bytes();
    shard[24..32].copy_from_slice(&file_bytes);
    let index_end = 64 + 32 * number::<4>(shard, 16) as usize;
    if let Some(index) = shard.get(64..index_end) {
        let hash = xxh3_64(index).to_le_bytes();
        shard[40..48].copy_from_slice(&hash);
    }
    let hash = xxh3_64(&shard[..56]).to_le_bytes();
    shard[56..64].copy_from_slice(&hash);
}

/// Opens a shard and reads all of it.
fn read_shard(path: &Path) -> Result<()> {
    let shard = Shard::open(path)?;
    Ok((0..shard.records().len()).try_for_each(|record| shard.read(record).map(drop))?)
}

#[test]
fn shard() {
    let (_dir, shards) = packed(12);
    let path = shards.join("shard-00000.bin");
    let target = Target {
        name: "shard",
        seeds: vec![fs::read(&path).unwrap()],
        words: "",
        spare_bytes: 1 << 20,
        every: 1,
    };
    fuzz(&target, |file| {
        fs::write(&path, file).unwrap();
        read_shard(&path)
    });
}

#[test]
fn shard_with_valid_checksums() {
    let (_dir, shards) = packed(12);
    let path = shards.join("shard-00000.bin");
    let good: SetFile = read_set_file(&shards).unwrap();
    let seeds = vec![fs::read(&path).unwrap()];
    let target = Target { name: "shard-resealed", seeds, words: "", spare_bytes: 1 << 20, every: 1 };
    fuzz(&target, |file| {
        let mut file = file.to_vec();
        reseal(&mut file);
        fs::write(&path, &file).unwrap();
        // A set.json that matches this shard.
        if file.len() >= 64 {
            let mut set = good.clone();
            set.plan_hash = hex(number::<8>(&file, 32));
            set.content_hash = hex(content_hash(&set.classes, std::iter::once(number::<8>(&file, 56))));
            fs::write(shards.join("set.json"), serde_json::to_vec(&set).unwrap()).unwrap();
        }
        let set = ShardSet::open(&shards)?;
        (0..set.len()).for_each(|index| drop(set.location(index)));
        (0..set.len()).try_for_each(|index| set.sample(index).map(drop))
    });
}

#[test]
fn set_file() {
    let (_dir, shards) = packed(5);
    let path = shards.join("set.json");
    let words = "[ { \" \"classes\": \"num_shards\": null \\ud800 -1 1e400 , \"a\",";
    let target = Target {
        name: "set-file",
        seeds: vec![fs::read(&path).unwrap()],
        words,
        spare_bytes: 1 << 20,
        every: 1,
    };
    fuzz(&target, |file| {
        fs::write(&path, file).unwrap();
        let set = ShardSet::open(&shards)?;
        assert_eq!(set.len(), 12);
        Ok::<_, Error>(())
    });
}

const FILES: [&str; 3] = ["DONE", "state.json", "state.safetensors"];

/// A folder with checkpoints of steps 1 and 2; also returns the folder of the second.
fn checkpoints() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for step in [1, 2] {
        let tensors = vec![
            ("weights/stem.0.weight".into(), Tensor::from_slice(&[1.5f32, 2.5, 3.5, 4.5]).view([2, 2])),
            ("eta".into(), Tensor::from_slice(&[0.25f64, -0.25, 1e-300])),
            ("counts".into(), Tensor::from_slice(&[step as i64, 7])),
            ("mask".into(), Tensor::from_slice(&[true, false, true])),
        ];
        let masks = json!([[true, false], [true, true]]);
        let meta = json!({"version": 1, "step": step, "stage": 0, "masks": masks, "extra": {"sets": [1, 2]}});
        checkpoint::write(dir.path(), step, &Checkpoint { tensors, meta }, 2).unwrap();
    }
    let folder = dir.path().join("step-000000002");
    (dir, folder)
}

/// Writes one file of a checkpoint; with `sealed`, also updates its checksum in `DONE`.
fn put(folder: &Path, name: &str, bytes: &[u8], sealed: bool) {
    fs::write(folder.join(name), bytes).unwrap();
    if sealed {
        let done = folder.join("DONE");
        let mut value: Value = serde_json::from_slice(&fs::read(&done).unwrap()).unwrap();
        value["files"][name] = json!({"bytes": bytes.len(), "xxh3": format!("{:016x}", xxh3_64(bytes))});
        fs::write(done, value.to_string()).unwrap();
    }
}

fn fuzz_checkpoint(name: &str, file: &str, sealed: bool) {
    let (dir, folder) = checkpoints();
    let words = "[ { \" \"F32\" \"F64\" \"BF16\" \"shape\": \"data_offsets\": null \\u0000 0,";
    let good = fs::read(folder.join(file)).unwrap();
    let target = Target { name, seeds: vec![good.clone()], words, spare_bytes: 1 << 20, every: 1 };
    fuzz(&target, |bytes| {
        put(&folder, file, bytes, sealed);
        let found = checkpoint::read(dir.path(), 2);
        assert!(sealed || file == "DONE" || found.is_err() || bytes == good, "the checksum is not verified");
        // If the newest checkpoint is corrupt, a run resumes from the previous one.
        let latest = checkpoint::latest(dir.path()).unwrap();
        let (step, _) = latest.found.expect("step 1 is valid");
        assert_eq!(step, if found.is_ok() { 2 } else { 1 });
        found.map(drop)
    });
}

#[test]
fn checkpoint_marker() {
    fuzz_checkpoint("checkpoint-done", FILES[0], false);
}

#[test]
fn checkpoint_state() {
    fuzz_checkpoint("checkpoint-state", FILES[1], false);
    fuzz_checkpoint("checkpoint-state-resealed", FILES[1], true);
}

#[test]
fn checkpoint_tensors() {
    fuzz_checkpoint("checkpoint-tensors", FILES[2], false);
    fuzz_checkpoint("checkpoint-tensors-resealed", FILES[2], true);
}

/// A search of two stages, small enough to restore it thousands of times.
fn small_search() -> Search {
    let text = "
        [model]
        space = \"darts-cifar\"
        init_channels = 2
        layers = 3
        num_classes = 2
        [data]
        px = 4
        [search]
        replicas = 2
        global_batch = 4
        architecture_from_epoch = 1
        [[search.stage]]
        k = 2
        ops_kept = 7
        epochs = 2
        [[search.stage]]
        k = 1
        ops_kept = 3
        epochs = 2
        [weights]
        warmup_epochs = 1";
    let config = Config::parse(text, "the test's", &[]).unwrap();
    let timeline = Timeline::new(&config, 5);
    Search::new(&config, timeline, 0..2, Device::Cpu)
}

/// Fuzzes the state of a search: an accepted state must be usable.
fn fuzz_search(name: &str, file: &str) {
    let (dir, folder) = checkpoints();
    let mut search = small_search();
    let state = search.to_checkpoint(&Solo, Some(json!({"sums": 1}))).unwrap().unwrap();
    checkpoint::write(dir.path(), 2, &state, 2).unwrap();
    let words = "[ { \" true false , [true], \"k\": \"stage\": \"F32\" \"I64\" \"shape\": null";
    let seeds = vec![fs::read(folder.join(file)).unwrap()];
    let target = Target { name, seeds, words, spare_bytes: 8 << 20, every: 10 };
    fuzz(&target, |bytes| {
        put(&folder, file, bytes, true);
        search.restore(&checkpoint::read(dir.path(), 2)?)?;
        search.found()?;
        let _ = search.check_finite(); // detects corrupt numbers before the next checkpoint
        search.to_checkpoint(&Solo, Some(json!(null))).map(drop)
    });
}

#[test]
fn search_state() {
    fuzz_search("search-state", FILES[1]);
}

#[test]
fn search_tensors() {
    fuzz_search("search-tensors", FILES[2]);
}

/// The file of `--weights`: accepted weights must fit the network.
#[test]
fn weights() {
    let shape = NetworkShape {
        space: SearchSpace::DartsCifar,
        genotype: Genotype::read("DrNAS_cifar10").unwrap(),
        init_channels: 2,
        layers: 3,
        num_classes: 2,
        px: 32,
        auxiliary: false,
    };
    let mut net = Network::new(shape, verify::PLACEMENT);
    net.params.initialise(1);
    let mut named = net.params.export(|bucket| &bucket.weights);
    named.extend(net.params.export_running(0));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    write_weights(&path, &named, None).unwrap();
    let words = "[ { \" \"F32\" \"F8_E4M3\" \"BOOL\" \"U16\" \"shape\": \"data_offsets\": weights/ null 0,";
    let seeds = vec![fs::read(&path).unwrap()];
    let target = Target { name: "weights", seeds, words, spare_bytes: 8 << 20, every: 4 };
    fuzz(&target, |file| {
        fs::write(&path, file).unwrap();
        Ok::<_, Error>(net.params.load(&read_weights(&path)?)?)
    });
}

/// The files of `verify`: JSON lists and tensors.
#[test]
fn golden() {
    let dir = tempfile::tempdir().unwrap();
    let words = "[ { \" null \"F32\" \"F64\" \"shape\": \"data_offsets\": \"k\": -1, 1e999 \\u0000 0,";
    for (name, every) in [
        ("schedules.json", 4),
        ("eval_counts.json", 10),
        ("dirichlet.safetensors", 4),
        ("nb201_stage1.safetensors", 20),
    ] {
        let good = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let path = dir.path().join(name);
        let target =
            Target { name, seeds: vec![fs::read(good).unwrap()], words, spare_bytes: 64 << 20, every };
        fuzz(&target, |file| {
            fs::write(&path, file).unwrap();
            match verify::verify(&path, verify::PLACEMENT)?.pass() {
                true => Ok::<_, Error>(()),
                false => Err(drnas_dist::commands::Error::Golden {
                    path: name.into(),
                    what: "does not pass".into(),
                }
                .into()),
            }
        });
    }
}

#[test]
fn metrics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let lines: String =
        (1..=4).map(|step| format!("{{\"event\":\"step\",\"step\":{step},\"loss\":2.5}}\n")).collect();
    let words = "\n { [ \"step\": null \" }\n \r";
    let target = Target { name: "metrics", seeds: vec![lines.into()], words, spare_bytes: 1 << 20, every: 1 };
    fuzz(&target, |file| {
        fs::write(&path, file).unwrap();
        MetricsLog::resume(&path, 4).map_err(|error| error.to_string())?;
        // Unreadable lines are dropped; the rest is complete lines up to step 4.
        let kept = fs::read(&path).unwrap();
        for line in kept.split_inclusive(|byte| *byte == b'\n') {
            let value: Value = serde_json::from_slice(line).unwrap();
            assert!(line.ends_with(b"\n") && value["step"].as_u64().unwrap() <= 4);
        }
        if kept == file { Ok(()) } else { Err("lines were dropped".to_owned()) }
    });
}

#[test]
fn images() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("images");
    let px = "16..24".into();
    demo_data::run(&DemoArgs { out: out.clone(), classes: 2, per_class: 2, seed: 1, px }).unwrap();
    let mut seeds = Vec::new();
    for class in fs::read_dir(&out).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for image in fs::read_dir(class.path()).unwrap().flatten() {
            seeds.push(fs::read(image.path()).unwrap());
        }
    }
    let mut png = Vec::new();
    let pixels = vec![100u8; 16 * 16 * 3];
    image::ImageEncoder::write_image(
        image::codecs::png::PngEncoder::new(&mut png),
        &pixels,
        16,
        16,
        image::ExtendedColorType::Rgb8,
    )
    .unwrap();
    seeds.push(png);
    let words = "\u{7f} IHDR IDAT PLTE iCCP Exif";
    let target = Target { name: "images", seeds, words, spare_bytes: 10 * MAX_PIXELS, every: 1 };
    fuzz(&target, |file| {
        let _ = dimensions(file);
        decode(file).map(|picture| assert_eq!(picture.rgb().len() as u64 % 3, 0))
    });
}
