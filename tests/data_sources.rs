//! Sources other than folders of images: CIFAR's binary files, pickled ImageNet16 batches, published split lists.

#[path = "common/packing.rs"]
mod packing;
#[path = "common/shared.rs"]
mod shared;

use drnas_dist::cli::{PackArgs, SourceArgs, SourceFormat, SplitArgs};
use drnas_dist::data::Error;
use drnas_dist::data::decode::decode;
use drnas_dist::data::pack::pack;
use drnas_dist::data::pickle::{self, PickledBatch};
use drnas_dist::data::source::Source;
use drnas_dist::data::split;
use drnas_dist::data::{Crop, DecodePool, ShardSet, TestLoader, TestSpec};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

fn pack_args(root: &Path, out: &Path, source: SourceArgs) -> PackArgs {
    PackArgs { source, shard_images: 16, threads: 2, ..packing::pack_args(root, out) }
}

fn packed(root: &Path, source: SourceArgs) -> Result<(TempDir, ShardSet), Error> {
    let dir = tempfile::tempdir().unwrap();
    pack(&pack_args(root, dir.path(), source), &|_| true)?;
    let set = ShardSet::open(dir.path())?;
    Ok((dir, set))
}

fn refusal(root: &Path, source: SourceArgs) -> String {
    packed(root, source).map(|_| ()).unwrap_err().to_string()
}

/// Byte `at` of image `image`: an arbitrary function that distinguishes images, colours and pixels.
fn byte(image: usize, at: usize) -> u8 {
    (image * 31 + at * 7 + at / 256 * 101) as u8
}

fn planar(image: usize, px: usize) -> Vec<u8> {
    (0..3 * px * px).map(|at| byte(image, at)).collect()
}

/// Planar pixels of sample `index`.
fn pixels(set: &ShardSet, index: usize) -> Vec<u8> {
    let picture = decode(set.sample(index).unwrap().bytes).unwrap();
    (0..3)
        .flat_map(|channel| picture.rgb().chunks_exact(3).map(move |p| p[channel]).collect::<Vec<_>>())
        .collect()
}

fn labels(set: &ShardSet) -> Vec<u32> {
    (0..set.len()).map(|index| set.sample(index).unwrap().label).collect()
}

/// CIFAR-10's files with `each` records per file; image n has label n mod 3.
fn cifar10(each: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let records = |first: usize| -> Vec<u8> {
        (first..first + each)
            .flat_map(|image| [vec![(image % 3) as u8], planar(image, 32)].concat())
            .collect()
    };
    for batch in 0..5 {
        fs::write(dir.path().join(format!("data_batch_{}.bin", batch + 1)), records(batch * each)).unwrap();
    }
    fs::write(dir.path().join("test_batch.bin"), records(1000)).unwrap();
    fs::write(dir.path().join("batches.meta.txt"), "owl\ncat\nfly\n\n").unwrap();
    dir
}

#[test]
fn cifar10_keeps_every_pixel_and_the_order() {
    let root = cifar10(8);
    let (_dir, set) = packed(root.path(), SourceArgs::default()).unwrap();
    // Not sorted: labels are those in the files.
    assert_eq!(set.classes(), ["owl", "cat", "fly"]);
    assert_eq!(set.per_class(), [14, 13, 13]);
    for image in 0..40 {
        let sample = set.sample(image).unwrap();
        assert_eq!(sample.label as usize, image % 3);
        assert_eq!(sample.name, format!("{}/train-{image:06}.ppm", set.classes()[image % 3]));
        assert!(sample.bytes.starts_with(b"P6\n32 32\n255\n"));
        assert_eq!(pixels(&set, image), planar(image, 32), "image {image}");
    }
    let (_dir, test) = packed(root.path(), SourceArgs { test: true, ..Default::default() }).unwrap();
    assert_eq!((test.len(), test.sample(2).unwrap().name), (8, "owl/test-000002.ppm"));
    assert_eq!(pixels(&test, 7), planar(1007, 32));
    let (_dir, two) = packed(root.path(), SourceArgs { classes: Some(2), ..Default::default() }).unwrap();
    assert_eq!((two.classes().len(), two.len()), (2, 27));
    assert_eq!(pixels(&two, 2), planar(3, 32));
}

#[test]
fn changed_pixels_are_packed_again() {
    let (root, out) = (cifar10(8), tempfile::tempdir().unwrap());
    let args = pack_args(root.path(), out.path(), SourceArgs::default());
    assert_eq!(pack(&args, &|_| true).unwrap().num_kept, 0);
    assert_eq!(pack(&args, &|_| true).unwrap().num_kept, 3);
    // Image 17 is in the third file and the second shard; the file keeps its size.
    let file = root.path().join("data_batch_3.bin");
    let mut records = fs::read(&file).unwrap();
    records[3073 + 1] ^= 1;
    fs::write(&file, records).unwrap();
    assert_eq!(pack(&args, &|_| true).unwrap().num_kept, 2);
    let set = ShardSet::open(out.path()).unwrap();
    assert_eq!(pixels(&set, 17)[0], planar(17, 32)[0] ^ 1);
    assert_eq!(pack(&args, &|_| true).unwrap().num_kept, 3);
}

#[test]
fn cifar100_uses_the_fine_label() {
    let dir = tempfile::tempdir().unwrap();
    let records: Vec<u8> =
        (0..12usize).flat_map(|image| [vec![9, (image % 4) as u8], planar(image, 32)].concat()).collect();
    fs::write(dir.path().join("train.bin"), &records).unwrap();
    fs::write(dir.path().join("test.bin"), &records[..4 * 3074]).unwrap();
    fs::write(dir.path().join("fine_label_names.txt"), "a\nb\nc\nd\n").unwrap();
    let (_dir, set) = packed(dir.path(), SourceArgs::default()).unwrap();
    assert_eq!(labels(&set), (0..12).map(|image| image % 4).collect::<Vec<u32>>());
    assert_eq!(pixels(&set, 11), planar(11, 32));
    let (_dir, test) = packed(dir.path(), SourceArgs { test: true, ..Default::default() }).unwrap();
    assert_eq!(test.len(), 4);
}

#[test]
fn parts_are_selected_by_range_split_file_and_list() {
    let root = cifar10(8);
    let numbers = |set: &ShardSet| -> Vec<usize> {
        let name = |index| set.sample(index).unwrap().name.to_owned();
        (0..set.len()).map(|i| name(i)[10..16].parse().unwrap()).collect()
    };
    let range = SourceArgs { range: Some(5..11), ..Default::default() };
    assert_eq!(numbers(&packed(root.path(), range).unwrap().1), [5, 6, 7, 8, 9, 10]);

    let file = root.path().join("split.txt");
    let text = r#"{ "train" : ["int", ["9", "0", "4", "38"]], "valid": [1, 2, 3], "odd": ["int", ["x"]], "far": [0, 1, 40], "twice": [1, 2, 1] }"#;
    fs::write(&file, text).unwrap();
    let of = |part: &str| SourceArgs {
        split_file: Some(file.clone()),
        part: Some(part.into()),
        ..Default::default()
    };
    let (_dir, train) = packed(root.path(), of("train")).unwrap();
    assert_eq!(numbers(&train), [0, 4, 9, 38]);
    assert_eq!(pixels(&train, 3), planar(38, 32));
    assert_eq!(numbers(&packed(root.path(), of("valid")).unwrap().1), [1, 2, 3]);
    assert!(
        refusal(root.path(), of("xvalid"))
            .contains("no list \"xvalid\"; available: far, odd, train, twice, valid")
    );
    assert!(refusal(root.path(), of("odd")).contains("\"odd\": expected a list of numbers"));
    assert!(refusal(root.path(), of("far")).contains("image 40 is not in 0..40"));
    assert!(refusal(root.path(), of("twice")).contains("image 1 is listed twice"));

    // Two seeded halves as lists of names: balanced and disjoint.
    let lists = root.path().join("lists");
    let halves = SplitArgs {
        fractions: vec![0.5, 0.5],
        names: vec!["a".into(), "b".into()],
        seed: 1,
        ..packing::split_args(root.path(), &lists)
    };
    split::run(&halves).unwrap();
    let mut all = Vec::new();
    for name in ["a.txt", "b.txt"] {
        let dir = tempfile::tempdir().unwrap();
        let args = PackArgs {
            list: Some(lists.join(name)),
            ..pack_args(root.path(), dir.path(), SourceArgs::default())
        };
        pack(&args, &|_| true).unwrap();
        let set = ShardSet::open(dir.path()).unwrap();
        assert!(numbers(&set).is_sorted() && set.per_class().iter().all(|count| (6..=7).contains(count)));
        all.extend(numbers(&set));
    }
    all.sort_unstable();
    assert!(all.windows(2).all(|pair| pair[0] < pair[1]) && all.len() >= 39, "{all:?}");
    fs::write(lists.join("a.txt"), "owl/train-000000.ppm\nowl/train-000001.ppm\n").unwrap();
    let list = lists.join("a.txt");
    let text =
        Source::open(root.path(), &Default::default(), Some(&list)).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("a.txt line 2: no image \"owl/train-000001.ppm\""), "{text}");
}

#[test]
fn invalid_sources_are_reported() {
    let root = cifar10(2);
    let at = |name: &str| root.path().join(name);
    let good = fs::read(at("data_batch_3.bin")).unwrap();
    fs::write(at("data_batch_3.bin"), &good[..good.len() - 1]).unwrap();
    let text = refusal(root.path(), Default::default());
    assert!(
        text.contains("data_batch_3.bin: 6145 bytes is not a multiple of the record size 3073"),
        "{text}"
    );
    fs::remove_file(at("data_batch_3.bin")).unwrap();
    assert!(refusal(root.path(), Default::default()).contains("open") && !at("shard-00000.bin").exists());
    let mut bad = good.clone();
    bad[0] = 3;
    fs::write(at("data_batch_3.bin"), bad).unwrap();
    assert!(
        refusal(root.path(), Default::default()).contains("image 4 has label 3, but there are 3 classes")
    );
    fs::write(at("data_batch_3.bin"), good).unwrap();
    let five = SourceArgs { classes: Some(5), ..Default::default() };
    assert!(refusal(root.path(), five).contains("--classes 5: the data set has 3 classes"));
    for (range, text) in [
        (8..11, "--range 8..11: image 10 is not in 0..10"),
        (20..30, "--range 20..30: image 20 is not in 0..10"),
    ] {
        let found = refusal(root.path(), SourceArgs { range: Some(range), ..Default::default() });
        assert!(found.contains(text), "{found}");
    }
    fs::remove_file(at("batches.meta.txt")).unwrap();
    assert!(refusal(root.path(), Default::default()).contains("read the class names"));

    // These options do not apply to a folder of images.
    let folder = SourceArgs { test: true, format: Some(SourceFormat::Folder), ..Default::default() };
    assert!(refusal(root.path(), folder).contains("--test applies to CIFAR"));
}

/// A batch as pickled by Python 3 with protocol 3: `pickle.dumps({"data": a, "labels": [...], "mean": ...}, 3)` after
/// `pickletools.optimize`, except that memo entries are kept.
fn pickled(images: &[usize], labels: &[u16], px: usize) -> Vec<u8> {
    let mut out =
        b"\x80\x03}q\x00(X\x04\x00\x00\x00dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02".to_vec();
    out.extend(b"cnumpy\nndarray\nq\x03K\x00\x85q\x04C\x01bq\x05\x87q\x06Rq\x07(K\x01");
    out.extend(
        [b"K".as_slice(), &[images.len() as u8], b"M", &(3 * px as u16 * px as u16).to_le_bytes()].concat(),
    );
    out.extend(b"\x86q\x08cnumpy\ndtype\nq\x09X\x02\x00\x00\x00u1q\x0a\x89\x88\x87q\x0bRq\x0c");
    out.extend(b"(K\x03X\x01\x00\x00\x00|q\x0dNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89B");
    out.extend(((images.len() * 3 * px * px) as u32).to_le_bytes());
    images.iter().for_each(|image| out.extend(planar(*image, px)));
    out.extend(b"q\x0ftq\x10bX\x06\x00\x00\x00labelsq\x11]q\x12(");
    labels.iter().for_each(|label| out.extend([b"M".as_slice(), &label.to_le_bytes()].concat()));
    out.extend(b"eX\x04\x00\x00\x00meanq\x13G\x3f\xf0\x00\x00\x00\x00\x00\x00u.");
    out
}

/// ImageNet16's files with two images per file; image n has label n mod 5 + 1.
fn imagenet16() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let label = |image: usize| (image % 5 + 1) as u16;
    for batch in 0..10 {
        let images = [2 * batch, 2 * batch + 1];
        let bytes = pickled(&images, &images.map(label), 16);
        fs::write(dir.path().join(format!("train_data_batch_{}", batch + 1)), bytes).unwrap();
    }
    let images: Vec<usize> = (100..105).collect();
    let labels: Vec<u16> = images.iter().copied().map(label).collect();
    fs::write(dir.path().join("val_data"), pickled(&images, &labels, 16)).unwrap();
    dir
}

#[test]
fn imagenet16_keeps_the_first_classes() {
    let root = imagenet16();
    let three = |test| SourceArgs { test, classes: Some(3), ..Default::default() };
    let (_dir, set) = packed(root.path(), three(false)).unwrap();
    assert_eq!(set.classes(), ["0001", "0002", "0003"]);
    assert_eq!(labels(&set), [0, 1, 2].repeat(4));
    // Image numbers count only kept images, as in the published lists of ImageNet16-120.
    assert_eq!(set.sample(3).unwrap().name, "0001/train-000003.ppm");
    assert_eq!(pixels(&set, 3), planar(5, 16));
    assert_eq!(pixels(&set, 11), planar(17, 16));
    assert_eq!(labels(&packed(root.path(), three(true)).unwrap().1), [0, 1, 2]);
    let (_dir, all) = packed(root.path(), Default::default()).unwrap();
    assert_eq!((all.classes().len(), all.len()), (5, 20));
    fs::write(root.path().join("val_data"), pickled(&[1, 2], &[1, 0], 16)).unwrap();
    assert!(refusal(root.path(), three(true)).contains("val_data: image 1 has label 0"));
}

#[test]
fn pickles_are_parsed_and_never_executed() {
    let good = pickled(&[1, 2, 3], &[7, 1, 300], 4);
    let batch = pickle::read(&good).unwrap();
    assert_eq!((batch.rows, batch.columns, batch.labels.as_slice()), (3, 48, [7, 1, 300].as_slice()));
    assert_eq!(good[batch.data], [planar(1, 4), planar(2, 4), planar(3, 4)].concat());

    // os.system("touch DIR/run"), which `pickle.load` would execute.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run");
    let command = format!("touch {}", file.display());
    let mut hostile = b"\x80\x03cos\nsystem\nX".to_vec();
    hostile.extend((command.len() as u32).to_le_bytes());
    hostile.extend([command.as_bytes(), b"\x85R."].concat());
    assert!(pickle::read(&hostile).unwrap_err().contains("not a dictionary"));
    assert!(!file.exists());

    let swapped = |from: &[u8], to: &[u8]| {
        let at = good.windows(from.len()).position(|part| part == from).unwrap();
        pickle::read(&[&good[..at], to, &good[at + from.len()..]].concat()).unwrap_err()
    };
    assert!(swapped(b"labels", b"lebals").contains("no entry \"labels\""));
    assert!(swapped(b"dataq", b"dbtaq").contains("no entry \"data\""));
    assert!(swapped(b"u1q", b"i1q").contains("not a two-dimensional, row-major array of uint8"));
    assert!(
        swapped(b"_reconstruct", b"_reconstruqt").contains("not a two-dimensional, row-major array of uint8")
    );
    assert!(
        swapped(b"b\x89B", b"b\x88B").contains("not a two-dimensional, row-major array of uint8"),
        "columns first"
    );
    assert!(
        swapped(b"(K\x01K\x03M", b"(K\x01K\x02M").contains("not a two-dimensional, row-major array of uint8"),
        "rows"
    );
    assert!(swapped(b"M\x07\x00", b"").contains("3 images and 2 labels"));
    assert!(swapped(b"M\x07\x00", b"G\0\0\0\0\0\0\0\0").contains("not a list of integers"));
    assert!(swapped(b"\x80\x03", b"(d").contains("not a pickle of protocol"));
    assert!(swapped(b"}q\x00", b"\x81q\x00").contains("opcode 0x81 at byte 2"));
}

/// Two images of 2 x 2 pixels as pickled by Python 3 and numpy 2 with protocol 5: `pickle.dumps(...)` after
/// `pickletools.optimize`, without the frame.
fn pickled_with_protocol_5(order: u8) -> Vec<u8> {
    let mut out = b"\x80\x05}(\x8c\x04data\x8c\x13numpy._core.numeric\x8c\x0b_frombuffer\x93(\x96".to_vec();
    out.extend(24u64.to_le_bytes());
    out.extend([planar(1, 2), planar(2, 2)].concat());
    out.extend(b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02u1\x89\x88\x87R");
    out.extend(b"(K\x03\x8c\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbK\x02K\x0c\x86\x8c\x01");
    out.push(order);
    out.extend(b"tR\x8c\x06labels](K\x01K\x02eu.");
    out
}

#[test]
fn arrays_of_protocol_5_are_read() {
    let good = pickled_with_protocol_5(b'C');
    let batch = pickle::read(&good).unwrap();
    assert_eq!((batch.rows, batch.columns, batch.labels.as_slice()), (2, 12, [1, 2].as_slice()));
    assert_eq!(good[batch.data], [planar(1, 2), planar(2, 2)].concat());
    assert!(
        pickle::read(&pickled_with_protocol_5(b'F'))
            .unwrap_err()
            .contains("not a two-dimensional, row-major array of uint8")
    );
}

#[test]
fn arbitrary_pickles_never_panic() {
    for good in [pickled(&[1, 2], &[1, 2], 2), pickled_with_protocol_5(b'C')] {
        for at in 0..good.len() {
            let _ = pickle::read(&good[..at]);
            for value in 0..=255 {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _: Result<PickledBatch, String> = pickle::read(&bytes);
            }
        }
    }
}

#[test]
fn real_cifar100_files_are_packed() {
    let Some(dir) = shared::unpacked("data/cifar100_layout.tar.xz") else {
        return;
    };
    let root = dir.path().join("cifar100_layout");
    let (_dir, test) = packed(&root, SourceArgs { test: true, ..Default::default() }).unwrap();
    assert_eq!(test.per_class(), [10; 100]);
    assert_eq!(test.classes()[0], "n02124075_Egyptian_cat");
    let records = fs::read(root.join("test.bin")).unwrap();
    for (index, record) in records.chunks_exact(3074).enumerate() {
        assert_eq!(test.sample(index).unwrap().label, u32::from(record[1]));
        assert_eq!(pixels(&test, index), record[2..]);
    }
}

#[test]
fn real_imagenet16_batches_are_packed() {
    let Some(dir) = shared::unpacked("data/imagenet16_layout.tar.xz") else {
        return;
    };
    let root = dir.path().join("imagenet16_layout");
    // Batches 9 and 10 use a different pickle protocol.
    let first = |test| SourceArgs { test, classes: Some(120), ..Default::default() };
    let (_dir, train) = packed(&root, first(false)).unwrap();
    assert_eq!(train.per_class(), [80; 120]);
    let (_dir, test) = packed(&root, first(true)).unwrap();
    assert_eq!(test.per_class(), [10; 120]);
    // Published channel means of all 200 classes; those of the first 120 classes are close.
    let mut sums = [0u64; 3];
    for index in 0..train.len() {
        let planar = pixels(&train, index);
        (0..3).for_each(|c| {
            sums[c] += planar[256 * c..256 * (c + 1)].iter().map(|v| u64::from(*v)).sum::<u64>()
        });
    }
    for (sum, expected) in sums.into_iter().zip([122.99, 114.73, 101.77]) {
        let mean = sum as f64 / (256.0 * train.len() as f64);
        assert!((mean - expected).abs() < 6.0, "{mean} {expected}");
    }
}

#[test]
fn published_split_lists_are_read() {
    let Some(lists) = shared::unpacked("data/nasbench201_splits.tar.xz") else {
        return;
    };
    // 50,000 records of one class, in sparse files.
    let root = tempfile::tempdir().unwrap();
    for batch in 1..=5 {
        let file = fs::File::create(root.path().join(format!("data_batch_{batch}.bin"))).unwrap();
        file.set_len(10_000 * 3073).unwrap();
    }
    fs::write(root.path().join("batches.meta.txt"), "one\n").unwrap();
    let open = |part: &str| {
        let split_file = Some(lists.path().join("splits/cifar-split.txt"));
        let args = SourceArgs { split_file, part: Some(part.into()), ..Default::default() };
        let source = Source::open(root.path(), &args, None).unwrap();
        (0..source.len()).map(|index| source.name(index)).collect::<Vec<_>>()
    };
    let (train, valid) = (open("train"), open("valid"));
    assert_eq!((train.len(), valid.len()), (25_000, 25_000));
    assert_eq!((train[1].as_str(), valid[0].as_str()), ("one/train-000005.ppm", "one/train-000001.ppm"));
    let all: std::collections::HashSet<&String> = train.iter().chain(&valid).collect();
    assert_eq!(all.len(), 50_000);
}

/// All (index, label, pixels) that `size` ranks serve together.
fn served(set: &Arc<ShardSet>, size: usize, batch: usize) -> Vec<(u32, i64, Vec<u8>)> {
    let pool = DecodePool::new(2);
    let mut all = Vec::new();
    for rank in 0..size {
        let augment = Crop::Centre { resize: 32 }.into();
        let spec = TestSpec { px: 32, augment, rank, size, batch, prefetch: 1 };
        let mut loader = TestLoader::open(set.clone(), spec, &pool).unwrap();
        let mut num_batches = loader.num_left();
        while let Some(part) = loader.next().unwrap() {
            num_batches -= 1;
            let labels = Vec::<i64>::try_from(&part.labels).unwrap();
            assert!(part.indices.len() == batch || loader.num_left() == 0, "a short batch before the last");
            assert_eq!(part.images.size(), [part.indices.len() as i64, 3, 32, 32]);
            let images = Vec::<u8>::try_from(&part.images.flatten(0, -1)).unwrap();
            for ((index, label), image) in part.indices.iter().zip(labels).zip(images.chunks_exact(3072)) {
                all.push((*index, label, image.to_vec()));
            }
        }
        assert_eq!(num_batches, 0);
        assert!(loader.next().unwrap().is_none());
    }
    all
}

#[test]
fn ranks_together_serve_every_test_image_once() {
    let root = cifar10(8);
    for num_images in [3, 5, 12, 13, 39, 40] {
        let source = SourceArgs { range: Some(0..num_images), ..Default::default() };
        let (_dir, set) = packed(root.path(), source).unwrap();
        let set = Arc::new(set);
        for (size, batch) in [(1, 4), (2, 4), (3, 4), (4, 4), (4, 1), (3, 50), (7, 3)] {
            let mut all = served(&set, size, batch);
            all.sort_unstable();
            assert_eq!(all.len(), num_images as usize, "{num_images} images, {size} ranks of {batch}");
            for (index, (found, label, image)) in all.iter().enumerate() {
                assert_eq!((*found as usize, *label as usize), (index, index % 3));
                assert_eq!(*image, planar(index, 32));
            }
        }
    }
}

#[test]
fn impossible_test_loaders_are_refused() {
    let root = cifar10(8);
    let (_dir, set) = packed(root.path(), Default::default()).unwrap();
    let set = Arc::new(set);
    let pool = DecodePool::new(1);
    let spec = |rank, batch, px| {
        let augment = Crop::Centre { resize: 32 }.into();
        let spec = TestSpec { px, augment, rank, size: 2, batch, prefetch: 1 };
        TestLoader::open(set.clone(), spec, &pool).map(|_| ()).unwrap_err().to_string()
    };
    assert!(spec(2, 1, 32).contains("expected a rank below 2, found 2"));
    assert!(spec(0, 0, 32).contains("found 0 images and"));
    assert!(spec(0, 1, 0).contains("and 0 px"));
}
