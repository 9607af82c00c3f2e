//! One shard: on-disk structs, the checked memory map, and the writer. Format: `datasets/FORMAT.md`.

use super::sigbus::SigbusGuard;
use crate::data::error::{Error, Result};
use crate::files;
use bytemuck::{Pod, Zeroable};
use memmap2::{Advice, Mmap};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The format version; others are rejected.
pub const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"DRNASHRD";
const HEADER_BYTES: usize = size_of::<ShardHeader>();
const RECORD_BYTES: usize = size_of::<ShardRecord>();

// The structs below are read in place.
const _: () = assert!(cfg!(target_endian = "little"), "shards are little endian");

/// The first 64 bytes of a shard.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ShardHeader {
    magic: [u8; 8],
    version: u32,
    /// Index of this shard in the set, from 0.
    pub shard: u32,
    /// Number of samples in this shard.
    pub num_records: u32,
    /// Number of index entries; more than `num_records` if images were left out.
    num_slots: u32,
    /// Size of the file.
    pub file_bytes: u64,
    /// Identifies the plan (images, classes, seed, options) of this shard.
    pub plan_hash: u64,
    /// xxh3 of the used index records and thus, through their hashes, of all content.
    index_hash: u64,
    reserved: u64,
    /// xxh3 of the preceding 56 bytes.
    pub header_hash: u64,
}

/// An index entry for one sample; the file name is stored before `offset`, the image from `offset` on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ShardRecord {
    /// Offset of the image in the file.
    pub offset: u64,
    /// xxh3 of file name and image.
    pub hash: u64,
    /// Bytes of the image.
    pub length: u32,
    /// Label.
    pub label: u32,
    /// Image width.
    pub width: u16,
    /// Image height.
    pub height: u16,
    /// Bytes of the file name.
    pub name_length: u16,
    reserved: u16,
}

/// A memory-mapped shard. The index is not copied: no data per sample is on the heap.
pub struct Shard {
    path: PathBuf,
    /// Declared before the map, so that it is dropped first.
    _lost: SigbusGuard,
    map: Mmap,
    header: ShardHeader,
}

/// Returns the file name of shard number `shard`.
pub fn file_name(shard: usize) -> String {
    format!("shard-{shard:05}.bin")
}

impl Shard {
    /// Maps a shard and checks magic, version, header, size and index (not the images, which are checked when read).
    /// Errors: one per kind of corruption.
    pub fn open(path: &Path) -> Result<Shard> {
        let file = File::open(path).map_err(files::io("open", path))?;
        // SAFETY: the map is read-only and private to this process; modifications by other processes are detected by
        // checksums. If the file is truncated while mapped, the SIGBUS handler prints a message and exits (`sigbus`);
        // finished shards are never written again (`pack` renames them into place).
        let map = unsafe { Mmap::map(&file) }.map_err(files::io("map", path))?;
        let lost = SigbusGuard::watch(path, &map);
        let mut shard = Shard { path: path.to_owned(), _lost: lost, map, header: ShardHeader::zeroed() };
        shard.header = shard.checked_header()?;
        Ok(shard)
    }

    fn checked_header(&self) -> Result<ShardHeader> {
        let shard = self.name();
        let cut_short = |present, expected| Error::ShardTruncated { shard: self.name(), present, expected };
        let found = &self.map[..self.map.len().min(MAGIC.len())];
        if found != &MAGIC[..found.len()] {
            return Err(Error::ShardMagic { shard });
        }
        let Some(bytes) = self.map.get(..HEADER_BYTES) else {
            return Err(cut_short(0, 0));
        };
        let header: ShardHeader = bytemuck::pod_read_unaligned(bytes);
        if header.version != VERSION {
            return Err(Error::ShardVersion { shard, found: header.version, expected: VERSION });
        }
        check_hash(shard, "header", header.header_hash, xxh3_64(&bytes[..HEADER_BYTES - 8]))?;
        let num_records = header.num_records as usize;
        let index_end = HEADER_BYTES + RECORD_BYTES * num_records;
        let Some(index) = self.map.get(HEADER_BYTES..index_end) else {
            return Err(cut_short(0, num_records));
        };
        check_hash(self.name(), "index", header.index_hash, xxh3_64(index))?;
        let file_bytes = self.map.len() as u64;
        if file_bytes < header.file_bytes {
            let records: &[ShardRecord] = bytemuck::cast_slice(index);
            let inside = |r: &&ShardRecord| r.offset.saturating_add(r.length.into()) <= file_bytes;
            return Err(cut_short(records.iter().filter(inside).count(), num_records));
        }
        if file_bytes > header.file_bytes {
            return Err(Error::ShardCorrupt {
                shard: self.name(),
                part: "size".into(),
                what: format!("expected {} bytes, found {file_bytes}", header.file_bytes),
            });
        }
        Ok(header)
    }

    /// Returns the header.
    pub fn header(&self) -> &ShardHeader {
        &self.header
    }

    /// Returns the file name of this shard.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the index, in the map.
    pub fn records(&self) -> &[ShardRecord] {
        let end = HEADER_BYTES + RECORD_BYTES * self.header.num_records as usize;
        // The map is page-aligned and the header has 64 bytes, so records are aligned; `open` has checked the bounds.
        bytemuck::cast_slice(&self.map[HEADER_BYTES..end])
    }

    /// Returns image bytes and file name of record `index`, checked against the record's hash.
    /// Errors: invalid bounds or hash; names shard, record and file.
    pub fn read(&self, index: usize) -> Result<(&[u8], &str)> {
        let record = &self.records()[index];
        let name_bytes = u64::from(record.name_length);
        let range = record
            .offset
            .checked_sub(name_bytes)
            .zip(record.offset.checked_add(record.length.into()))
            .filter(|(start, end)| *start >= HEADER_BYTES as u64 && *end <= self.map.len() as u64);
        let Some((start, end)) = range else {
            return Err(Error::ShardCorrupt {
                shard: self.name(),
                part: format!("record {index}"),
                what: format!("offset {} and length {} are outside the file", record.offset, record.length),
            });
        };
        let (start, end) = (start as usize, end as usize);
        // Reads the whole record at once instead of page by page; only a hint, so errors are ignored.
        let _ = self.map.advise_range(Advice::WillNeed, start, end - start);
        let (name, image) = self.map[start..end].split_at(record.name_length.into());
        let found = xxh3_64(&self.map[start..end]);
        if found != record.hash {
            let part = format!("record {index} ({})", String::from_utf8_lossy(name));
            check_hash(self.name(), &part, record.hash, found)?;
        }
        let name = std::str::from_utf8(name).map_err(|_| Error::ShardCorrupt {
            shard: self.name(),
            part: format!("the file name of record {index}"),
            what: "expected UTF-8".into(),
        })?;
        Ok((image, name))
    }
}

fn check_hash(shard: String, part: &str, expected: u64, found: u64) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::ShardCorrupt {
        shard,
        part: part.into(),
        what: format!("expected checksum {expected:016x}, found {found:016x}"),
    })
}

/// Writes one shard to `<path>.tmp`, then fsyncs and renames it, so that a file with the final name is complete.
pub struct ShardWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    header: ShardHeader,
    records: Vec<ShardRecord>,
    at: u64,
}

impl ShardWriter {
    /// Creates a shard with `num_slots` index entries.
    pub fn create(dir: &Path, shard: usize, num_slots: usize, plan_hash: u64) -> Result<ShardWriter> {
        let path = dir.join(file_name(shard));
        let temporary = path.with_extension("bin.tmp");
        let file = File::create(&temporary).map_err(files::io("create", &temporary))?;
        let mut header = ShardHeader::zeroed();
        header.magic = MAGIC;
        header.version = VERSION;
        header.shard = shard as u32;
        header.num_slots = num_slots as u32;
        header.plan_hash = plan_hash;
        let mut writer = ShardWriter {
            path,
            temporary,
            file: BufWriter::with_capacity(1 << 20, file),
            header,
            records: Vec::with_capacity(num_slots),
            at: 0,
        };
        // Header and index are written last; until then they are zero, which no reader accepts.
        writer.put(&vec![0; HEADER_BYTES + RECORD_BYTES * num_slots])?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        Ok(self.file.write_all(bytes).map_err(files::io("write", &self.temporary))?)
    }

    /// Adds a sample. `size` is width and height, each at most 65535.
    pub fn push(&mut self, name: &str, label: u32, size: (u32, u32), image: &[u8]) -> Result<()> {
        let (Ok(name_length), Ok(length)) = (u16::try_from(name.len()), u32::try_from(image.len())) else {
            return Err(Error::BadImage { place: name.into(), reason: "larger than 4 GiB".into() });
        };
        let mut hash = Xxh3::new();
        hash.update(name.as_bytes());
        hash.update(image);
        self.put(name.as_bytes())?;
        self.records.push(ShardRecord {
            offset: self.at,
            hash: hash.digest(),
            length,
            label,
            width: size.0 as u16,
            height: size.1 as u16,
            name_length,
            reserved: 0,
        });
        self.put(image)
    }

    /// Writes header and index and renames the shard to its final name.
    pub fn finish(mut self) -> Result<()> {
        let index: &[u8] = bytemuck::cast_slice(&self.records);
        self.header.num_records = self.records.len() as u32;
        self.header.file_bytes = self.at;
        self.header.index_hash = xxh3_64(index);
        self.header.header_hash = xxh3_64(&bytemuck::bytes_of(&self.header)[..HEADER_BYTES - 8]);
        let io = || files::io("write", &self.temporary);
        self.file.seek(SeekFrom::Start(0)).map_err(io())?;
        self.file.write_all(bytemuck::bytes_of(&self.header)).map_err(io())?;
        self.file.write_all(index).map_err(io())?;
        self.file.flush().map_err(io())?;
        self.file.get_ref().sync_all().map_err(io())?;
        Ok(std::fs::rename(&self.temporary, &self.path).map_err(files::io("rename", &self.temporary))?)
    }
}
