//! `ShardSet`: the shards of a folder as one list of samples, described by `set.json`.

use super::shard::{Shard, VERSION, file_name};
use crate::data::error::{Error, Result};
use crate::files;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// `set.json`, written last: its presence marks the set as complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetFile {
    /// Always "drnas-dist shards".
    pub format: String,
    /// Format version.
    pub version: u32,
    /// Class names; the label is the index.
    pub classes: Vec<String>,
    /// Number of images of each class.
    pub per_class: Vec<u64>,
    /// Number of images.
    pub num_images: u64,
    /// Number of files left out by `--skip-bad`.
    pub num_left_out: u64,
    /// Number of shards.
    pub num_shards: usize,
    /// Hash of the plan, hexadecimal.
    pub plan_hash: String,
    /// Hash of the content, hexadecimal.
    pub content_hash: String,
    /// Seed of the order within the shards.
    pub seed: u64,
}

/// The value of `SetFile::format`.
pub const FORMAT: &str = "drnas-dist shards";

/// One sample, in the memory map.
#[derive(Clone, Copy, Debug)]
pub struct PackedSample<'a> {
    /// The bytes of the image file.
    pub bytes: &'a [u8],
    /// Label.
    pub label: u32,
    /// `class/file`.
    pub name: &'a str,
}

/// A complete shard set. Send + Sync: shared by the decode threads.
pub struct ShardSet {
    dir: PathBuf,
    shards: Vec<Shard>,
    /// First sample of each shard, then the number of samples.
    starts: Vec<usize>,
    classes: Vec<String>,
    per_class: Vec<u64>,
    hash: u64,
}

impl ShardSet {
    /// Opens a folder written by `drnas-dist pack` and checks header, size and index of every shard.
    /// Errors: `set.json` is missing or invalid; a shard is missing, truncated, corrupt, or of another set.
    pub fn open(dir: &Path) -> Result<ShardSet> {
        let file = read_set_file(dir)?;
        let mut shards = Vec::new(); // no `with_capacity`: the number is untrusted
        for number in 0..file.num_shards {
            let path = dir.join(file_name(number));
            if !path.exists() {
                return Err(Error::ShardMissing {
                    shard: file_name(number),
                    dir: dir.into(),
                    num_shards: file.num_shards,
                });
            }
            let shard = Shard::open(&path)?;
            let header = shard.header();
            if header.shard as usize != number || hex(header.plan_hash) != file.plan_hash {
                return Err(Error::ShardForeign { shard: shard.name(), dir: dir.into() });
            }
            shards.push(shard);
        }
        let hash = content_hash(&file.classes, shards.iter().map(|s| s.header().header_hash));
        let per_class = count_classes(&shards, file.classes.len())?;
        let corrupt = |what: &str| Error::SetCorrupt { path: dir.join("set.json"), what: what.into() };
        if hex(hash) != file.content_hash {
            return Err(corrupt("does not match the content of the shards"));
        }
        if per_class != file.per_class || per_class.iter().sum::<u64>() != file.num_images {
            return Err(corrupt("its image counts do not match the shards"));
        }
        let mut starts = vec![0];
        for shard in &shards {
            starts.push(starts[starts.len() - 1] + shard.records().len());
        }
        Ok(ShardSet { dir: dir.into(), shards, starts, classes: file.classes, per_class, hash })
    }

    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        self.starts[self.shards.len()]
    }

    /// Returns whether there are no samples (`pack` never writes such a set).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of classes.
    pub fn num_classes(&self) -> usize {
        self.classes.len()
    }

    /// Returns the class names; the label is the index.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Returns the number of images of each class.
    pub fn per_class(&self) -> Vec<u64> {
        self.per_class.clone()
    }

    /// Returns the hash of the content: equal for copies of the same shards.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn locate(&self, index: usize) -> (&Shard, usize) {
        let shard = self.starts.partition_point(|start| *start <= index) - 1;
        (&self.shards[shard], index - self.starts[shard])
    }

    /// Returns sample `index`. Panics if `index` >= len. Errors: the record is corrupt.
    pub fn sample(&self, index: usize) -> Result<PackedSample<'_>> {
        assert!(index < self.len(), "sample {index} of {}", self.len());
        let (shard, record) = self.locate(index);
        let (bytes, name) = shard.read(record)?;
        Ok(PackedSample { bytes, label: shard.records()[record].label, name })
    }

    /// Describes the location of sample `index` for error messages: shard, record, file name.
    pub fn location(&self, index: usize) -> String {
        let (shard, record) = self.locate(index);
        let name = shard.read(record).map_or("unreadable name", |(_, name)| name);
        format!("shard {} record {record} ({name})", shard.name())
    }
}

/// Reads and checks `set.json`.
pub fn read_set_file(dir: &Path) -> Result<SetFile> {
    let path = dir.join("set.json");
    if !path.exists() {
        return Err(Error::SetMissing { dir: dir.into() });
    }
    let text = std::fs::read(&path).map_err(files::io("read", &path))?;
    let corrupt = |what: String| Error::SetCorrupt { path: path.clone(), what };
    let file: SetFile = serde_json::from_slice(&text).map_err(|e| corrupt(e.to_string()))?;
    if file.format != FORMAT || file.version != VERSION {
        return Err(corrupt(format!(
            "expected \"{FORMAT}\" version {VERSION}, found \"{}\" version {}",
            file.format, file.version
        )));
    }
    if file.num_shards == 0 || file.classes.is_empty() {
        return Err(corrupt("no shards or no classes".into()));
    }
    Ok(file)
}

/// Hashes class names and shard headers, which contain the hashes of all content.
pub fn content_hash(classes: &[String], header_hashes: impl Iterator<Item = u64>) -> u64 {
    let mut hash = Xxh3::new();
    for class in classes {
        hash.update(class.as_bytes());
        hash.update(b"\n");
    }
    header_hashes.for_each(|header| hash.update(&header.to_le_bytes()));
    hash.digest()
}

/// Counts the images of each class. Errors: a label without a class.
pub fn count_classes(shards: &[Shard], num_classes: usize) -> Result<Vec<u64>> {
    let mut per_class = vec![0; num_classes];
    for shard in shards {
        for (number, record) in shard.records().iter().enumerate() {
            *per_class.get_mut(record.label as usize).ok_or_else(|| Error::ShardCorrupt {
                shard: shard.name(),
                part: format!("record {number}"),
                what: format!("label {}, but there are {num_classes} classes", record.label),
            })? += 1;
        }
    }
    Ok(per_class)
}

/// Formats a hash for `set.json`: JSON numbers lose bits above 2^53.
pub fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}
