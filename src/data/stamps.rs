//! Stamps of the source files of a packed shard, so that images replaced since are packed again.
//!
//! The plan's hash covers names but not contents: it is stored in every shard and thus part of the identity of a set,
//! which must not depend on when and where files were copied. `OUT/sources.jsonl` therefore stores, for each finished
//! shard, a hash of size, modification time and change time (ctime, which programs cannot set) of the source files. If
//! the stamps match, nothing was replaced, at the cost of one `stat` per image. Otherwise `pack` compares the contents.

use crate::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, Metadata, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// File name in the folder of shards.
const STAMPS_FILE: &str = "sources.jsonl";

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StampLine {
    shard: usize,
    /// `header_hash` of the shard, hexadecimal: a stamp is valid for that content of the shard only.
    header: String,
    /// Hash of the stamps of the source files, hexadecimal.
    files: String,
}

/// The stamps of a set being packed.
pub struct Stamps {
    path: PathBuf,
    lines: Mutex<BTreeMap<usize, StampLine>>,
}

/// Hashes size and timestamps of a file.
pub fn stamp(file: &Metadata) -> u64 {
    let times = [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()];
    let bytes: Vec<u8> =
        times.iter().flat_map(|time| time.to_le_bytes()).chain(file.len().to_le_bytes()).collect();
    xxh3_64(&bytes)
}

impl Stamps {
    /// Reads the stamps of the folder `out`. Invalid lines are ignored: the contents are compared instead.
    pub fn open(out: &Path) -> Stamps {
        let path = out.join(STAMPS_FILE);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<StampLine>(line).ok());
        Stamps { path, lines: Mutex::new(lines.map(|line| (line.shard, line)).collect()) }
    }

    /// Returns whether the shard with this header was packed from files with the stamp `files`.
    pub fn matches(&self, shard: usize, header: u64, files: u64) -> bool {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.get(&shard) == Some(&line(shard, header, files))
    }

    /// Writes the stamp of a finished shard immediately, in case packing is interrupted. Write errors are
    /// ignored: the next pack then compares contents.
    pub fn record(&self, shard: usize, header: u64, files: u64) {
        let line = line(shard, header, files);
        let mut text = serde_json::to_vec(&line).expect("plain data becomes JSON");
        text.push(b'\n');
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let _ = file.and_then(|mut file| file.write_all(&text));
        lines.insert(shard, line);
    }

    /// Rewrites the file with one line for each of `num_shards` shards, in order, unless it is already in that form.
    pub fn compact(&self, num_shards: usize) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = lines.range(..num_shards).map(|(_, line)| serde_json::to_string(line));
        let text: String = lines.map(|line| line.expect("plain data becomes JSON") + "\n").collect();
        if fs::read_to_string(&self.path).ok().as_ref() != Some(&text) {
            let _ = files::write(&self.path, text.as_bytes());
        }
    }
}

fn line(shard: usize, header: u64, files: u64) -> StampLine {
    StampLine { shard, header: format!("{header:016x}"), files: format!("{files:016x}") }
}
