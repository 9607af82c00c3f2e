//! `ShardSet`: the shards of a folder as one list of samples, described by `set.json`.

use super::shard::{Shard, VERSION, file_name};
use crate::data::error::{Error, Result};
use crate::files;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// `set.json`, written last: its presence says that the set is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetFile {
    /// Always "drnas-dist shards".
    pub format: String,
    /// Format version.
    pub version: u32,
    /// Class names; the label is the position.
    pub classes: Vec<String>,
    /// Images of each class.
    pub per_class: Vec<u64>,
    /// All images.
    pub num_images: u64,
    /// Files that `--skip-bad` left out.
    pub num_left_out: u64,
    /// Number of shards.
    pub num_shards: usize,
    /// The plan of these shards, hexadecimal.
    pub plan_hash: String,
    /// The content of these shards, hexadecimal.
    pub content_hash: String,
    /// Seed of the order within the shards.
    pub seed: u64,
}

/// What `SetFile::format` says.
pub const FORMAT: &str = "drnas-dist shards";

/// One sample, in the memory map.
#[derive(Clone, Copy, Debug)]
pub struct PackedSample<'a> {
    /// The image file's bytes.
    pub bytes: &'a [u8],
    /// Class.
    pub label: u32,
    /// `class/file`.
    pub name: &'a str,
}

/// A complete set of shards. Send + Sync: decode threads share it.
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
    /// Opens a folder that `drnas-dist pack` wrote and checks every shard's header, size and index.
    /// Errors: no or a damaged `set.json`, a missing, cut, damaged or foreign shard.
    pub fn open(dir: &Path) -> Result<ShardSet> {
        let file = read_set_file(dir)?;
        let mut shards = Vec::new(); // a damaged number must not ask for memory
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
        let damaged = |what: &str| Error::SetCorrupt { path: dir.join("set.json"), what: what.into() };
        if hex(hash) != file.content_hash {
            return Err(damaged("the shards are not those it was written for"));
        }
        if per_class != file.per_class || per_class.iter().sum::<u64>() != file.num_images {
            return Err(damaged("its counts are not those of the shards"));
        }
        let mut starts = vec![0];
        for shard in &shards {
            starts.push(starts[starts.len() - 1] + shard.records().len());
        }
        Ok(ShardSet { dir: dir.into(), shards, starts, classes: file.classes, per_class, hash })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.starts[self.shards.len()]
    }

    /// Whether there is no sample (`pack` never writes such a set).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of classes.
    pub fn num_classes(&self) -> usize {
        self.classes.len()
    }

    /// Class names; the label is the position.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Images of each class.
    pub fn per_class(&self) -> Vec<u64> {
        self.per_class.clone()
    }

    /// Identity of the content: equal wherever the same shards are read.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn locate(&self, index: usize) -> (&Shard, usize) {
        let shard = self.starts.partition_point(|start| *start <= index) - 1;
        (&self.shards[shard], index - self.starts[shard])
    }

    /// Sample `index` of 0..len (our mistake beyond: panics). Errors: the record is damaged.
    pub fn sample(&self, index: usize) -> Result<PackedSample<'_>> {
        assert!(index < self.len(), "sample {index} of {}", self.len());
        let (shard, record) = self.locate(index);
        let (bytes, name) = shard.read(record)?;
        Ok(PackedSample { bytes, label: shard.records()[record].label, name })
    }

    /// Where sample `index` is, for error messages: shard, record, file name.
    pub fn place(&self, index: usize) -> String {
        let (shard, record) = self.locate(index);
        let name = shard.read(record).map_or("name unreadable", |(_, name)| name);
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
    let damaged = |what: String| Error::SetCorrupt { path: path.clone(), what };
    let file: SetFile = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    if file.format != FORMAT || file.version != VERSION {
        return Err(damaged(format!(
            "\"{FORMAT}\" version {VERSION} expected, \"{}\" version {} found",
            file.format, file.version
        )));
    }
    if file.num_shards == 0 || file.classes.is_empty() {
        return Err(damaged("no shards or no classes".into()));
    }
    Ok(file)
}

/// Hash of class names and shard headers, which hold the hashes of everything below them.
pub fn content_hash(classes: &[String], header_hashes: impl Iterator<Item = u64>) -> u64 {
    let mut hash = Xxh3::new();
    for class in classes {
        hash.update(class.as_bytes());
        hash.update(b"\n");
    }
    header_hashes.for_each(|header| hash.update(&header.to_le_bytes()));
    hash.digest()
}

/// Images of each class. Errors: a label that is no class.
pub fn count_classes(shards: &[Shard], num_classes: usize) -> Result<Vec<u64>> {
    let mut per_class = vec![0; num_classes];
    for shard in shards {
        for (number, record) in shard.records().iter().enumerate() {
            *per_class.get_mut(record.label as usize).ok_or_else(|| Error::ShardCorrupt {
                shard: shard.name(),
                part: format!("record {number}"),
                what: format!("label {} of {num_classes} classes", record.label),
            })? += 1;
        }
    }
    Ok(per_class)
}

/// A hash as `set.json` writes it: JSON numbers lose bits above 2^53.
pub fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}
