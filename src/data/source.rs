//! `Source`: a labelled data set in any supported layout, as read by `split` and `pack`.

use super::folder::{Folder, names_in};
use super::records::Records;
use super::stamps::stamp;
use crate::cli::{SourceArgs, SourceFormat};
use crate::data::error::{Error, Result};
use crate::files;
use std::io::Read;
use std::path::Path;

/// Labelled images: all of a data set, or a selection.
pub enum Source {
    /// One file per image.
    Folder(Folder),
    /// Many images per file, in canonical order.
    Records(Records),
}

impl Source {
    /// Opens `root` and selects the images given by `args` and the list of names `list`.
    /// Errors: see `Folder` and `Records`; incompatible arguments.
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
                "{name} applies to CIFAR and ImageNet16 data, but {} is a folder of images",
                root.display()
            )));
        }
        let folder = match list {
            Some(list) => Folder::from_list(root, list)?,
            None => Folder::scan(root)?,
        };
        Ok(Source::Folder(folder))
    }

    /// Returns the root folder.
    pub fn root(&self) -> &Path {
        match self {
            Source::Folder(folder) => &folder.root,
            Source::Records(records) => &records.root,
        }
    }

    /// Returns the class names; the label is the index.
    pub fn classes(&self) -> &[String] {
        match self {
            Source::Folder(folder) => &folder.classes,
            Source::Records(records) => &records.classes,
        }
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        match self {
            Source::Folder(folder) => folder.len(),
            Source::Records(records) => records.len(),
        }
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the label of image `index`.
    pub fn label(&self, index: usize) -> u32 {
        match self {
            Source::Folder(folder) => folder.label(index),
            Source::Records(records) => records.label(index),
        }
    }

    /// Returns `class/file` of image `index`; images of records are named by part and canonical number.
    pub fn name(&self, index: usize) -> String {
        match self {
            Source::Folder(folder) => folder.name(index),
            Source::Records(records) => records.name(index),
        }
    }

    /// Returns the number of images of each class.
    pub fn per_class(&self) -> Vec<u64> {
        let mut counts = vec![0; self.classes().len()];
        (0..self.len()).for_each(|index| counts[self.label(index) as usize] += 1);
        counts
    }

    /// Hashes classes, names and labels (not the image contents).
    pub fn hash(&self) -> u64 {
        match self {
            Source::Folder(folder) => folder.hash(),
            Source::Records(records) => records.hash(),
        }
    }

    /// Hashes size and timestamps of the file of image `index`. A different stamp indicates possibly different content.
    pub fn stamp(&self, index: usize) -> Result<u64> {
        match self {
            Source::Folder(folder) => {
                let path = folder.root.join(folder.name(index));
                Ok(stamp(&std::fs::metadata(&path).map_err(files::io("read", &path))?))
            }
            Source::Records(records) => Ok(records.stamp(index)),
        }
    }

    /// Returns the number of files in a folder that are not images.
    pub fn num_ignored(&self) -> usize {
        match self {
            Source::Folder(folder) => folder.num_ignored,
            Source::Records(_) => 0,
        }
    }

    /// Returns whether the order is arbitrary, so that `pack` may shuffle the images.
    pub fn is_unordered(&self) -> bool {
        matches!(self, Source::Folder(_))
    }

    /// Reads the file of image `index` (JPEG, PNG, PPM) into `bytes`.
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

/// Detects the layout of the files in `root`.
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
        // Limits the length of the list: one number beyond the last image is enough for the error.
        let end = range.end.min(range.start.max(records.len() as u32) + 1);
        records.keep((range.start..end).collect()).map_err(wrong)?;
    }
    Ok(records)
}

/// Returns the numbers of the images named in a list written by `split`.
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

/// Returns the list `part` of a split file; its entries may be numbers or strings.
fn split_list(path: &Path, part: &str) -> Result<Vec<u32>> {
    use serde_json::Value;
    let wrong = |what: String| Error::Source { path: path.into(), what };
    let text = std::fs::read(path).map_err(files::io("read", path))?;
    let file: serde_json::Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    let Some(entry) = file.get(part) else {
        let available: Vec<&str> = file.keys().map(String::as_str).collect();
        return Err(wrong(format!("no list \"{part}\"; available: {}", available.join(", "))));
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
        wrong(format!("\"{part}\": expected a list of numbers such as [\"int\", [\"0\", \"5\", ...]]"))
    })
}
