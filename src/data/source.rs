//! `Source`: labelled images as they are obtained, whatever the layout; `split` and `pack` read them.

use super::folder::{Folder, names_in};
use super::records::Records;
use super::stamps::stamp;
use crate::cli::{SourceArgs, SourceFormat};
use crate::data::error::{Error, Result};
use crate::files;
use std::io::Read;
use std::path::Path;

/// Labelled images, all or those that were asked for.
pub enum Source {
    /// One file an image.
    Folder(Folder),
    /// Many images a file, in canonical order.
    Records(Records),
}

impl Source {
    /// Opens `root`; of its images those that `args` and the list of names `list` want.
    /// Errors: see `Folder` and `Records`; arguments that do not go together.
    pub fn open(root: &Path, args: &SourceArgs, list: Option<&Path>) -> Result<Source> {
        let format = args.format.unwrap_or_else(|| detect(root));
        if format != SourceFormat::Folder {
            return Ok(Source::Records(records(root, format, args, list)?));
        }
        let misplaced = [
            ("--test", args.test),
            ("--classes", args.classes.is_some()),
            ("--range", args.range.is_some()),
            ("--split-file", args.split_file.is_some()),
        ];
        if let Some((name, _)) = misplaced.iter().find(|(_, given)| *given) {
            return Err(Error::SourceArgs(format!(
                "{name} is for the layouts of CIFAR and ImageNet16, {} is a folder of images",
                root.display()
            )));
        }
        let folder = match list {
            Some(list) => Folder::from_list(root, list)?,
            None => Folder::scan(root)?,
        };
        Ok(Source::Folder(folder))
    }

    /// Where the images are.
    pub fn root(&self) -> &Path {
        match self {
            Source::Folder(folder) => &folder.root,
            Source::Records(records) => &records.root,
        }
    }

    /// Class names; the label is the position.
    pub fn classes(&self) -> &[String] {
        match self {
            Source::Folder(folder) => &folder.classes,
            Source::Records(records) => &records.classes,
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Source::Folder(folder) => folder.len(),
            Source::Records(records) => records.len(),
        }
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class of image `index`.
    pub fn label(&self, index: usize) -> u32 {
        match self {
            Source::Folder(folder) => folder.label(index),
            Source::Records(records) => records.label(index),
        }
    }

    /// `class/file` of image `index`; images of records have file names too: part, canonical number.
    pub fn name(&self, index: usize) -> String {
        match self {
            Source::Folder(folder) => folder.name(index),
            Source::Records(records) => records.name(index),
        }
    }

    /// Images of each class.
    pub fn per_class(&self) -> Vec<u64> {
        let mut counts = vec![0; self.classes().len()];
        (0..self.len()).for_each(|index| counts[self.label(index) as usize] += 1);
        counts
    }

    /// Hash of classes, names and labels (not of the images' bytes).
    pub fn hash(&self) -> u64 {
        match self {
            Source::Folder(folder) => folder.hash(),
            Source::Records(records) => records.hash(),
        }
    }

    /// What the file of image `index` looks like from outside: size and times. Another stamp may be another content.
    pub fn stamp(&self, index: usize) -> Result<u64> {
        match self {
            Source::Folder(folder) => {
                let path = folder.root.join(folder.name(index));
                Ok(stamp(&std::fs::metadata(&path).map_err(files::io("read", &path))?))
            }
            Source::Records(records) => Ok(records.stamp(index)),
        }
    }

    /// Files of a folder that are no images.
    pub fn num_ignored(&self) -> usize {
        match self {
            Source::Folder(folder) => folder.num_ignored,
            Source::Records(_) => 0,
        }
    }

    /// Whether the order has no meaning, so that `pack` may choose one.
    pub fn is_unordered(&self) -> bool {
        matches!(self, Source::Folder(_))
    }

    /// The file of image `index` (JPEG, PNG, PPM) into `bytes`.
    pub fn read(&self, index: usize, bytes: &mut Vec<u8>) -> Result<()> {
        match self {
            Source::Folder(folder) => {
                let path = folder.root.join(folder.name(index));
                bytes.clear();
                let mut file = std::fs::File::open(&path).map_err(files::io("open", &path))?;
                file.read_to_end(bytes).map_err(files::io("read", &path))?;
            }
            Source::Records(records) => records.read(index, bytes),
        }
        Ok(())
    }
}

/// Which layout the files in `root` have.
fn detect(root: &Path) -> SourceFormat {
    let there = |name: &str| root.join(name).is_file();
    if there("data_batch_1.bin") || there("test_batch.bin") {
        SourceFormat::Cifar10
    } else if there("fine_label_names.txt") && (there("train.bin") || there("test.bin")) {
        SourceFormat::Cifar100
    } else if there("train_data_batch_1") || there("val_data") {
        SourceFormat::Imagenet16
    } else {
        SourceFormat::Folder
    }
}

fn records(root: &Path, format: SourceFormat, args: &SourceArgs, list: Option<&Path>) -> Result<Records> {
    let mut records = Records::open(root, format, args)?;
    if let Some(list) = list {
        let numbers = listed(&records, list)?;
        let wrong = |what| Error::Source { path: list.into(), what };
        records.keep(numbers).map_err(wrong)?;
    } else if let (Some(path), Some(part)) = (&args.split_file, &args.part) {
        let numbers = split_list(path, part)?;
        let wrong = |what| Error::Source { path: path.clone(), what: format!("\"{part}\": {what}") };
        records.keep(numbers).map_err(wrong)?;
    } else if let Some(range) = &args.range {
        let wrong = |what| Error::SourceArgs(format!("--range {}..{}: {what}", range.start, range.end));
        // One number beyond the last image says as well as a billion of them that the range is too long.
        let end = range.end.min(range.start.max(records.len() as u32) + 1);
        records.keep((range.start..end).collect()).map_err(wrong)?;
    }
    Ok(records)
}

/// The numbers of the names in a list as `split` writes it.
fn listed(records: &Records, list: &Path) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(list).map_err(files::io("read", list))?;
    let number = |(line, name): (usize, &str)| {
        records.number_of(name).ok_or_else(|| {
            let what = format!("no image \"{name}\" in this data set");
            Error::ListLine { path: list.into(), line, what }
        })
    };
    names_in(&text).map(number).collect()
}

/// List `part` of a split file; numbers may be written as numbers or as text.
fn split_list(path: &Path, part: &str) -> Result<Vec<u32>> {
    use serde_json::Value;
    let wrong = |what: String| Error::Source { path: path.into(), what };
    let text = std::fs::read(path).map_err(files::io("read", path))?;
    let file: serde_json::Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    let Some(entry) = file.get(part) else {
        let there: Vec<&str> = file.keys().map(String::as_str).collect();
        return Err(wrong(format!("no list \"{part}\"; there are: {}", there.join(", "))));
    };
    let list = match entry.as_array().map(Vec::as_slice) {
        Some([Value::String(kind), Value::Array(list)]) if kind == "int" => Some(list.as_slice()),
        list => list,
    };
    let number = |value: &Value| match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64().and_then(|number| u32::try_from(number).ok()),
    };
    list.and_then(|list| list.iter().map(number).collect()).ok_or_else(|| {
        wrong(format!("\"{part}\" is no list of numbers: [\"int\", [\"0\", \"5\", ...]] expected"))
    })
}
