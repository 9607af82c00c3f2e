//! `pack`: packs a data set into a folder of shards, on all cores, in constant memory, resumable.

use super::decode;
use super::plan::{Plan, prepare_output, remove};
use super::set::{FORMAT, SetFile, content_hash, count_classes, hex};
use super::shard::{Shard, ShardWriter, VERSION, file_name};
use super::source::Source;
use super::stamps::Stamps;
use crate::cli::PackArgs;
use crate::data::error::{Error, Result};
use crate::files;
use crate::process::console;
use crate::process::messages::counted;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::Xxh3;

/// Result of packing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackReport {
    /// Number of images in the set.
    pub num_images: u64,
    /// Number of shards in the set.
    pub num_shards: usize,
    /// Number of shards reused from an earlier pack.
    pub num_kept: usize,
    /// Images left out: name, tab, reason. Sorted.
    pub left_out: Vec<String>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// Progress of packing.
#[derive(Clone, Copy, Debug)]
pub struct PackProgress {
    /// Images packed, including those in reused shards.
    pub images: usize,
    /// Planned images.
    pub num_images: usize,
    /// Shards packed, including reused ones.
    pub shards: usize,
    /// Planned shards.
    pub num_shards: usize,
}

/// Runs `drnas-dist pack`; prints progress and result to stderr.
pub fn run(args: &PackArgs) -> Result<()> {
    let started = Instant::now();
    let printer = ProgressPrinter::new();
    let report = pack(args, &|progress| printer.show(progress))?;
    printer.bar.finish_and_clear();
    for warning in &report.warnings {
        console::print_diagnostic(&format!("warning: {warning}"));
    }
    let kept = match report.num_kept {
        0 => String::new(),
        kept => format!(" ({kept} reused)"),
    };
    console::print_diagnostic(&format!(
        "{}: {} in {}{kept}, {} left out, {:.1} s",
        args.out.display(),
        counted(report.num_images, "image"),
        counted(report.num_shards as u64, "shard"),
        report.left_out.len(),
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Packs `args.root` into `args.out`; `observe` is called after every image, on any thread, and returns whether to
/// continue.
/// Errors: anything that makes the set unusable, see `Error`; finished shards are kept for the next attempt.
pub fn pack(args: &PackArgs, observe: &(dyn Fn(PackProgress) -> bool + Sync)) -> Result<PackReport> {
    let source = Source::open(&args.root, &args.source, args.list.as_deref())?;
    let named_by = args.list.as_ref().or(args.source.split_file.as_ref()).unwrap_or(&args.root);
    check_classes(source.classes(), &source.per_class(), named_by)?;
    let plan = Plan::new(source, args);
    std::fs::create_dir_all(&args.out).map_err(files::io("create folder", &args.out))?;
    let described = prepare_output(&plan)?;
    let stamps = Stamps::open(&args.out);
    let (num_kept, mut left_out) = write_shards(&plan, &stamps, observe)?;
    let complete = described && num_kept == plan.num_shards();

    // Read the shards back: count the images and run the checks of every reader.
    let shards = (0..plan.num_shards())
        .map(|number| Shard::open(&args.out.join(file_name(number))))
        .collect::<Result<Vec<_>>>()?;
    let per_class = count_classes(&shards, plan.source.classes().len())?;
    check_classes(plan.source.classes(), &per_class, named_by)?;
    left_out.sort_unstable();
    let hashes = shards.iter().map(|shard| shard.header().header_hash);
    let file = SetFile {
        format: FORMAT.into(),
        version: VERSION,
        num_images: per_class.iter().sum(),
        num_left_out: left_out.len() as u64,
        num_shards: plan.num_shards(),
        plan_hash: hex(plan.hash),
        content_hash: hex(content_hash(plan.source.classes(), hashes)),
        seed: args.seed,
        classes: plan.source.classes().to_vec(),
        per_class,
    };
    if !complete {
        let bad = args.out.join("bad.txt");
        if left_out.is_empty() {
            remove(&bad)?;
        } else {
            files::write(&bad, (left_out.join("\n") + "\n").as_bytes())?;
        }
        let text = serde_json::to_vec_pretty(&file).expect("plain data becomes JSON");
        files::write(&args.out.join("set.json"), &text)?;
    }
    stamps.compact(plan.num_shards());
    Ok(PackReport {
        num_images: file.num_images,
        num_shards: file.num_shards,
        num_kept,
        warnings: warnings(&plan.source, &file, left_out.len()),
        left_out,
    })
}

/// Requires an image of every class: an output unit without samples would silently degrade training.
fn check_classes(classes: &[String], per_class: &[u64], root: &Path) -> Result<()> {
    match per_class.iter().position(|count| *count == 0) {
        Some(label) => Err(Error::EmptyClass { class: classes[label].clone(), root: root.into() }),
        None => Ok(()),
    }
}

fn warnings(source: &Source, file: &SetFile, num_left_out: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    let single: Vec<&str> = file
        .classes
        .iter()
        .zip(&file.per_class)
        .filter(|(_, count)| **count == 1)
        .map(|(class, _)| class.as_str())
        .collect();
    if let Some(first) = single.first() {
        let others = match single.len() - 1 {
            0 => String::new(),
            others => format!(" (and {others} more)"),
        };
        warnings.push(format!("class {first}{others} has only one image"));
    }
    if source.num_ignored() > 0 {
        let files = counted(source.num_ignored() as u64, "file");
        warnings.push(format!("ignored {files} other than .jpg, .jpeg and .png"));
    }
    if num_left_out > 0 {
        let images = counted(num_left_out as u64, "image");
        warnings.push(format!("left out {images} that could not be decoded, see bad.txt"));
    }
    warnings
}

/// Writes missing shards and those with replaced images, one shard at a time per thread; returns the number of reused
/// shards and the images left out.
fn write_shards(
    plan: &Plan,
    stamps: &Stamps,
    observe: &(dyn Fn(PackProgress) -> bool + Sync),
) -> Result<(usize, Vec<String>)> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if plan.args.threads == 0 { cores } else { plan.args.threads };
    let (next, images, shards, kept) =
        (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let left_out = Mutex::new(Vec::new());
    // Reports `count` more images; returns false if the observer or a failure on another thread stops the work.
    let count = |count: usize| {
        let progress = PackProgress {
            images: images.fetch_add(count, Ordering::Relaxed) + count,
            num_images: plan.order.len(),
            shards: shards.load(Ordering::Relaxed),
            num_shards: plan.num_shards(),
        };
        if !observe(progress) {
            stop.store(true, Ordering::Relaxed);
        }
        !stop.load(Ordering::Relaxed)
    };
    let work = || -> Result<()> {
        let mut bytes = Vec::new();
        let mut decoded = decode::DecodedImage::default();
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= plan.num_shards() {
                break;
            }
            let planned = plan.images_of(number);
            let path = plan.args.out.join(file_name(number));
            // Before any of the files is read, so that files replaced meanwhile have another stamp next time.
            let files = stamp_of(&plan.source, planned)?;
            let finished = match Shard::open(&path) {
                Ok(shard) if stamps.matches(number, shard.header().header_hash, files) => Some(shard),
                Ok(shard) if matches_source(plan, &shard, planned, &mut bytes, &mut decoded)? => {
                    stamps.record(number, shard.header().header_hash, files);
                    Some(shard)
                }
                _ => None,
            };
            let bad = match finished {
                Some(shard) => {
                    kept.fetch_add(1, Ordering::Relaxed);
                    shards.fetch_add(1, Ordering::Relaxed);
                    count(planned.len());
                    left_out_of(plan, &shard, planned)?
                }
                None => {
                    // The set is no longer complete.
                    remove(&plan.args.out.join("set.json"))?;
                    match write_shard(plan, number, &mut bytes, &mut decoded, &count)? {
                        Some(bad) => {
                            stamps.record(number, Shard::open(&path)?.header().header_hash, files);
                            shards.fetch_add(1, Ordering::Relaxed);
                            bad
                        }
                        None => break,
                    }
                }
            };
            left_out.lock().unwrap_or_else(|e| e.into_inner()).extend(bad);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.min(plan.num_shards()).max(1) {
            scope.spawn(|| {
                if let Err(error) = work() {
                    stop.store(true, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(error);
    }
    let done = shards.into_inner();
    if done < plan.num_shards() {
        return Err(Error::PackStopped { dir: plan.args.out.clone(), done, total: plan.num_shards() });
    }
    Ok((kept.into_inner(), left_out.into_inner().unwrap_or_else(|e| e.into_inner())))
}

/// Writes one shard and returns the images left out, or `None` if stopped.
fn write_shard(
    plan: &Plan,
    number: usize,
    bytes: &mut Vec<u8>,
    decoded: &mut decode::DecodedImage,
    count: &impl Fn(usize) -> bool,
) -> Result<Option<Vec<String>>> {
    let planned = plan.images_of(number);
    let mut writer = ShardWriter::create(&plan.args.out, number, planned.len(), plan.hash)?;
    let mut left_out = Vec::new();
    for image in planned {
        let index = *image as usize;
        let name = plan.source.name(index);
        plan.source.read(index, bytes)?;
        match inspect(bytes, decoded, plan.args.no_decode) {
            Ok(size) => writer.push(&name, plan.source.label(index), size, bytes)?,
            Err(reason) if plan.args.skip_bad => left_out.push(format!("{name}\t{reason}")),
            Err(reason) => {
                let place = plan.args.root.join(&name).display().to_string();
                return Err(Error::BadImage { place, reason });
            }
        }
        if !count(1) {
            return Ok(None);
        }
    }
    writer.finish()?;
    Ok(Some(left_out))
}

fn inspect(bytes: &[u8], decoded: &mut decode::DecodedImage, no_decode: bool) -> Result<(u32, u32), String> {
    if no_decode {
        return decode::dimensions(bytes);
    }
    decode::decode_into(bytes, decoded)?;
    Ok((decoded.width, decoded.height))
}

/// Returns the combined stamp of the files of `images`, indices in `source`. Errors: a file is missing.
fn stamp_of(source: &Source, images: &[u32]) -> Result<u64> {
    let mut hash = Xxh3::new();
    for image in images {
        hash.update(&source.stamp(*image as usize)?.to_le_bytes());
    }
    Ok(hash.digest())
}

/// Returns whether a finished shard still matches its source images, byte for byte; images it leaves out must still be
/// unusable.
fn matches_source(
    plan: &Plan,
    shard: &Shard,
    planned: &[u32],
    bytes: &mut Vec<u8>,
    decoded: &mut decode::DecodedImage,
) -> Result<bool> {
    let mut held = 0;
    for image in planned {
        let index = *image as usize;
        plan.source.read(index, bytes)?;
        let name = plan.source.name(index);
        let record = (held < shard.records().len()).then(|| shard.read(held));
        match record {
            Some(Ok((old, other))) if other == name => {
                if old != bytes.as_slice() {
                    return Ok(false);
                }
                held += 1;
            }
            // Corrupt: pack it again.
            Some(Err(_)) => return Ok(false),
            _ if inspect(bytes, decoded, plan.args.no_decode).is_ok() => return Ok(false),
            _ => {}
        }
    }
    Ok(held == shard.records().len())
}

/// Returns the planned images that a finished shard lacks: an earlier pack left them out.
fn left_out_of(plan: &Plan, shard: &Shard, planned: &[u32]) -> Result<Vec<String>> {
    if shard.records().len() == planned.len() {
        return Ok(Vec::new());
    }
    let mut held = 0;
    let mut missing = Vec::new();
    for image in planned {
        let name = plan.source.name(*image as usize);
        if held < shard.records().len() && shard.read(held)?.1 == name {
            held += 1;
        } else {
            missing.push(format!("{name}\tleft out by an earlier, interrupted pack"));
        }
    }
    Ok(missing)
}

/// Shows a progress bar on a terminal, otherwise prints a line every ten seconds.
struct ProgressPrinter {
    bar: ProgressBar,
    plain: bool,
    last: Mutex<Instant>,
}

impl ProgressPrinter {
    fn new() -> ProgressPrinter {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style = ProgressStyle::with_template("pack {bar:30} {pos}/{len} images, {per_sec}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(None, target).with_style(style);
        ProgressPrinter { bar, plain, last: Mutex::new(Instant::now()) }
    }

    fn show(&self, progress: PackProgress) -> bool {
        self.bar.set_length(progress.num_images as u64);
        self.bar.set_position(progress.images as u64);
        if self.plain
            && let Ok(mut last) = self.last.try_lock()
            && last.elapsed() > Duration::from_secs(10)
        {
            *last = Instant::now();
            console::print_diagnostic(&format!(
                "pack: {} of {} images, {} of {} shards",
                progress.images, progress.num_images, progress.shards, progress.num_shards
            ));
        }
        true
    }
}
