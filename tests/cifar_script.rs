//! `datasets/cifar10_from_jpeg.py`: converts image files and order lists back to CIFAR-10's binary files.

#[path = "common/pillow.rs"]
mod pillow;
#[path = "common/shared.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod shared;

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs the script; returns the content of the five training files.
fn rebuild(python: &Path, pack: &Path, out: &Path) -> Vec<u8> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/cifar10_from_jpeg.py");
    let output = Command::new(python).arg(script).arg(pack).arg(out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |batch| fs::read(out.join(format!("data_batch_{batch}.bin"))).unwrap();
    (1..=5).flat_map(read).collect()
}

fn interleaved(number: usize) -> Vec<u8> {
    (0..3072).map(|at| (at * 7 + at / 96 * 31 + number * 101) as u8).collect()
}

#[test]
fn pixels_and_labels_are_placed_correctly() {
    let Some(python) = pillow::python() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (pack, out) = (dir.path().join("pack"), dir.path().join("out"));
    let mut orders = [String::new(), String::new()];
    // Listed in reverse: the indices determine the order.
    for number in (0..12usize).rev() {
        let part = usize::from(number >= 10);
        let class = ["truck", "airplane"][number % 2];
        let name = format!("{}/{class}/{number}.png", ["train", "test"][part]);
        let index = if part == 0 { number } else { 7 * number };
        orders[part].push_str(&format!("{index} {name}\n"));
        let file = pack.join(&name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        image::save_buffer(&file, &interleaved(number), 32, 32, image::ExtendedColorType::Rgb8).unwrap();
    }
    fs::write(pack.join("order_train.txt"), &orders[0]).unwrap();
    fs::write(pack.join("order_test.txt"), &orders[1]).unwrap();
    let mut records = rebuild(&python, &pack, &out);
    records.extend(fs::read(out.join("test_batch.bin")).unwrap());
    assert_eq!(records.len(), 12 * 3073);
    for (number, record) in records.chunks_exact(3073).enumerate() {
        assert_eq!(record[0], [9, 0][number % 2]);
        let rgb = interleaved(number);
        let planar: Vec<u8> = (0..3072).map(|at| rgb[3 * (at % 1024) + at / 1024]).collect();
        assert_eq!(record[1..], planar, "record {number}");
    }
    let names = fs::read_to_string(out.join("batches.meta.txt")).unwrap();
    assert_eq!(names.lines().count(), 10);
}

#[test]
fn real_images_are_in_the_official_order() {
    let (Some(tar), Some(exact)) =
        (shared::path("data/cifar10_jpeg_55000.tar.xz"), shared::path("data/cifar10_exact_first200.bin"))
    else {
        return;
    };
    let Some(python) = pillow::python() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let pack = dir.path().join("cifar10_jpeg");
    let unpack = |names: &[String]| shared::unpack(&tar, dir.path(), names);
    // Only the first 200 images: the whole set takes a minute.
    unpack(&["cifar10_jpeg/order_train.txt".into()]);
    let order = fs::read_to_string(pack.join("order_train.txt")).unwrap();
    let first: Vec<&str> = order.lines().take(200).collect();
    let names: Vec<String> =
        first.iter().map(|line| format!("cifar10_jpeg/{}", line.split_once(' ').unwrap().1)).collect();
    unpack(&names);
    fs::write(pack.join("order_train.txt"), first.join("\n")).unwrap();
    fs::write(pack.join("order_test.txt"), "").unwrap();

    let records = rebuild(&python, &pack, &dir.path().join("out"));
    let exact = fs::read(exact).unwrap();
    assert_eq!(records.len(), exact.len());
    let mut worst = 0.0f64;
    for (number, (found, exact)) in records.chunks_exact(3073).zip(exact.chunks_exact(3073)).enumerate() {
        assert_eq!(found[0], exact[0], "label of record {number}");
        let squares = found[1..].iter().zip(&exact[1..]).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
        let mean = squares.sum::<f64>() / 3072.0;
        worst = worst.max(mean);
        // The JPEG error is at most 181 here; a different image of the same class differs by at least 637.
        assert!(mean < 400.0, "record {number}: mean squared difference {mean}");
    }
    eprintln!("largest mean squared difference: {worst:.1}");
}
