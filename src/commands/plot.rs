//! `plot`: plots the paper's figures from the run folder of a finished or running search.

use crate::cli::{Figure, PlotArgs};
use crate::error::Result;
use crate::files;
use crate::nb201::Table;
use crate::process::console;
use crate::report::plot::{Trajectory, png, svg};
use crate::space::nb201::Dataset;
use std::fs;
use std::path::{Path, PathBuf};

/// `drnas-dist plot`.
pub fn run(args: &PlotArgs) -> Result<()> {
    let Figure::Trajectory(args) = &args.figure;
    let searched = || dataset_of(&args.run);
    let dataset = args.dataset.map_or_else(searched, Ok)?;
    let table = Table::open(&args.table)?;
    let trajectory = Trajectory::read(&args.run, &table, dataset, args.samples as usize, args.seed)?;
    let stem = args.out.clone().unwrap_or_else(|| args.run.join(format!("trajectory-{}", dataset.name())));
    let (svg_path, png_path) = (with_extension(&stem, "svg"), with_extension(&stem, "png"));
    let figures =
        [(&svg_path, svg(&trajectory, &svg_path)?.into_bytes()), (&png_path, png(&trajectory, &png_path)?)];
    // The figure in the run folder is always replaced, because the run may have progressed.
    let overwrite = args.overwrite || args.out.is_none();
    for (path, bytes) in &figures {
        files::check_new(path, bytes, overwrite)?;
    }
    figures.iter().try_for_each(|(path, bytes)| write(path, bytes))?;
    Ok(console::print_result(&format!(
        "{}{}\n{}\n",
        trajectory.text(),
        svg_path.display(),
        png_path.display()
    ))?)
}

/// Infers the data set of a search from `model.num_classes` in its configuration; CIFAR-10 if unknown.
fn dataset_of(run: &Path) -> Result<Dataset> {
    let path = run.join("config.toml");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Dataset::Cifar10),
        Err(error) => return Err(files::io("read", path)(error).into()),
    };
    let settings: toml::Table = text.parse().unwrap_or_default();
    let num_classes = settings.get("model").and_then(|model| model.get("num_classes")?.as_integer());
    Ok(match num_classes {
        Some(100) => Dataset::Cifar100,
        Some(120) => Dataset::ImageNet16,
        _ => Dataset::Cifar10,
    })
}

/// Replaces or appends the extension: "a/b", "a/b.svg" and "a/b.png" all give a/b.svg and a/b.png; other dots are kept.
fn with_extension(stem: &Path, extension: &str) -> PathBuf {
    let bare = match stem.extension().and_then(|extension| extension.to_str()) {
        Some("svg" | "png") => stem.with_extension(""),
        _ => stem.to_owned(),
    };
    let mut name = bare.into_os_string();
    name.push(format!(".{extension}"));
    name.into()
}

/// Writes a figure atomically, because an older version of it may be open in a viewer.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(files::io("create folder", folder))?;
    }
    Ok(files::write(path, bytes)?)
}
