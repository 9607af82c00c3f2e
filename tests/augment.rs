//! Compares augmentation with Pillow, and tests its random draws.
//!
//! The comparison is skipped if tests/python/pillow.sh finds no Pillow (no Python or no network).

#[path = "common/pillow.rs"]
mod pillow;
#[path = "common/shared.rs"]
mod shared;

use drnas_dist::config::{CropKind, DataSection};
use drnas_dist::data::augment::geometry::{centre_crop, pad_crop, resized_crop};
use drnas_dist::data::augment::jitter::Adjustment;
use drnas_dist::data::augment::{Rect, hole};
use drnas_dist::data::decode::{DecodedImage, decode};
use drnas_dist::data::{Augment, Batch, Crop, Jitter};
use drnas_dist::random::{Purpose, stream, torch_seeded};
use pillow::python;
use rand::RngExt;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

/// An image of noise and smooth colours.
fn picture(width: u32, height: u32, seed: u64) -> DecodedImage {
    let mut rng = stream(seed, Purpose::Demo, &[]);
    let mut buffer = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let smooth = [x * 255 / width, y * 255 / height, (x * y) % 256].map(|v| v as u8);
            buffer.extend(if (x / 5 + y / 7) % 2 == 0 { smooth } else { rng.random() });
        }
    }
    DecodedImage { width, height, buffer }
}

/// The pixels in planar order.
fn planar(picture: &DecodedImage) -> Vec<u8> {
    (0..3).flat_map(|c| picture.rgb().chunks_exact(3).map(move |p| p[c]).collect::<Vec<_>>()).collect()
}

/// Cases for tests/python/pillow_reference.py, with the results of this program.
struct Cases {
    python: PathBuf,
    dir: TempDir,
    cases: Vec<serde_json::Value>,
    found: Vec<Vec<u8>>,
}

impl Cases {
    fn new(python: PathBuf) -> Cases {
        Cases { python, dir: tempfile::tempdir().unwrap(), cases: Vec::new(), found: Vec::new() }
    }

    fn add(&mut self, op: &str, args: serde_json::Value, picture: &DecodedImage, found: Vec<u8>) {
        let rgb = self.dir.path().join(format!("{}.rgb", self.cases.len()));
        fs::write(&rgb, picture.rgb()).unwrap();
        let (width, height) = (picture.width, picture.height);
        self.cases.push(json!({"op": op, "args": args, "width": width, "height": height, "rgb": rgb}));
        self.found.push(found);
    }

    /// The results of the script, one for each case.
    fn expected(&self) -> Vec<Vec<u8>> {
        let list = self.dir.path().join("cases.json");
        fs::write(&list, serde_json::to_vec(&self.cases).unwrap()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/pillow_reference.py");
        let output = Command::new(&self.python).arg(script).arg(&list).arg(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (0..self.cases.len()).map(|n| fs::read(self.dir.path().join(n.to_string())).unwrap()).collect()
    }

    /// Asserts that no byte differs by more than `allowed`; returns the largest difference over all cases.
    fn compare(self, allowed: u8) -> u8 {
        let mut worst = 0;
        for ((case, found), expected) in self.cases.iter().zip(&self.found).zip(self.expected()) {
            assert_eq!(found.len(), expected.len(), "{case}");
            let difference = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(difference <= allowed, "{difference} of 255 in {case}");
            worst = worst.max(difference);
        }
        worst
    }
}

/// Photos from the shared folder; none if it does not exist.
fn photos() -> Vec<DecodedImage> {
    let Some(dir) = shared::unpacked("data/odd_files.tar") else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = ["exif_orientation", "extreme_aspect", "tiny"]
        .iter()
        .flat_map(|kind| fs::read_dir(dir.path().join("odd_files").join(kind)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| decode(&fs::read(file).unwrap()).unwrap()).collect()
}

#[test]
fn geometry_equals_pillow_and_torchvision() {
    let Some(python) = python() else {
        return;
    };
    let mut cases = Cases::new(python);
    // Halves of either parity; quotients such as 37 / 3 are truncated, not rounded.
    let sizes =
        [(40, 30), (30, 40), (33, 33), (61, 47), (47, 62), (7, 100), (101, 8), (500, 375), (1, 1), (3, 37)];
    let drawn = sizes.into_iter().map(|(width, height)| picture(width, height, u64::from(width)));
    for (number, picture) in drawn.chain(photos()).enumerate() {
        for (side, px) in [(32, 28), (33, 28), (64, 64), (37, 32)] {
            let mut out = vec![0; 3 * (px * px) as usize];
            centre_crop(&picture, side, px, &mut out).unwrap();
            cases.add("centre_crop", json!([side, px]), &picture, out);
        }
        let mut rng = stream(number as u64, Purpose::Augment, &[]);
        for px in [24, 31] {
            let (width, height) = (rng.random_range(1..=picture.width), rng.random_range(1..=picture.height));
            let left = rng.random_range(0..=picture.width - width);
            let top = rng.random_range(0..=picture.height - height);
            let mut out = vec![0; 3 * (px * px) as usize];
            resized_crop(&picture, Rect { left, top, width, height }, px, false, &mut out);
            cases.add("resized_crop", json!([left, top, width, height, px]), &picture, out);
        }
    }
    let worst = cases.compare(1);
    eprintln!("resize and crop: largest difference {worst} of 255");
}

#[test]
fn pad_crops_and_flips_are_exact() {
    let Some(python) = python() else {
        return;
    };
    let mut cases = Cases::new(python);
    for (picture, px) in [(picture(32, 32, 1), 32), (picture(9, 7, 2), 8), (picture(5, 40, 3), 12)] {
        let (width, height) = (picture.width + 8, picture.height + 8);
        for left in [0, 1, (width - px) / 2, width - px] {
            for top in [0, 3, height - px] {
                let mut out = vec![0; 3 * (px * px) as usize];
                pad_crop(&picture, 4, (left, top), px, false, &mut out);
                let mut mirrored = vec![0; out.len()];
                pad_crop(&picture, 4, (left, top), px, true, &mut mirrored);
                for (row, other) in out.chunks_exact(px as usize).zip(mirrored.chunks_exact(px as usize)) {
                    assert!(row.iter().rev().eq(other));
                }
                cases.add("pad_crop", json!([4, left, top, px]), &picture, out);
            }
        }
    }
    let square = picture(20, 20, 4);
    let mut out = vec![0; 1200];
    resized_crop(&square, Rect::whole(&square), 20, true, &mut out);
    cases.add("flip", json!([]), &square, out);
    cases.compare(0);
}

#[test]
fn colour_jitter_equals_pillow() {
    let Some(python) = python() else {
        return;
    };
    for (name, tone, factors) in [
        (
            "brightness",
            Adjustment::Brightness as fn(f64) -> Adjustment,
            [0.0, 0.6, 0.83, 1.0, 1.27, 1.4, 3.0],
        ),
        ("contrast", Adjustment::Contrast, [0.0, 0.6, 0.83, 1.0, 1.27, 1.4, 3.0]),
        ("saturation", Adjustment::Saturation, [0.0, 0.6, 0.83, 1.0, 1.27, 1.4, 3.0]),
        ("hue", Adjustment::Hue, [-0.5, -0.2, -0.003, 0.0, 0.05, 0.2, 0.5]),
    ] {
        let mut cases = Cases::new(python.clone());
        let drawn = [picture(300, 200, 1), picture(1, 1, 2), picture(64, 64, 3)];
        for picture in drawn.into_iter().chain(photos().into_iter().take(3)) {
            for factor in factors {
                let mut found = planar(&picture);
                tone(factor).apply(&mut found);
                cases.add(name, json!([factor]), &picture, found);
            }
        }
        let worst = cases.compare(1);
        eprintln!("{name}: largest difference {worst} of 255");
    }
}

#[test]
fn holes_equal_those_of_darts_and_their_centres_are_uniform() {
    let (px, side, num) = (32u32, 16u32, 32_000usize);
    let mut rng = stream(8, Purpose::Augment, &[]);
    let centre = |from: u32, length: u32| if from > 0 { from + side / 2 } else { length - side / 2 };
    let (mut rows, mut columns, mut holes) = (vec![0u32; 32], vec![0u32; 32], Vec::new());
    for _ in 0..num {
        let found = hole(px, side, &mut rng);
        let (row, column) = (centre(found.top, found.height), centre(found.left, found.width));
        rows[row as usize] += 1;
        columns[column as usize] += 1;
        holes.push((row, column, found));
    }
    for counts in [rows, columns] {
        let chi2: f64 = counts.iter().map(|count| (f64::from(*count) - 1000.0).powi(2) / 1000.0).sum();
        // The 99.9 % quantile of chi-squared with 31 degrees of freedom.
        assert!(chi2 < 61.1, "{chi2} {counts:?}");
    }
    // Rows and columns are independent, within four standard errors.
    let equal = holes.iter().filter(|(row, column, _)| row == column).count();
    assert!((equal as f64 - 1000.0).abs() < 4.0 * 31.1, "{equal}");
    let Some(python) = python() else {
        return;
    };
    let mut cases = Cases::new(python);
    for (row, column, _) in &holes[..100] {
        cases.cases.push(json!({"op": "hole", "args": [row, column, px, side]}));
    }
    for ((_, _, found), expected) in holes.iter().zip(cases.expected()) {
        let Rect { left, top, width, height } = found;
        assert_eq!(format!("{left} {top} {width} {height}"), String::from_utf8(expected).unwrap());
    }
}

#[test]
fn crop_offsets_are_uniform_and_draws_are_independent() {
    // Pixel (x, y) has red x and green y, plus one: black is padding.
    let buffer = (0..32u8).flat_map(|y| (0..32u8).flat_map(move |x| [x + 1, y + 1, 1])).collect();
    let picture = DecodedImage { width: 32, height: 32, buffer };
    let mut out = vec![0; 3 * 1024];
    let augment = Augment { flip: true, cutout: 16, ..Crop::Pad { pad: 4 }.into() };
    let (mut lefts, mut tops, mut mirrored, mut both) = ([0u32; 9], [0u32; 9], 0u32, 0u32);
    for image in 0..9000 {
        let mut rng = stream(9, Purpose::Augment, &[image]);
        let found = augment.apply(&picture, 32, &mut rng, &mut out).unwrap().expect("a hole");
        // The middle pixel is never padding.
        let (red, green) = (i32::from(out[16 * 32 + 16]), i32::from(out[1024 + 16 * 32 + 16]));
        let flipped = out[16 * 32 + 16] > out[16 * 32 + 17];
        let shift = if flipped { red - 16 } else { red - 17 };
        lefts[(shift + 4) as usize] += 1;
        tops[(green - 17 + 4) as usize] += 1;
        mirrored += u32::from(flipped);
        both += u32::from(flipped && found.top + found.height <= 16);
    }
    for counts in [lefts, tops] {
        let chi2: f64 = counts.iter().map(|count| (f64::from(*count) - 1000.0).powi(2) / 1000.0).sum();
        // The 99.9 % quantile of chi-squared with 8 degrees of freedom.
        assert!(chi2 < 26.1, "{chi2} {counts:?}");
    }
    // Within four standard errors; the hole ends above the middle for 9 of 32 centres.
    assert!((f64::from(mirrored) - 4500.0).abs() < 4.0 * 47.5, "{mirrored}");
    assert!((f64::from(both) - 9000.0 * 9.0 / 64.0).abs() < 4.0 * 33.0, "{both}");
}

#[test]
fn enabling_later_transforms_keeps_earlier_draws() {
    let picture = picture(60, 50, 5);
    let apply = |augment: Augment| {
        let mut out = vec![0; 3 * 32 * 32];
        let hole = augment.apply(&picture, 32, &mut stream(1, Purpose::Augment, &[7]), &mut out).unwrap();
        (out, hole)
    };
    let plain = Augment { flip: true, ..Crop::RandomResized { area_min: 0.08 }.into() };
    let holed = Augment { cutout: 8, ..plain };
    assert_eq!(apply(plain).0, apply(holed).0);
    assert!(apply(plain).1.is_none() && apply(holed).1.is_some());
    let strong = Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.2 };
    let (coloured, same) =
        (apply(Augment { jitter: strong, ..plain }), apply(Augment { jitter: strong, ..holed }));
    assert_ne!(coloured.0, apply(plain).0);
    assert_eq!(coloured.0, same.0);
    // Drawn by hand from the same stream: first crop and flip, then the colours.
    let mut rng = stream(1, Purpose::Augment, &[7]);
    let mut by_hand = vec![0; 3 * 32 * 32];
    plain.apply(&picture, 32, &mut rng, &mut by_hand).unwrap();
    strong.draw(&mut rng).into_iter().for_each(|tone| tone.apply(&mut by_hand));
    assert_eq!(by_hand, coloured.0);
}

#[test]
fn holes_are_zero_after_normalisation() {
    let images = torch_seeded(1, || Tensor::randint(256, [2, 3, 4, 4], (Kind::Uint8, Device::Cpu)));
    let holes =
        vec![Rect { left: 1, top: 0, width: 2, height: 3 }, Rect { left: 3, top: 3, width: 1, height: 1 }];
    let mut batch = Batch {
        images,
        labels: Tensor::from_slice(&[0i64, 1]),
        holes,
        indices: vec![0, 1],
        num_skipped: 0,
        replaced: Vec::new(),
    };
    let (mean, std) = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]);
    let found = batch.input(&mean, &std, Device::Cpu);
    batch.holes.clear();
    let plain = batch.input(&mean, &std, Device::Cpu);
    for (image, row, column, inside) in [
        (0, 0, 1, true),
        (0, 2, 2, true),
        (0, 3, 1, false),
        (0, 0, 3, false),
        (1, 3, 3, true),
        (1, 0, 1, false),
    ] {
        for channel in 0..3 {
            let at = |t: &Tensor| t.double_value(&[image, channel, row, column]);
            assert_eq!(at(&found), if inside { 0.0 } else { at(&plain) });
        }
    }
    assert_eq!(found.ne_tensor(&plain).sum(Kind::Int64).int64_value(&[]), 3 * 7);
}

#[test]
fn configuration_selects_the_augmentation() {
    let imagenet = DataSection { jitter: [0.4, 0.4, 0.4, 0.2], ..DataSection::default() };
    let strong = Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.2 };
    let crop = Crop::RandomResized { area_min: 0.08 };
    assert_eq!(Augment::train(&imagenet), Augment { flip: true, jitter: strong, ..crop.into() });
    // Default: resize to 256, crop 224.
    assert_eq!(imagenet.test_crop_px(), 224);
    assert_eq!(Augment::test(&imagenet), Crop::Centre { resize: 256 }.into());
    let cifar = DataSection { px: 32, crop: CropKind::Pad, pad: 4, cutout: 16, ..DataSection::default() };
    assert_eq!(Augment::train(&cifar), Augment { flip: true, cutout: 16, ..Crop::Pad { pad: 4 }.into() });
    // Default at 32 px: no resize, no crop.
    assert_eq!((cifar.test_crop_px(), Augment::test(&cifar)), (32, Crop::Centre { resize: 32 }.into()));
    let own = DataSection { test_crop: 64, test_resize: 80, ..DataSection::default() };
    assert_eq!((own.test_crop_px(), Augment::test(&own)), (64, Crop::Centre { resize: 80 }.into()));
}
