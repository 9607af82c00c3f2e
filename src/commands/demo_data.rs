//! `demo-data`: generates a small labelled ImageFolder for trying out the program without a download.
//!
//! A class is a shape and its fill pattern. Colours, position, size, angle, background, clutter, noise, image size and
//! JPEG quality are random and independent of the class.

use crate::cli::DemoArgs;
use crate::commands::error::Error as CommandError;
use crate::error::{Error, Result};
use crate::files::{self, NewFileError};
use crate::process::console;
use crate::process::messages::counted;
use crate::random::{Purpose, stream};
use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};
use rand::{Rng, RngExt};
use std::f32::consts::{PI, TAU};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const SHAPES: [&str; 8] = ["disc", "ring", "square", "triangle", "star", "cross", "crescent", "bars"];
const PATTERNS: [&str; 3] = ["solid", "striped", "checked"];

/// `drnas-dist demo-data`. Repeating it with the same arguments produces the same bytes. Errors: arguments out of
/// range, or an OUT that contains other classes or images.
pub fn run(args: &DemoArgs) -> Result<()> {
    let (px_min, px_max) = px_range(&args.px)?;
    let num_classes = args.classes;
    if !(2..=SHAPES.len() * PATTERNS.len()).contains(&num_classes) || args.per_class == 0 {
        return Err(CommandError::Demo(format!(
            "expected 2 to {} classes of 1 or more images, found --classes {num_classes} --per-class {}",
            SHAPES.len() * PATTERNS.len(),
            args.per_class
        ))
        .into());
    }
    let names: Vec<String> = (0..num_classes).map(class_name).collect();
    for name in &names {
        let dir = args.out.join(name);
        std::fs::create_dir_all(&dir).map_err(files::io("create folder", &dir))?;
    }
    // `pack` would include files of other arguments.
    for entry in std::fs::read_dir(&args.out).map_err(files::io("list folder", &args.out))? {
        let path = entry.map_err(files::io("list folder", &args.out))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let num_files = if path.is_dir() { std::fs::read_dir(&path).map_or(0, |d| d.count()) } else { 0 };
        if path.is_dir() && (!names.iter().any(|n| *n == name) || num_files > args.per_class) {
            return Err(NewFileError::Exists { path }.into());
        }
    }
    let total = num_classes * args.per_class;
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let write = |number: usize| -> Result<()> {
        let (class, image) = (number / args.per_class, number % args.per_class);
        let bytes = draw(args.seed, class, image, px_min..=px_max)?;
        let path = args.out.join(&names[class]).join(format!("{image:04}.jpg"));
        match std::fs::read(&path) {
            Ok(old) if old == bytes => Ok(()),
            Ok(_) => Err(CommandError::Demo(format!(
                "{} already exists with different content (from another --seed, --px or version); choose \
                 another folder, or remove this one",
                path.display()
            ))
            .into()),
            Err(_) => Ok(std::fs::write(&path, bytes).map_err(files::io("write", &path))?),
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        return;
                    }
                    if let Err(error) = write(number) {
                        next.store(total, Ordering::Relaxed);
                        // The first image that failed, whichever thread was faster.
                        let mut failure = failure.lock().unwrap_or_else(|e| e.into_inner());
                        if failure.as_ref().is_none_or(|(first, _)| number < *first) {
                            *failure = Some((number, error));
                        }
                    }
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some((_, error)) => Err(error),
        None => {
            console::print_diagnostic(&format!(
                "{}: {}, {num_classes} classes",
                args.out.display(),
                counted(total as u64, "image")
            ));
            Ok(())
        }
    }
}

fn px_range(text: &str) -> Result<(u32, u32)> {
    text.split_once("..")
        .and_then(|(a, b)| Some((a.parse().ok()?, b.trim_start_matches('=').parse().ok()?)))
        .filter(|(a, b)| a <= b && *a >= 16 && *b <= 4096)
        .ok_or_else(|| {
            CommandError::Demo(format!(
                "--px: expected A..B with 16 <= A <= B <= 4096, such as 96..160, found \"{text}\""
            ))
            .into()
        })
}

/// Returns the shape and pattern of a class; every class shares its shape or its pattern with another class.
fn shape_and_pattern(class: usize) -> (usize, usize) {
    let shape = class % SHAPES.len();
    (shape, (shape + class / SHAPES.len()) % PATTERNS.len())
}

fn class_name(class: usize) -> String {
    let (shape, pattern) = shape_and_pattern(class);
    format!("{}-{}", PATTERNS[pattern], SHAPES[shape])
}

/// Draws one image as JPEG; depends on the arguments only.
fn draw(seed: u64, class: usize, image: usize, px: std::ops::RangeInclusive<u32>) -> Result<Vec<u8>> {
    let mut rng = stream(seed, Purpose::Demo, &[class as u64, image as u64]);
    let (width, height) = (rng.random_range(px.clone()), rng.random_range(px));
    let scene = Scene::draw(class, width, height, &mut rng);
    let mut rgb = Vec::with_capacity(3 * (width * height) as usize);
    for y in 0..height {
        for x in 0..width {
            let colour = scene.colour(x as f32 + 0.5, y as f32 + 0.5);
            let noise = scene.noise * (rng.random::<f32>() - 0.5);
            rgb.extend(colour.map(|c| ((c + noise) * 255.0).round().clamp(0.0, 255.0) as u8));
        }
    }
    let mut bytes = Vec::new();
    let quality = rng.random_range(70..=95);
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode(&rgb, width, height, ExtendedColorType::Rgb8)
        .map_err(|e| CommandError::Demo(e.to_string()))?;
    Ok(bytes)
}

type Colour = [f32; 3];

/// Clutter: a straight line across the image.
struct StraightLine {
    point: (f32, f32),
    direction: (f32, f32),
    half_width: f32,
    colour: Colour,
}

/// Random parameters of one image; colours are in 0..1, lengths in pixels.
struct Scene {
    shape: usize,
    pattern: usize,
    centre: (f32, f32),
    radius: f32,
    /// Cosine and sine of the angles of the object and of its pattern.
    turn: (f32, f32),
    pattern_turn: (f32, f32),
    /// Pattern periods per radius, and their phase.
    frequency: f32,
    phase: f32,
    colours: [Colour; 2],
    background: [Colour; 2],
    ground_turn: (f32, f32),
    ground_wave: f32,
    size: (f32, f32),
    lines: Vec<StraightLine>,
    noise: f32,
}

impl Scene {
    fn draw(class: usize, width: u32, height: u32, rng: &mut impl Rng) -> Scene {
        let (shape, pattern) = shape_and_pattern(class);
        let (w, h) = (width as f32, height as f32);
        let turn = |rng: &mut dyn FnMut() -> f32| {
            let angle = TAU * rng();
            (angle.cos(), angle.sin())
        };
        let mut unit = || rng.random::<f32>();
        let radius = w.min(h) * (0.24 + 0.20 * unit());
        let within = |size: f32, unit: f32| size / 2.0 + (size / 2.0 - 0.8 * radius) * (2.0 * unit - 1.0);
        let centre = (within(w, unit()), within(h, unit()));
        let mut colour = || [unit(), unit(), unit()];
        let background = {
            let (a, b) = (colour(), colour());
            // Two shades of one colour.
            [a, [0, 1, 2].map(|c| 0.65 * a[c] + 0.35 * b[c])]
        };
        let first = far_from(&mut colour, &background[..1], 0.45);
        let second = far_from(&mut colour, &[first, background[0]], 0.4);
        let lines = (0..4)
            .map(|_| StraightLine {
                point: (w * unit(), h * unit()),
                direction: turn(&mut unit),
                half_width: 0.5 + 1.5 * unit(),
                colour: [unit(), unit(), unit()],
            })
            .collect();
        Scene {
            shape,
            pattern,
            centre,
            radius,
            turn: turn(&mut unit),
            pattern_turn: turn(&mut unit),
            frequency: 1.6 + 0.9 * unit(),
            phase: unit(),
            colours: [first, second],
            background,
            ground_turn: turn(&mut unit),
            ground_wave: 0.5 + 2.0 * unit(),
            size: (w, h),
            lines,
            noise: 0.04 + 0.18 * unit(),
        }
    }

    fn colour(&self, x: f32, y: f32) -> Colour {
        let (gx, gy) = ((x - self.size.0 / 2.0) / self.size.0, (y - self.size.1 / 2.0) / self.size.1);
        let along = gx * self.ground_turn.0 + gy * self.ground_turn.1;
        let mut colour =
            mix(self.background[0], self.background[1], 0.5 + 0.5 * (PI * self.ground_wave * along).sin());
        for line in &self.lines {
            let (dx, dy) = (x - line.point.0, y - line.point.1);
            let away = (dx * line.direction.1 - dy * line.direction.0).abs();
            colour = mix(colour, line.colour, (line.half_width + 0.5 - away).clamp(0.0, 1.0));
        }
        let (dx, dy) = ((x - self.centre.0) / self.radius, (y - self.centre.1) / self.radius);
        let u = dx * self.turn.0 + dy * self.turn.1;
        let v = dy * self.turn.0 - dx * self.turn.1;
        // Distances are in radii: multiplied by the radius, they are pixels. The rim is antialiased over one pixel.
        let inside = (0.5 - distance(self.shape, u, v) * self.radius).clamp(0.0, 1.0);
        if inside == 0.0 {
            return colour;
        }
        let wave = |along: f32| {
            (((self.frequency * along + self.phase).rem_euclid(1.0) - 0.5).abs() - 0.25) / self.frequency
        };
        let (p, q) = (
            u * self.pattern_turn.0 + v * self.pattern_turn.1,
            v * self.pattern_turn.0 - u * self.pattern_turn.1,
        );
        let soft = |distance: f32| (0.5 - distance * self.radius).clamp(0.0, 1.0);
        let second = match self.pattern {
            0 => 0.0,
            1 => soft(wave(p)),
            _ => {
                let (a, b) = (soft(wave(p)), soft(wave(q)));
                a + b - 2.0 * a * b
            }
        };
        mix(colour, mix(self.colours[0], self.colours[1], second), inside)
    }
}

/// Draws colours until one differs from all `others` by `least` (0..1 per channel, Euclidean), at most 50 times.
fn far_from(colour: &mut impl FnMut() -> Colour, others: &[Colour], least: f32) -> Colour {
    let distance = |a: Colour, b: &Colour| (0..3).map(|c| (a[c] - b[c]).powi(2)).sum::<f32>().sqrt();
    let mut drawn = colour();
    for _ in 0..50 {
        if others.iter().all(|other| distance(drawn, other) >= least) {
            break;
        }
        drawn = colour();
    }
    drawn
}

fn mix(a: Colour, b: Colour, part: f32) -> Colour {
    [0, 1, 2].map(|c| a[c] + (b[c] - a[c]) * part)
}

/// Approximate signed distance to the rim of a shape of radius 1: negative inside.
fn distance(shape: usize, u: f32, v: f32) -> f32 {
    let r = u.hypot(v);
    let frame = |u: f32, v: f32, a: f32, b: f32| (u.abs() - a).max(v.abs() - b);
    match SHAPES[shape] {
        "disc" => r - 0.9,
        "ring" => (r - 0.72).abs() - 0.24,
        "square" => frame(u, v, 0.8, 0.8),
        "triangle" => (0..3)
            .map(|side| {
                let (sin, cos) = (TAU * side as f32 / 3.0).sin_cos();
                u * cos + v * sin - 0.52
            })
            .fold(f32::MIN, f32::max),
        "star" => {
            // Five points: the rim is a straight line between the outer and the inner radius.
            let sector = TAU / 5.0;
            let angle = (v.atan2(u).rem_euclid(sector) - sector / 2.0).abs();
            let (x, y) = (r * angle.cos(), r * angle.sin());
            let (inner, outer) = ((0.42, 0.0), ((sector / 2.0).cos(), (sector / 2.0).sin()));
            let (ex, ey) = (outer.0 - inner.0, outer.1 - inner.1);
            ((x - inner.0) * ey - (y - inner.1) * ex) / ex.hypot(ey)
        }
        "cross" => frame(u, v, 0.95, 0.3).min(frame(u, v, 0.3, 0.95)),
        "crescent" => (r - 0.9).max(0.72 - (u - 0.45).hypot(v)),
        _ => frame(u, v - 0.5, 0.9, 0.28).min(frame(u, v + 0.5, 0.9, 0.28)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_distinct() {
        let names: std::collections::HashSet<String> = (0..24).map(class_name).collect();
        assert_eq!(names.len(), 24);
    }

    #[test]
    fn an_image_depends_on_its_arguments_only() {
        let image = |seed, class, number| draw(seed, class, number, 40..=60).unwrap();
        assert_eq!(image(1, 2, 3), image(1, 2, 3));
        assert_ne!(image(1, 2, 3), image(2, 2, 3));
        assert_ne!(image(1, 2, 3), image(1, 2, 4));
        let decoded = crate::data::decode::decode(&image(1, 2, 3)).unwrap();
        assert!((40..=60).contains(&decoded.width) && (40..=60).contains(&decoded.height));
    }

    #[test]
    fn shapes_have_an_inside_and_an_outside() {
        for (shape, name) in SHAPES.iter().enumerate() {
            let inside = (0..10000)
                .filter(|i| {
                    distance(shape, (i % 100) as f32 / 50.0 - 1.0, (i / 100) as f32 / 50.0 - 1.0) < 0.0
                })
                .count();
            assert!((1500..8000).contains(&inside), "{name}: {inside} of 10000");
        }
    }

    #[test]
    fn px_ranges_are_parsed() {
        assert_eq!(px_range("96..160").unwrap(), (96, 160));
        assert_eq!(px_range("32..=32").unwrap(), (32, 32));
        for bad in ["96", "160..96", "4..8", "a..b", "96..99999"] {
            assert!(px_range(bad).is_err(), "{bad}");
        }
    }
}
