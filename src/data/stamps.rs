//! Stamps: what the files looked like that a finished shard was packed from, so that a picture that was replaced since is
//! packed anew.
//!
//! The plan's hash covers names and not bytes: it stands in every shard and so is part of the identity of a set, which must
//! not depend on when and where files were copied. `OUT/sources.jsonl` keeps beside the set, for each finished shard, a hash
//! of size, time of modification and time of change (ctime, which no program can set back) of its images' files. Equal
//! stamps: nothing was replaced, one `stat` an image. Other ones, or none: `pack` compares the bytes.

use crate::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, Metadata, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// Name of the file in the folder of shards.
const STAMPS_FILE: &str = "sources.jsonl";

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StampLine {
    shard: usize,
    /// `header_hash` of the shard, hexadecimal: the stamp of another shard of that number says nothing.
    header: String,
    /// Hash of the stamps of its images' files, hexadecimal.
    files: String,
}

/// The stamps of a set that is being packed.
pub struct Stamps {
    path: PathBuf,
    lines: Mutex<BTreeMap<usize, StampLine>>,
}

/// What a file looks like from outside.
pub fn stamp(file: &Metadata) -> u64 {
    let times = [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()];
    let bytes: Vec<u8> =
        times.iter().flat_map(|time| time.to_le_bytes()).chain(file.len().to_le_bytes()).collect();
    xxh3_64(&bytes)
}

impl Stamps {
    /// Those of the folder `out`. A line that cannot be read counts as none: the bytes are compared then.
    pub fn open(out: &Path) -> Stamps {
        let path = out.join(STAMPS_FILE);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<StampLine>(line).ok());
        Stamps { path, lines: Mutex::new(lines.map(|line| (line.shard, line)).collect()) }
    }

    /// Whether the shard with this header was packed from files that looked like `files`.
    pub fn agree(&self, shard: usize, header: u64, files: u64) -> bool {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.get(&shard) == Some(&line(shard, header, files))
    }

    /// Keeps the stamp of a finished shard: at once, so that an interrupted pack knows it. Where it cannot be written, the
    /// next pack compares bytes.
    pub fn note(&self, shard: usize, header: u64, files: u64) {
        let line = line(shard, header, files);
        let mut text = serde_json::to_vec(&line).expect("plain data becomes JSON");
        text.push(b'\n');
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let _ = file.and_then(|mut file| file.write_all(&text));
        lines.insert(shard, line);
    }

    /// Leaves one line for each of `num_shards` shards, in order, if the file is not like that already.
    pub fn tidy(&self, num_shards: usize) {
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
