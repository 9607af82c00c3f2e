//! Decoding, packing and loading of real photos.

#[path = "common/packing.rs"]
mod packing;
#[path = "common/shared.rs"]
mod shared;

use drnas_dist::cli::{PackArgs, SplitArgs};
use drnas_dist::data::Error;
use drnas_dist::data::decode::{DecodedImage, decode, decode_into};
use drnas_dist::data::pack::pack;
use drnas_dist::data::split;
use drnas_dist::data::{Augment, Crop, DecodePool, Loader, LoaderSpec, ShardSet};
use drnas_dist::random::{Purpose, stream};
use packing::{pack_args, split_args};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

fn means(picture: &DecodedImage) -> [f64; 3] {
    let mut sums = [0u64; 3];
    for pixel in picture.rgb().chunks_exact(3) {
        (0..3).for_each(|c| sums[c] += u64::from(pixel[c]));
    }
    sums.map(|sum| sum as f64 / f64::from(picture.width * picture.height))
}

#[test]
fn unusual_files_decode_as_in_pillow() {
    let Some(dir) = shared::unpacked("data/odd_files.tar") else {
        return;
    };
    let root = dir.path().join("odd_files");
    let expected = std::fs::read(root.join("expected.json")).unwrap();
    let expected: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&expected).unwrap();
    assert_eq!(expected.len(), 43);
    let (mut worst, mut num_failed) = (0.0f64, 0);
    for (name, about) in &expected {
        let decoded = decode(&std::fs::read(root.join(name)).unwrap());
        if about.get("error").is_some() {
            num_failed += 1;
            let fault = decoded.expect_err(name);
            let words = match name.split('/').next() {
                Some("truncated") => "truncated",
                Some("empty") => "empty",
                _ => "expected a JPEG, PNG or binary PPM",
            };
            assert!(fault.contains(words), "{name}: {fault}");
            continue;
        }
        let picture = decoded.unwrap_or_else(|fault| panic!("{name}: {fault}"));
        let number = |key: &str, at: usize| about[key][at].as_f64().unwrap();
        assert_eq!(
            [picture.width, picture.height].map(f64::from),
            [number("stored_size", 0), number("stored_size", 1)],
            "{name}"
        );
        for (channel, mean) in means(&picture).into_iter().enumerate() {
            let difference = (mean - number("rgb_mean", channel)).abs();
            worst = worst.max(difference);
            // Decoders differ in rounding and chroma upsampling, by much less than one grey level on average.
            assert!(difference < 0.5, "{name} channel {channel}: {mean}, {about}");
        }
    }
    assert_eq!(num_failed, 3);
    eprintln!("largest difference of a mean: {worst:.3} of 255");
}

#[test]
fn ycck_decodes_as_in_pillow() {
    let Some(dir) = shared::unpacked("data/odd_files.tar") else {
        return;
    };
    let root = dir.path().join("odd_files");
    // A CMYK file whose Adobe marker is changed to YCCK. Expected values from Pillow 13.0.0:
    //   b[b.find(b"Adobe") + 11] = 2; im = Image.open(io.BytesIO(b)).convert("RGB"); mean of each channel
    let mut bytes = std::fs::read(root.join("cmyk_jpeg/n02074367_dugong.JPEG")).unwrap();
    let at = bytes.windows(5).position(|w| w == b"Adobe").unwrap() + 11;
    assert_eq!(bytes[at], 0);
    bytes[at] = 2;
    let found = means(&decode(&bytes).unwrap());
    for (found, expected) in found.into_iter().zip([184.834, 122.369, 181.107]) {
        assert!((found - expected).abs() < 0.5, "{found} {expected}");
    }
}

#[test]
fn unusual_files_are_packed_without_the_broken_ones() {
    let Some(dir) = shared::unpacked("data/odd_files.tar") else {
        return;
    };
    let root = dir.path().join("odd_files");
    let out = dir.path().join("shards");
    let error = pack(&pack_args(&root, &out), &|_| true).unwrap_err();
    assert!(matches!(error, Error::BadImage { .. }), "{error}");
    // Three folders contain only a broken file, so their classes would be empty.
    let skip = PackArgs { skip_bad: true, overwrite: true, ..pack_args(&root, &out) };
    let error = pack(&skip, &|_| true).unwrap_err();
    assert!(matches!(error, Error::EmptyClass { .. }), "{error}");
    for class in ["truncated", "empty", "not_an_image"] {
        let to = root.join("grayscale").join(class).with_extension("jpg");
        let from = std::fs::read_dir(root.join(class)).unwrap().next().unwrap().unwrap().path();
        std::fs::rename(from, to).unwrap();
        std::fs::remove_dir(root.join(class)).unwrap();
    }
    let report = pack(&skip, &|_| true).unwrap();
    assert_eq!((report.num_images, report.left_out.len()), (40, 3));
    // The loader serves all of them.
    let set = Arc::new(ShardSet::open(&out).unwrap());
    let spec = LoaderSpec {
        px: 64,
        augment: Crop::Centre { resize: 72 }.into(),
        seed: 0,
        stream: 0,
        num_replicas: 1,
        replicas: 0..1,
        batch: 40,
        prefetch: 1,
        skip_bad: false,
    };
    let mut loader = Loader::open(set, spec, &DecodePool::new(2), 0).unwrap();
    let batch = loader.next().unwrap();
    assert_eq!(batch.indices.iter().collect::<HashSet<_>>().len(), 40);
}

#[test]
fn imagenette_is_split_packed_and_loaded() {
    let Some(dir) = shared::unpacked("data/imagenette224.tar") else {
        return;
    };
    let root = dir.path().join("imagenette224");
    let (root, lists) = (root.join("train"), dir.path().join("lists"));
    split::run(&SplitArgs { fractions: vec![0.6, 0.3], ..split_args(&root, &lists) }).unwrap();
    let packed = |name: &str| {
        let out = dir.path().join(name);
        let list = Some(lists.join(format!("{name}.txt")));
        pack(&PackArgs { list, ..pack_args(&root, &out) }, &|_| true).unwrap();
        Arc::new(ShardSet::open(&out).unwrap())
    };
    let started = Instant::now();
    let (train, valid) = (packed("train"), packed("valid"));
    let num_images = train.len() + valid.len();
    eprintln!("packed {:.0} images/s", num_images as f64 / started.elapsed().as_secs_f64());
    assert_eq!((train.num_classes(), valid.num_classes()), (10, 10));
    let names = |set: &ShardSet| -> HashSet<String> {
        (0..set.len()).map(|i| set.sample(i).unwrap().name.to_owned()).collect()
    };
    assert!(names(&train).is_disjoint(&names(&valid)));
    for (label, (a, b)) in train.per_class().into_iter().zip(valid.per_class()).enumerate() {
        let class = root.join(&train.classes()[label]);
        let all = std::fs::read_dir(class).unwrap().count() as f64;
        assert_eq!((a, b), ((0.6 * all).round() as u64, (0.3 * all).round() as u64));
    }
    // Both streams on the same threads, for a whole epoch of the smaller one.
    let pool = DecodePool::new(2);
    let open = |set: &Arc<ShardSet>, stream| {
        let spec = LoaderSpec {
            px: 64,
            augment: Augment { flip: true, ..Crop::RandomResized { area_min: 0.08 }.into() },
            seed: 0,
            stream,
            num_replicas: 2,
            replicas: 0..2,
            batch: 16,
            prefetch: 2,
            skip_bad: false,
        };
        Loader::open(set.clone(), spec, &pool, 0).unwrap()
    };
    let (mut weights, mut architecture) = (open(&train, 0), open(&valid, 1));
    let mut seen = HashSet::new();
    for _ in 0..2 * architecture.steps_per_epoch() {
        weights.next().unwrap();
        seen.extend(architecture.next().unwrap().indices);
    }
    assert_eq!(seen.len(), 32 * architecture.steps_per_epoch() as usize);
}

#[test]
fn full_size_photos_decode_and_crop() {
    let Some(dir) = shared::unpacked("data/imagenet_fullsize.tar") else {
        return;
    };
    let root = dir.path().join("imagenet_fullsize");
    let out = dir.path().join("shards");
    let started = Instant::now();
    let report = pack(&PackArgs { threads: 1, ..pack_args(&root, &out) }, &|_| true).unwrap();
    assert_eq!(report.num_images, 148);
    eprintln!("pack, 1 thread, decoding: {:.0} images/s", 148.0 / started.elapsed().as_secs_f64());
    let set = ShardSet::open(&out).unwrap();
    let augment = Augment { flip: true, ..Crop::RandomResized { area_min: 0.08 }.into() };
    let (mut picture, mut pixels) = (DecodedImage::default(), vec![0; 3 * 224 * 224]);
    let mut rates = Vec::new();
    for round in 0..3 {
        let started = Instant::now();
        for index in 0..set.len() {
            let mut rng = stream(0, Purpose::Augment, &[round, index as u64]);
            decode_into(set.sample(index).unwrap().bytes, &mut picture).unwrap();
            augment.apply(&picture, 224, &mut rng, &mut pixels).unwrap();
        }
        rates.push(format!("{:.0}", set.len() as f64 / started.elapsed().as_secs_f64()));
    }
    eprintln!("read, decode, RandomResizedCrop 224, 1 thread: {} images/s", rates.join(", "));
}
