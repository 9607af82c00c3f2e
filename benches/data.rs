//! Times loading of one image on one thread: `cargo bench --bench data -- [IMAGE.jpg ...]`.
//!
//! Without files: generated images of CIFAR size, and one generated JPEG of ImageNet size. Prints medians of rounds, in CPU
//! time of the thread, which other load disturbs less.

#[path = "../tests/common/packing.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod packing;

use drnas_dist::cli::{PackArgs, SourceArgs};
use drnas_dist::data::augment::jitter::Adjustment;
use drnas_dist::data::decode::{DecodedImage, decode, decode_into};
use drnas_dist::data::pack::pack;
use drnas_dist::data::{Augment, Crop, DecodePool, Jitter, Loader, LoaderSpec, ShardSet};
use drnas_dist::random::{Purpose, stream};
use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};
use std::sync::Arc;
use std::time::Instant;

const ROUNDS: usize = 15;

fn main() {
    let files: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let cifar = [b"P6\n32 32\n255\n".to_vec(), noise(32, 32)].concat();
    let jpegs: Vec<Vec<u8>> = match files.as_slice() {
        [] => vec![generated_jpeg(500, 375)],
        files => files.iter().map(|file| std::fs::read(file).expect("the file can be read")).collect(),
    };

    let pad = Augment { flip: true, ..Crop::Pad { pad: 4 }.into() };
    time_augment("CIFAR: read, pad crop, flip", std::slice::from_ref(&cifar), 32, pad, 2000);
    time_augment("CIFAR: the same with cutout", &[cifar], 32, Augment { cutout: 16, ..pad }, 2000);

    loader(pad);

    let random = Augment { flip: true, ..Crop::RandomResized { area_min: 0.08 }.into() };
    let calls = jpegs.len().max(20);
    time_augment("224: decode, RandomResizedCrop, flip", &jpegs, 224, random, calls);
    let strong = Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.2 };
    time_augment(
        "224: the same with colour jitter",
        &jpegs,
        224,
        Augment { jitter: strong, ..random },
        calls,
    );
    time_augment(
        "224: decode, resize 256, centre crop",
        &jpegs,
        224,
        Crop::Centre { resize: 256 }.into(),
        calls,
    );

    let (mut before, mut planar) = (vec![0; 3 * 224 * 224], vec![0; 3 * 224 * 224]);
    random
        .apply(&decode(&jpegs[0]).unwrap(), 224, &mut stream(0, Purpose::Augment, &[]), &mut before)
        .unwrap();
    for tone in [
        Adjustment::Brightness(0.8),
        Adjustment::Contrast(1.2),
        Adjustment::Saturation(0.8),
        Adjustment::Hue(0.1),
    ] {
        let alone = median(20, || {
            planar.copy_from_slice(&before);
            tone.apply(&mut planar);
        });
        print_rate(&format!("224: {tone:?} alone"), alone);
    }
}

/// Prints the wall-clock images/s of a whole loader with one decode thread on CIFAR-sized images.
fn loader(augment: Augment) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (root, out) = (dir.path().join("cifar"), dir.path().join("shards"));
    std::fs::create_dir(&root).expect("a folder in it");
    let records = [vec![0], noise(32, 32)].concat().repeat(4096);
    std::fs::write(root.join("test_batch.bin"), records).expect("the file can be written");
    std::fs::write(root.join("batches.meta.txt"), "one\n").expect("the file can be written");
    let source = SourceArgs { test: true, ..Default::default() };
    pack(&PackArgs { source, ..packing::pack_args(&root, &out) }, &|_| true).expect("packed");
    let set = Arc::new(ShardSet::open(&out).expect("a set"));
    let (num_replicas, replicas, batch) = (1, 0..1, 64);
    let (seed, stream, prefetch, skip_bad) = (0, 0, 2, false);
    let spec =
        LoaderSpec { px: 32, augment, seed, stream, num_replicas, replicas, batch, prefetch, skip_bad };
    let mut loader = Loader::open(set, spec, &DecodePool::new(1), 0).expect("a loader");
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            (0..64).for_each(|_| drop(loader.next().expect("a batch")));
            64.0 * 64.0 / started.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let (least, most) = (rates[0], rates[ROUNDS - 1]);
    println!(
        "CIFAR: whole loader, 1 decode thread     {:.0} images/s ({least:.0} to {most:.0})",
        rates[ROUNDS / 2]
    );
}

/// Times decoding and augmentation of `images`, `calls` per round.
fn time_augment(what: &str, images: &[Vec<u8>], px: u32, augment: Augment, calls: usize) {
    let (mut decoded, mut out) = (DecodedImage::default(), vec![0; 3 * (px * px) as usize]);
    let mut number = 0;
    let seconds = median(calls, || {
        let mut rng = stream(0, Purpose::Augment, &[number as u64]);
        decode_into(&images[number % images.len()], &mut decoded).unwrap();
        augment.apply(&decoded, px, &mut rng, &mut out).unwrap();
        number += 1;
    });
    print_rate(what, seconds);
}

fn print_rate(what: &str, (median, least, most): (f64, f64, f64)) {
    let rate = 1.0 / median;
    println!(
        "{what:<40} {:9.1} us ({:.1} to {:.1}), {rate:8.0} images/s per thread",
        1e6 * median,
        1e6 * least,
        1e6 * most
    );
}

/// Returns seconds per call: median, minimum and maximum of the rounds.
fn median(calls: usize, mut call: impl FnMut()) -> (f64, f64, f64) {
    call();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let started = cpu_s();
            (0..calls).for_each(|_| call());
            (cpu_s() - started) / calls as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    (rounds[ROUNDS / 2], rounds[0], rounds[ROUNDS - 1])
}

/// Returns the CPU time of this thread, seconds.
fn cpu_s() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn noise(width: usize, height: usize) -> Vec<u8> {
    (0..3 * width * height).map(|at| (at * at / 7 % 256) as u8).collect()
}

/// Returns a JPEG with smooth and with detailed regions.
fn generated_jpeg(width: u32, height: u32) -> Vec<u8> {
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let busy = if (x / 50 + y / 50) % 2 == 0 { (x * y) % 64 } else { 0 };
            pixels.extend([x / 2 + busy, y / 2 + busy, (x + y) / 4 + busy].map(|v| v.min(255) as u8));
        }
    }
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90)
        .encode(&pixels, width, height, ExtendedColorType::Rgb8)
        .expect("memory can be written");
    bytes
}
