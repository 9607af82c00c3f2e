//! From images to batches: packing, corrupt shards, splits, sample order, loader.

#[path = "common/packing.rs"]
mod packing;

use drnas_dist::cli::{DemoArgs, PackArgs, SplitArgs};
use drnas_dist::commands::demo_data;
use drnas_dist::data::Error;
use drnas_dist::data::pack::pack;
use drnas_dist::data::split;
use drnas_dist::data::{Augment, Crop, DecodePool, Loader, LoaderSpec, ShardSet};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Draws `classes` x `per_class` small images into DIR/images.
fn images(dir: &Path, classes: usize, per_class: usize) -> PathBuf {
    let out = dir.join("images");
    demo_data::run(&DemoArgs { out: out.clone(), classes, per_class, seed: 7, px: "24..40".into() }).unwrap();
    out
}

/// Arguments of `pack` for shards of 16 images, so that there are several.
fn pack_args(root: &Path, out: &Path) -> PackArgs {
    PackArgs { seed: 3, shard_images: 16, threads: 2, ..packing::pack_args(root, out) }
}

/// 4 classes x 15 images in 4 shards.
fn packed() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let shards = dir.path().join("shards");
    pack(&pack_args(&images(dir.path(), 4, 15), &shards), &|_| true).unwrap();
    (dir, shards)
}

fn message<T, E: std::fmt::Display>(result: Result<T, E>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.to_string(),
    }
}

/// name -> (label, bytes) of all samples.
fn content(set: &ShardSet) -> BTreeMap<String, (u32, Vec<u8>)> {
    (0..set.len())
        .map(|i| set.sample(i).unwrap())
        .map(|s| (s.name.to_owned(), (s.label, s.bytes.to_vec())))
        .collect()
}

fn all_files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap()))
        .collect()
}

#[test]
fn pack_keeps_every_byte() {
    let (dir, shards) = packed();
    let set = ShardSet::open(&shards).unwrap();
    assert_eq!((set.len(), set.num_classes()), (60, 4));
    assert_eq!(set.per_class(), [15; 4]);
    let content = content(&set);
    assert_eq!(content.len(), 60);
    for (name, (label, bytes)) in content {
        assert_eq!(bytes, fs::read(dir.path().join("images").join(&name)).unwrap());
        assert!(name.starts_with(&format!("{}/", set.classes()[label as usize])));
    }
    // Shuffled: the first 16 samples are not of one class.
    let labels: HashSet<u32> = (0..16).map(|i| set.sample(i).unwrap().label).collect();
    assert!(labels.len() >= 3);
}

#[test]
fn pack_does_not_depend_on_threads_and_repeating_it_changes_nothing() {
    let (dir, shards) = packed();
    let root = dir.path().join("images");
    let one = dir.path().join("one");
    pack(&PackArgs { threads: 1, ..pack_args(&root, &one) }, &|_| true).unwrap();
    assert_eq!(all_files(&shards), all_files(&one));
    let again = pack(&pack_args(&root, &shards), &|_| true).unwrap();
    assert_eq!((again.num_kept, again.num_shards), (4, 4));
    assert_eq!(all_files(&shards), all_files(&one));
}

#[test]
fn interrupted_pack_resumes_where_it_stopped() {
    let (dir, shards) = packed();
    let root = dir.path().join("images");
    let whole = all_files(&shards);
    let part = dir.path().join("part");
    let args = PackArgs { threads: 1, ..pack_args(&root, &part) };
    let stopped = message(pack(&args, &|progress| progress.images < 40));
    assert!(stopped.contains("stopped after 2 of 4 shards"), "{stopped}");
    // Interrupted within a shard: a temporary file remains, and there is no set.json.
    assert!(part.join("shard-00002.bin.tmp").exists());
    assert!(matches!(ShardSet::open(&part), Err(Error::SetMissing { .. })));
    let modified = |name: &str| fs::metadata(part.join(name)).unwrap().modified().unwrap();
    let before = modified("shard-00001.bin");
    let report = pack(&args, &|_| true).unwrap();
    assert_eq!((report.num_kept, report.num_images), (2, 60));
    assert_eq!(before, modified("shard-00001.bin"));
    assert_eq!(all_files(&part), whole);

    // A corrupt or missing shard is written again.
    fs::remove_file(part.join("shard-00003.bin")).unwrap();
    truncate(&part.join("shard-00000.bin"), 100);
    // Interrupted during that repair, the shard set is not marked complete.
    assert!(pack(&args, &|_| false).is_err());
    assert!(matches!(ShardSet::open(&part), Err(Error::SetMissing { .. })));
    assert_eq!(pack(&args, &|_| true).unwrap().num_kept, 2);
    assert_eq!(all_files(&part), whole);
}

#[test]
fn different_plan_is_refused_without_overwrite() {
    let (dir, shards) = packed();
    let args = PackArgs { seed: 4, ..pack_args(&dir.path().join("images"), &shards) };
    let refused = message(pack(&args, &|_| true));
    assert!(refused.contains("shards of another set"), "{refused}");
    fs::remove_file(shards.join("set.json")).unwrap();
    assert!(matches!(pack(&args, &|_| true), Err(Error::OtherPlan { .. })));
    let hash = |dir: &Path| ShardSet::open(dir).unwrap().hash();
    pack(&PackArgs { overwrite: true, ..args.clone() }, &|_| true).unwrap();
    let fresh = dir.path().join("fresh");
    pack(&PackArgs { out: fresh.clone(), ..args }, &|_| true).unwrap();
    assert_eq!(hash(&shards), hash(&fresh));
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path, len: usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..len]).unwrap();
}

/// Opens the shard set after `corrupt` changed shard 1; returns the error message.
fn error_after(shards: &Path, corrupt: impl FnOnce(&Path)) -> String {
    let path = shards.join("shard-00001.bin");
    let good = fs::read(&path).unwrap();
    corrupt(&path);
    let text = message(ShardSet::open(shards));
    fs::write(&path, good).unwrap();
    ShardSet::open(shards).unwrap();
    text
}

#[test]
fn each_kind_of_corruption_has_its_own_error() {
    let (_dir, shards) = packed();
    let size = fs::metadata(shards.join("shard-00001.bin")).unwrap().len() as usize;
    let expect = |corrupt: &dyn Fn(&Path), words: &str| {
        let text = error_after(&shards, corrupt);
        assert!(text.starts_with("shard shard-00001.bin: "), "{text}");
        assert!(text.contains(words), "\"{words}\" expected: {text}");
    };
    expect(&|p| truncate(p, size - 1), "truncated: 15 of 16 samples present");
    expect(&|p| truncate(p, 64 + 16 * 32), "0 of 16 samples present");
    expect(&|p| truncate(p, 100), "0 of 16 samples present");
    expect(&|p| truncate(p, 30), "truncated: ");
    expect(&|p| truncate(p, 0), "truncated: ");
    expect(&|p| flip(p, 0), "not a drnas-dist shard");
    expect(&|p| flip(p, 8), "expected format version 1, found 17");
    expect(&|p| flip(p, 20), "header is corrupt");
    expect(&|p| flip(p, 64 + 32 * 3 + 5), "index is corrupt");
    expect(&|p| fs::write(p, [fs::read(p).unwrap(), vec![0; 9]].concat()).unwrap(), "size is corrupt");
    expect(&|p| fs::remove_file(p).unwrap(), "not found in ");
    expect(&|p| assert!(fs::copy(p.with_file_name("shard-00002.bin"), p).is_ok()), "does not belong to ");

    // A changed byte in an image or its name is detected only when that record is read.
    for from_end in [1, size - (64 + 16 * 32) - 2] {
        let path = shards.join("shard-00001.bin");
        flip(&path, size - from_end);
        let set = ShardSet::open(&shards).unwrap();
        let bad: Vec<_> = (0..60).filter_map(|i| set.sample(i).err()).collect();
        assert_eq!(bad.len(), 1);
        let text = bad[0].to_string();
        assert!(text.contains("shard-00001.bin: record ") && text.contains("checksum"), "{text}");
        flip(&path, size - from_end);
    }
}

#[test]
fn missing_or_corrupt_set_file_is_an_error() {
    let (_dir, shards) = packed();
    let path = shards.join("set.json");
    let good = fs::read_to_string(&path).unwrap();
    for (bad, words) in [
        (good[..good.len() / 2].to_owned(), "pack it again"),
        (good.replace("\"version\": 1", "\"version\": 2"), "found \"drnas-dist shards\" version 2"),
        (good.replace("\"num_images\": 60", "\"num_images\": 61"), "image counts do not match the shards"),
        (
            good.replace("\"content_hash\": \"", "\"content_hash\": \"0"),
            "does not match the content of the shards",
        ),
    ] {
        assert_ne!(bad, good);
        fs::write(&path, bad).unwrap();
        let text = message(ShardSet::open(&shards));
        assert!(text.contains(words), "\"{words}\" expected: {text}");
    }
    fs::remove_file(&path).unwrap();
    let text = message(ShardSet::open(&shards));
    assert!(text.contains("no set.json: not a complete shard set"), "{text}");
}

#[test]
fn arbitrary_shard_bytes_never_panic() {
    let (dir, shards) = packed();
    let path = shards.join("shard-00001.bin");
    let good = fs::read(&path).unwrap();
    let copy = dir.path().join("shard-00009.bin");
    for at in 0..64 + 16 * 32 {
        for value in [0, 0x7F, 0xFF] {
            let mut bytes = good.clone();
            bytes[at] = value;
            // With matching checksums, as from a malicious or buggy writer.
            let index_hash = xxhash_rust::xxh3::xxh3_64(&bytes[64..64 + 16 * 32]);
            bytes[40..48].copy_from_slice(&index_hash.to_le_bytes());
            let header_hash = xxhash_rust::xxh3::xxh3_64(&bytes[..56]);
            bytes[56..64].copy_from_slice(&header_hash.to_le_bytes());
            fs::write(&copy, bytes).unwrap();
            if let Ok(shard) = drnas_dist::data::shard::Shard::open(&copy) {
                for record in 0..shard.records().len() {
                    let _ = shard.read(record);
                }
            }
        }
    }
}

#[test]
fn bad_images_are_reported_or_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let root = images(dir.path(), 3, 10);
    let class = root.join("solid-disc");
    let whole = fs::read(class.join("0003.jpg")).unwrap();
    fs::write(class.join("0003.jpg"), &whole[..whole.len() / 2]).unwrap();
    fs::write(class.join("0004.jpg"), b"<html>404</html>").unwrap();
    fs::write(class.join("0005.jpg"), b"").unwrap();
    fs::write(class.join("notes.txt"), b"left alone").unwrap();
    let out = dir.path().join("shards");
    let text = message(pack(&pack_args(&root, &out), &|_| true));
    assert!(text.contains("solid-disc/000") && text.contains("--skip-bad"), "{text}");

    let args = PackArgs { skip_bad: true, overwrite: true, threads: 1, ..pack_args(&root, &out) };
    // Interrupted and resumed: the list of bad files is still complete.
    assert!(pack(&args, &|p| p.images < 20).is_err());
    let report = pack(&args, &|_| true).unwrap();
    assert_eq!((report.num_images, report.left_out.len()), (27, 3));
    let list = fs::read_to_string(out.join("bad.txt")).unwrap();
    let names: Vec<&str> = list.lines().map(|l| l.split('\t').next().unwrap()).collect();
    assert_eq!(names, ["solid-disc/0003.jpg", "solid-disc/0004.jpg", "solid-disc/0005.jpg"]);
    assert!(report.warnings.iter().any(|w| w.contains("ignored 1 file other than")), "{:?}", report.warnings);
    assert_eq!(ShardSet::open(&out).unwrap().per_class(), [10, 7, 10]);
}

#[test]
fn classes_with_no_or_one_image() {
    let dir = tempfile::tempdir().unwrap();
    let root = images(dir.path(), 3, 4);
    let out = dir.path().join("shards");
    fs::create_dir(root.join("zebra")).unwrap();
    let text = message(pack(&pack_args(&root, &out), &|_| true));
    assert!(text.contains("class zebra of") && text.contains("no usable image"), "{text}");
    // Only undecodable images: the same error after they are skipped.
    fs::write(root.join("zebra/a.jpg"), b"no").unwrap();
    let skip = PackArgs { skip_bad: true, ..pack_args(&root, &out) };
    assert!(message(pack(&skip, &|_| true)).contains("class zebra of"));
    fs::copy(root.join("solid-disc/0000.jpg"), root.join("zebra/a.jpg")).unwrap();
    let again = PackArgs { overwrite: true, ..pack_args(&root, &out) };
    let report = pack(&again, &|_| true).unwrap();
    assert_eq!(report.warnings, ["class zebra has only one image"]);
    let empty = dir.path().join("nothing");
    fs::create_dir(&empty).unwrap();
    assert!(matches!(pack(&pack_args(&empty, &out), &|_| true), Err(Error::NoClasses { .. })));
    assert!(message(pack(&pack_args(&dir.path().join("nowhere"), &out), &|_| { true })).contains("nowhere"));
}

fn split_args(root: &Path, out: &Path) -> SplitArgs {
    SplitArgs { fractions: vec![0.6, 0.3], seed: 5, ..packing::split_args(root, out) }
}

fn names_in(list: &Path) -> Vec<String> {
    let text = fs::read_to_string(list).unwrap();
    text.lines().filter(|l| !l.starts_with('#')).map(String::from).collect()
}

#[test]
fn splits_are_balanced_disjoint_and_reproducible() {
    let dir = tempfile::tempdir().unwrap();
    let root = images(dir.path(), 3, 10);
    // One class is larger.
    for i in 0..5 {
        fs::copy(root.join("solid-disc/0000.jpg"), root.join(format!("solid-disc/x{i}.jpg"))).unwrap();
    }
    let out = dir.path().join("lists");
    split::run(&split_args(&root, &out)).unwrap();
    let (train, valid) = (names_in(&out.join("train.txt")), names_in(&out.join("valid.txt")));
    let count = |list: &[String], class: &str| list.iter().filter(|n| n.starts_with(class)).count();
    assert_eq!((count(&train, "solid-disc/"), count(&valid, "solid-disc/")), (9, 5));
    assert_eq!((count(&train, "striped-ring/"), count(&valid, "striped-ring/")), (6, 3));
    let both: HashSet<&String> = train.iter().chain(&valid).collect();
    assert_eq!(both.len(), train.len() + valid.len());
    assert!(train.is_sorted() && valid.is_sorted());

    // Repeating a split changes nothing; a different seed selects different images and needs `overwrite`.
    let before = all_files(&out);
    split::run(&split_args(&root, &out)).unwrap();
    assert_eq!(before, all_files(&out));
    let other = SplitArgs { seed: 6, ..split_args(&root, &out) };
    assert!(matches!(split::run(&other), Err(Error::NewFile(_))));
    split::run(&SplitArgs { overwrite: true, ..other }).unwrap();
    assert_ne!(before, all_files(&out));

    // A packed list uses the labels of the whole folder.
    let shards = dir.path().join("shards");
    let args = PackArgs { list: Some(out.join("valid.txt")), ..pack_args(&root, &shards) };
    pack(&args, &|_| true).unwrap();
    let set = ShardSet::open(&shards).unwrap();
    assert_eq!(set.per_class(), [3, 5, 3]);
    let expected: Vec<String> = names_in(&out.join("valid.txt"));
    assert_eq!(content(&set).into_keys().collect::<Vec<_>>(), expected);
}

#[test]
fn impossible_splits_and_lists_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = images(dir.path(), 2, 4);
    let out = dir.path().join("lists");
    let refuse = |change: &dyn Fn(&mut SplitArgs), words: &str| {
        let mut args = split_args(&root, &out);
        change(&mut args);
        let text = message(split::run(&args));
        assert!(text.contains(words), "\"{words}\" expected: {text}");
    };
    refuse(&|a| a.fractions = vec![0.6, 0.1], "class solid-disc has 4 images, a fraction of 0.1 rounds to 0");
    refuse(&|a| a.fractions = vec![0.6, 0.5], "expected fractions with a sum of at most 1");
    refuse(&|a| a.fractions = vec![0.6], "expected one name per fraction, found 2 and 1");
    refuse(&|a| a.fractions = vec![0.6, f64::NAN], "found NaN");
    refuse(&|a| a.names[1] = "train".into(), "a duplicate");

    let list = dir.path().join("list.txt");
    let shards = dir.path().join("shards");
    let pack_list = |text: &str| {
        fs::write(&list, text).unwrap();
        message(pack(&PackArgs { list: Some(list.clone()), ..pack_args(&root, &shards) }, &|_| true))
    };
    let good = "# c\nsolid-disc/0000.jpg\nstriped-ring/0000.jpg\n";
    assert!(pack_list(&format!("{good}owl/1.jpg\n")).contains("line 4: no class folder \"owl\""));
    assert!(pack_list(&format!("{good}solid-disc/0000.jpg\n")).contains("is a duplicate of line 2"));
    assert!(pack_list(&format!("{good}file.jpg\n")).contains("expected \"class/file\", found"));
    assert!(pack_list(&format!("{good}solid-disc/../../x.jpg\n")).contains("is outside the class folders"));
    assert!(pack_list(&format!("{good}solid-disc/9999.jpg\n")).contains("9999.jpg"));
    assert!(pack_list("solid-disc/0000.jpg\n").contains("class striped-ring of"));
}

fn spec(num_replicas: usize, replicas: std::ops::Range<usize>) -> LoaderSpec {
    LoaderSpec {
        px: 20,
        augment: Augment { flip: true, ..Crop::RandomResized { area_min: 0.08 }.into() },
        seed: 11,
        stream: 0,
        num_replicas,
        replicas,
        batch: 3,
        prefetch: 2,
        skip_bad: false,
    }
}

/// A batch as plain data: indices, labels, pixels.
type Plain = (Vec<u32>, Vec<i64>, Vec<u8>);

fn take(loader: &mut Loader, num_batches: usize) -> Vec<Plain> {
    (0..num_batches)
        .map(|_| {
            let batch = loader.next().unwrap();
            assert_eq!(batch.images.size(), [3, 3, 20, 20]);
            let labels = Vec::<i64>::try_from(&batch.labels).unwrap();
            (batch.indices, labels, Vec::<u8>::try_from(&batch.images.flatten(0, -1)).unwrap())
        })
        .collect()
}

#[test]
fn batches_do_not_depend_on_threads_or_ranks() {
    let (_dir, shards) = packed();
    let set = Arc::new(ShardSet::open(&shards).unwrap());
    let serve = |threads, replicas: std::ops::Range<usize>, num_batches| {
        let pool = DecodePool::new(threads);
        take(&mut Loader::open(set.clone(), spec(4, replicas), &pool, 0).unwrap(), num_batches)
    };
    // 60 images, 12 per step: 7 steps extend into the second epoch.
    let all = serve(1, 0..4, 28);
    assert_eq!(all, serve(2, 0..4, 28));
    assert_eq!(all, serve(5, 0..4, 28));
    let of = |replicas: std::ops::Range<usize>| -> Vec<Plain> {
        all.iter().enumerate().filter(|(i, _)| replicas.contains(&(i % 4))).map(|(_, b)| b.clone()).collect()
    };
    for rank in 0..2 {
        let replicas = 2 * rank..2 * rank + 2;
        assert_eq!(serve(2, replicas.clone(), 14), of(replicas));
    }
    for rank in 0..4 {
        assert_eq!(serve(2, rank..rank + 1, 7), of(rank..rank + 1));
    }
    // Ranks together see every sample once per epoch; the next epoch has a different order.
    let mut seen: Vec<u32> = all[..20].iter().flat_map(|b| b.0.clone()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..60).collect::<Vec<_>>());
    assert_ne!(all[0].0, all[20].0);
    // Labels are those of the samples.
    for (indices, labels, _) in &all {
        for (index, label) in indices.iter().zip(labels) {
            assert_eq!(i64::from(set.sample(*index as usize).unwrap().label), *label);
        }
    }
}

#[test]
fn loader_can_start_at_any_step() {
    let (_dir, shards) = packed();
    let set = Arc::new(ShardSet::open(&shards).unwrap());
    let pool = DecodePool::new(2);
    let all = take(&mut Loader::open(set.clone(), spec(2, 0..2), &pool, 0).unwrap(), 44);
    for step in [1, 9, 10, 13, 20] {
        let mut loader = Loader::open(set.clone(), spec(2, 0..2), &pool, step).unwrap();
        assert_eq!(take(&mut loader, 4), all[2 * step as usize..2 * step as usize + 4], "step {step}");
        assert_eq!(loader.steps_per_epoch(), 10);
    }
    // The architecture stream has its own order.
    let mut other = Loader::open(set.clone(), LoaderSpec { stream: 1, ..spec(2, 0..2) }, &pool, 0).unwrap();
    assert_ne!(take(&mut other, 1)[0].0, all[0].0);
}

#[test]
fn prefetch_is_bounded_and_an_early_drop_does_not_hang() {
    let (_dir, shards) = packed();
    let set = Arc::new(ShardSet::open(&shards).unwrap());
    let pool = DecodePool::new(2);
    let started = Instant::now();
    for num_batches in [0, 1, 3] {
        let mut loader = Loader::open(set.clone(), spec(2, 0..2), &pool, 0).unwrap();
        take(&mut loader, num_batches);
        let least = 3 * num_batches as u64 + 6;
        while loader.num_started() < least && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(loader.num_started() >= least);
        std::thread::sleep(Duration::from_millis(200));
        // 2 prefetched batches, one waiting for space, one started; a window of max(batch, 2 threads) = 4 images.
        let most = 3 * (num_batches as u64 + 3) + 4;
        assert!(loader.num_started() <= most, "{} started, {most} allowed", loader.num_started());
    }
    // Dropped with queued jobs while another stream shares the threads; the pool is dropped before that stream.
    let weights = Loader::open(set.clone(), spec(2, 0..2), &pool, 0).unwrap();
    let mut architecture = Loader::open(set, LoaderSpec { stream: 1, ..spec(2, 0..2) }, &pool, 0).unwrap();
    drop(weights);
    drop(pool);
    take(&mut architecture, 5);
    assert!(architecture.wait_ms() > 0.0);
    assert_eq!(architecture.wait_ms(), 0.0);
    drop(architecture);
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn unusable_samples_are_reported_or_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let root = images(dir.path(), 2, 10);
    // --no-decode reads only the header, so a truncated file gets into the shards.
    let truncated_file = root.join("solid-disc/0004.jpg");
    let whole = fs::read(&truncated_file).unwrap();
    fs::write(&truncated_file, &whole[..whole.len() - 40]).unwrap();
    let shards = dir.path().join("shards");
    let args = PackArgs { no_decode: true, ..pack_args(&root, &shards) };
    pack(&args, &|_| true).unwrap();
    // One record is corrupted after packing.
    let first = shards.join("shard-00000.bin");
    flip(&first, fs::metadata(&first).unwrap().len() as usize - 1);

    let set = Arc::new(ShardSet::open(&shards).unwrap());
    let corrupt_index = (0..20).find(|i| set.sample(*i).is_err()).unwrap() as u32;
    let truncated_index =
        (0..20u32).find(|i| set.sample(*i as usize).is_ok_and(|s| s.name == "solid-disc/0004.jpg")).unwrap();
    let pool = DecodePool::new(2);
    let mut loader = Loader::open(set.clone(), spec(2, 0..2), &pool, 0).unwrap();
    let error = (0..6).find_map(|_| loader.next().err()).expect("an unusable sample").to_string();
    assert!(error.contains("shard shard-0000") && error.contains("record "), "{error}");
    assert!(error.contains("solid-disc/0004.jpg") || error.contains("checksum"), "{error}");
    assert!(matches!(loader.next(), Err(Error::LoaderEnded)));

    // A corrupt shard is never skipped: other parts of it may be wrong too.
    let skip = |set: &Arc<ShardSet>, threads| {
        let spec = LoaderSpec { skip_bad: true, ..spec(1, 0..1) };
        Loader::open(set.clone(), spec, &DecodePool::new(threads), 0).unwrap()
    };
    let mut loader = skip(&set, 2);
    let error = (0..30).find_map(|_| loader.next().err()).expect("the corrupt record").to_string();
    assert!(error.contains("shard shard-0000") && error.contains("checksum"), "{error}");

    flip(&first, fs::metadata(&first).unwrap().len() as usize - 1);
    let set = Arc::new(ShardSet::open(&shards).unwrap());
    assert!(set.sample(corrupt_index as usize).is_ok());
    let serve = |threads| {
        let mut loader = skip(&set, threads);
        let batches: Vec<_> = (0..30).map(|_| loader.next().unwrap()).collect();
        let skipped: usize = batches.iter().map(|b| b.num_skipped).sum();
        let indices: Vec<u32> = batches.into_iter().flat_map(|b| b.indices).collect();
        (skipped, indices)
    };
    let (skipped, indices) = serve(1);
    // 30 batches of 3 images: five epochs of 18 of the 20 images.
    assert!((3..=5).contains(&skipped), "{skipped}");
    assert!(indices.contains(&corrupt_index) && !indices.contains(&truncated_index));
    assert_eq!((skipped, indices), serve(3));
}

#[test]
fn changed_images_are_packed_again() {
    let (dir, shards) = packed();
    let root = dir.path().join("images");
    let args = pack_args(&root, &shards);
    let [picture, other] = ["solid-disc/0003.jpg", "solid-disc/0004.jpg"].map(|name| root.join(name));
    let hash = |dir: &Path| ShardSet::open(dir).unwrap().hash();
    let packed_as_the_folder = || {
        let report = pack(&args, &|_| true).unwrap();
        let fresh = dir.path().join("fresh");
        let _ = fs::remove_dir_all(&fresh);
        pack(&PackArgs { out: fresh.clone(), ..args.clone() }, &|_| true).unwrap();
        assert_eq!(hash(&shards), hash(&fresh));
        assert_eq!(all_files(&shards), all_files(&fresh));
        report.num_kept
    };
    assert_eq!(packed_as_the_folder(), 4);
    // A different size; the same size; the same size and modification time, as after `cp -p` or `rsync -a`.
    let before = fs::read(&picture).unwrap();
    fs::write(&picture, fs::read(&other).unwrap()).unwrap();
    assert_eq!(packed_as_the_folder(), 3);
    let time = fs::metadata(&picture).unwrap().modified().unwrap();
    let mut bytes = fs::read(&picture).unwrap();
    let at = bytes.len() - 3;
    bytes[at] ^= 1;
    fs::write(&picture, &bytes).unwrap();
    assert_eq!(packed_as_the_folder(), 3);
    bytes[at] ^= 1;
    fs::write(&picture, &bytes).unwrap();
    fs::File::options().write(true).open(&picture).unwrap().set_modified(time).unwrap();
    assert_eq!(packed_as_the_folder(), 3);
    fs::write(&picture, before).unwrap();
    // Changed while a pack was interrupted.
    fs::remove_file(shards.join("set.json")).unwrap();
    assert_eq!(packed_as_the_folder(), 3);
    // A new modification time with the same bytes: nothing is packed again.
    fs::write(&picture, fs::read(&picture).unwrap()).unwrap();
    assert_eq!(packed_as_the_folder(), 4);
}

#[test]
fn impossible_loaders_are_refused() {
    let (_dir, shards) = packed();
    let set = Arc::new(ShardSet::open(&shards).unwrap());
    let pool = DecodePool::new(1);
    let open = |spec| message(Loader::open(set.clone(), spec, &pool, 0).map(|_| ()));
    assert!(
        open(LoaderSpec { batch: 16, ..spec(4, 0..4) }).contains("60 images, but one global batch needs 64")
    );
    assert!(open(spec(2, 1..3)).contains("expected replicas within 0..2, found 1..3"));
    assert!(open(LoaderSpec { px: 0, ..spec(2, 0..2) }).contains("0 px"));
}

#[test]
fn demo_images_are_reproducible_and_are_not_mixed() {
    let dir = tempfile::tempdir().unwrap();
    let root = images(dir.path(), 3, 4);
    let before = all_files(&root.join("checked-square"));
    images(dir.path(), 3, 4);
    assert_eq!(before, all_files(&root.join("checked-square")));
    let args = DemoArgs { out: root, classes: 2, per_class: 4, seed: 7, px: "24..40".into() };
    assert!(message(demo_data::run(&args)).contains("checked-square already exists"));
    assert!(message(demo_data::run(&DemoArgs { classes: 99, ..args })).contains("expected 2 to 24 classes"));
}

#[test]
fn progress_counts_every_image() {
    let dir = tempfile::tempdir().unwrap();
    let root = images(dir.path(), 2, 10);
    let last = AtomicUsize::new(0);
    pack(&pack_args(&root, &dir.path().join("shards")), &|p| {
        last.fetch_max(p.images, Ordering::Relaxed);
        assert_eq!((p.num_images, p.num_shards), (20, 2));
        true
    })
    .unwrap();
    assert_eq!(last.into_inner(), 20);
}

/// Runs the test `name` of this file in a child process with `DRNAS_CHILD` set to `dir`.
fn child(name: &str, dir: &Path) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("DRNAS_CHILD", dir)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Helper process of `killed_pack_can_be_resumed`: packs DIR/images slowly.
#[test]
fn child_pack() {
    let Some(dir) = std::env::var_os("DRNAS_CHILD").map(PathBuf::from) else {
        return;
    };
    let args = PackArgs { threads: 1, ..pack_args(&dir.join("images"), &dir.join("killed")) };
    let _ = pack(&args, &|_| {
        std::thread::sleep(Duration::from_millis(10));
        true
    });
}

#[test]
fn killed_pack_can_be_resumed() {
    let (dir, shards) = packed();
    let killed = dir.path().join("killed");
    let finished = || (0..4).filter(|n| killed.join(format!("shard-0000{n}.bin")).exists()).count();
    for least in [1, 2] {
        let mut process = child("child_pack", dir.path());
        let started = Instant::now();
        while finished() < least && started.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(1));
        }
        process.kill().unwrap(); // SIGKILL
        process.wait().unwrap();
        assert!(finished() >= least && !killed.join("set.json").exists());
    }
    let report = pack(&pack_args(&dir.path().join("images"), &killed), &|_| true).unwrap();
    assert!((2..4).contains(&report.num_kept), "{}", report.num_kept);
    assert_eq!(all_files(&killed), all_files(&shards));
}

/// Helper process of `index_is_not_on_the_heap`: opens DIR and prints the growth of its anonymous memory, KiB.
#[test]
fn child_open() {
    let Some(dir) = std::env::var_os("DRNAS_CHILD").map(PathBuf::from) else {
        return;
    };
    let anonymous = || -> i64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let before = anonymous();
    let set = ShardSet::open(&dir).unwrap();
    println!("grew {} KiB with {} samples", anonymous() - before, set.len());
}

#[test]
fn index_is_not_on_the_heap() {
    use drnas_dist::data::set::{FORMAT, SetFile, content_hash, hex};
    use drnas_dist::data::shard::{Shard, ShardRecord, ShardWriter, VERSION, file_name};
    // 32 bytes per sample in the map: 41 MB for 1.28 million samples, shared by the ranks of a host.
    assert_eq!(size_of::<ShardRecord>(), 32);
    let dir = tempfile::tempdir().unwrap();
    let (num_shards, each) = (200, 1024);
    let mut hashes = Vec::new();
    for number in 0..num_shards {
        let mut writer = ShardWriter::create(dir.path(), number, each, 1).unwrap();
        for image in 0..each {
            writer.push(&format!("n01440764/n01440764_{image}.JPEG"), 0, (500, 375), b"image").unwrap();
        }
        writer.finish().unwrap();
        hashes.push(Shard::open(&dir.path().join(file_name(number))).unwrap().header().header_hash);
    }
    let classes = vec!["n01440764".to_owned()];
    let file = SetFile {
        format: FORMAT.into(),
        version: VERSION,
        per_class: vec![(num_shards * each) as u64],
        num_images: (num_shards * each) as u64,
        num_left_out: 0,
        num_shards,
        plan_hash: hex(1),
        content_hash: hex(content_hash(&classes, hashes.into_iter())),
        seed: 0,
        classes,
    };
    fs::write(dir.path().join("set.json"), serde_json::to_vec(&file).unwrap()).unwrap();
    let output = child("child_open", dir.path()).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let grown: i64 = text.split_once("grew ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    assert!(text.contains("with 204800 samples"), "{text}");
    assert!(grown < 1024, "{text}");
}
