//! File format of the table: on-disk structs, validation and the writer. Specification: `datasets/FORMAT.md`.
//!
//! Header (64 bytes), columns (64 bytes each), codes (u16, N), values (u32, N x C, row-major); little endian. N: all
//! architectures of the space, C: number of columns; 594,390 bytes with nine columns.

use super::Column;
use crate::files;
use crate::nb201::error::{Error, Result};
use crate::space::nb201::{Architecture, NUM_ARCHITECTURES};
use bytemuck::{Pod, Zeroable};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Format version; other versions are refused.
pub const VERSION: u32 = 1;
/// Maximum number of columns; keeps a table below 2 MB.
pub const MAX_COLUMNS: usize = 28;
/// Maximum length of a column name in bytes.
pub const MAX_NAME_BYTES: usize = 48;
/// Maximum number of decimals.
pub const MAX_DECIMALS: u32 = 6;

const MAGIC: [u8; 8] = *b"DRNAS201";
const HEADER_BYTES: usize = size_of::<TableHeader>();
const COLUMN_BYTES: usize = size_of::<ColumnRecord>();

const _: () = assert!(cfg!(target_endian = "little"), "tables are little endian");

/// The first 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TableHeader {
    magic: [u8; 8],
    version: u32,
    num_architectures: u32,
    num_columns: u32,
    reserved: [u32; 3],
    /// Size of the file, bytes.
    file_bytes: u64,
    /// xxh3 of the bytes after the header.
    body_hash: u64,
    more_reserved: u64,
    /// xxh3 of the preceding 56 bytes.
    header_hash: u64,
}

/// A column; its values are integers divided by 10^decimals.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ColumnRecord {
    /// UTF-8, zero-padded.
    name: [u8; MAX_NAME_BYTES],
    /// UTF-8, zero-padded; "percent" or empty.
    unit: [u8; 8],
    decimals: u32,
    reserved: u32,
}

/// Offsets in a validated table, bytes from the start.
#[derive(Debug)]
pub struct Layout {
    /// The columns.
    pub columns: Vec<Column>,
    /// Offset of the codes.
    pub codes_at: usize,
    /// Offset of the values.
    pub values_at: usize,
    /// Index in the file of each code.
    pub index_of: Vec<u16>,
}

/// Returns the size of a table with `num_columns` columns.
fn file_bytes(num_columns: usize) -> usize {
    HEADER_BYTES + num_columns * COLUMN_BYTES + NUM_ARCHITECTURES * (2 + 4 * num_columns)
}

/// Checks magic, version, sizes, checksums, columns and codes, in that order. Errors: a specific one for each fault.
pub fn check(path: &Path, bytes: &[u8]) -> Result<Layout> {
    let corrupt = |what: String| Error::Corrupt { path: path.to_owned(), what };
    let truncated = |expected| Error::Truncated { path: path.to_owned(), found: bytes.len(), expected };
    if bytes.is_empty() || bytes[..bytes.len().min(8)] != MAGIC[..bytes.len().min(8)] {
        return Err(Error::Magic { path: path.to_owned() });
    }
    let head = bytes.get(..HEADER_BYTES).ok_or_else(|| truncated(HEADER_BYTES))?;
    let header: TableHeader = bytemuck::pod_read_unaligned(head);
    if header.version != VERSION {
        return Err(Error::Version { path: path.to_owned(), found: header.version, expected: VERSION });
    }
    same_hash("the header", header.header_hash, xxh3_64(&head[..HEADER_BYTES - 8])).map_err(corrupt)?;
    // A valid checksum does not exclude a faulty writer, so every value is checked before use.
    let num_columns = header.num_columns as usize;
    if !(1..=MAX_COLUMNS).contains(&num_columns) || header.num_architectures as usize != NUM_ARCHITECTURES {
        return Err(corrupt(format!(
            "expected {NUM_ARCHITECTURES} architectures and 1 to {MAX_COLUMNS} columns, found {} and {num_columns}",
            header.num_architectures
        )));
    }
    let expected = file_bytes(num_columns);
    if bytes.len() < expected {
        return Err(truncated(expected));
    }
    if bytes.len() > expected || header.file_bytes != expected as u64 {
        return Err(corrupt(format!("expected {expected} bytes, found {}", bytes.len())));
    }
    same_hash("the table", header.body_hash, xxh3_64(&bytes[HEADER_BYTES..])).map_err(corrupt)?;

    let codes_at = HEADER_BYTES + num_columns * COLUMN_BYTES;
    let values_at = codes_at + 2 * NUM_ARCHITECTURES;
    let columns: Vec<Column> = bytes[HEADER_BYTES..codes_at]
        .chunks_exact(COLUMN_BYTES)
        .map(|record| column(bytemuck::pod_read_unaligned(record)))
        .collect::<Result<_, String>>()
        .map_err(corrupt)?;
    let index_of = inverse(&bytes[codes_at..values_at]).map_err(corrupt)?;
    Ok(Layout { columns, codes_at, values_at, index_of })
}

fn same_hash(part: &str, expected: u64, found: u64) -> Result<(), String> {
    match expected == found {
        true => Ok(()),
        false => Err(format!("{part}: expected checksum {expected:016x}, found {found:016x}")),
    }
}

fn column(record: ColumnRecord) -> Result<Column, String> {
    let text = |bytes: &[u8]| -> Result<String, String> {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8(bytes[..end].to_vec()).map_err(|_| "a column name is not UTF-8".to_string())
    };
    if record.decimals > MAX_DECIMALS {
        return Err(format!(
            "expected at most {MAX_DECIMALS} decimals in a column, found {}",
            record.decimals
        ));
    }
    Ok(Column { name: text(&record.name)?, unit: text(&record.unit)?, decimals: record.decimals })
}

/// Returns the index of each code in the list of codes, which must contain every code once.
fn inverse(codes: &[u8]) -> Result<Vec<u16>, String> {
    let mut index_of = vec![u16::MAX; NUM_ARCHITECTURES];
    for (index, bytes) in codes.chunks_exact(2).enumerate() {
        let code = u16::from_le_bytes([bytes[0], bytes[1]]);
        match index_of.get_mut(code as usize) {
            Some(place) if *place == u16::MAX => *place = index as u16,
            Some(_) => return Err(format!("duplicate architecture code {code}")),
            None => return Err(format!("invalid architecture code {code}")),
        }
    }
    Ok(index_of)
}

/// Writes a table atomically. `architectures`: the whole space in the order of the benchmark; `values[c][i]`: column c
/// of architecture i, as integers with the decimals of the column. Local.
pub fn write(
    path: &Path,
    columns: &[Column],
    architectures: &[Architecture],
    values: &[Vec<u32>],
    overwrite: bool,
) -> Result<()> {
    assert_eq!(architectures.len(), NUM_ARCHITECTURES, "a table contains the whole space");
    assert!((1..=MAX_COLUMNS).contains(&columns.len()) && columns.len() == values.len());
    let mut file = Vec::with_capacity(file_bytes(columns.len()));
    file.extend([0; HEADER_BYTES]);
    for column in columns {
        assert!(column.name.len() <= MAX_NAME_BYTES && column.unit.len() <= 8);
        let mut record = ColumnRecord { decimals: column.decimals, ..Zeroable::zeroed() };
        record.name[..column.name.len()].copy_from_slice(column.name.as_bytes());
        record.unit[..column.unit.len()].copy_from_slice(column.unit.as_bytes());
        file.extend(bytemuck::bytes_of(&record));
    }
    architectures.iter().for_each(|architecture| file.extend((architecture.code() as u16).to_le_bytes()));
    for index in 0..NUM_ARCHITECTURES {
        values.iter().for_each(|column| file.extend(column[index].to_le_bytes()));
    }
    let mut header = TableHeader {
        magic: MAGIC,
        version: VERSION,
        num_architectures: NUM_ARCHITECTURES as u32,
        num_columns: columns.len() as u32,
        file_bytes: file.len() as u64,
        body_hash: xxh3_64(&file[HEADER_BYTES..]),
        ..Zeroable::zeroed()
    };
    header.header_hash = xxh3_64(&bytemuck::bytes_of(&header)[..HEADER_BYTES - 8]);
    file[..HEADER_BYTES].copy_from_slice(bytemuck::bytes_of(&header));
    Ok(files::write_new(path, &file, overwrite)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let column = |name: &str| Column { name: name.into(), unit: "percent".into(), decimals: 4 };
        let architectures: Vec<Architecture> = Architecture::all().collect();
        let values: Vec<u32> = (0..NUM_ARCHITECTURES as u32).collect();
        write(&path, &[column("a"), column("b")], &architectures, &[values.clone(), values], false).unwrap();
        std::fs::read(path).unwrap()
    }

    /// Recomputes the checksums of a modified file.
    fn with_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
        let body_hash = xxh3_64(&bytes[HEADER_BYTES..]);
        bytes[40..48].copy_from_slice(&body_hash.to_le_bytes());
        let header_hash = xxh3_64(&bytes[..HEADER_BYTES - 8]);
        bytes[56..64].copy_from_slice(&header_hash.to_le_bytes());
        bytes
    }

    fn refusal(bytes: &[u8]) -> String {
        let error = check(Path::new("t"), bytes).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    #[test]
    fn each_fault_has_its_own_message() {
        let good = table();
        assert!(check(Path::new("t"), &good).is_ok());
        assert!(check(Path::new("t"), &with_checksums(good.clone())).is_ok());
        let changed = |at: usize, new: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + new.len()].copy_from_slice(new);
            bytes
        };
        let codes_at = HEADER_BYTES + 2 * COLUMN_BYTES;
        for (bytes, what) in [
            (vec![], "not a drnas-dist table"),
            (b"DRNASHRD........".to_vec(), "not a drnas-dist table"),
            (good[..63].to_vec(), "truncated: expected 64 bytes, found 63"),
            (good[..good.len() - 1].to_vec(), "truncated"),
            ([&good[..], b"x"].concat(), "expected 156442 bytes, found 156443"),
            (changed(8, &[9]), "expected format version 1, found 9"),
            (changed(16, &[1]), "the header: expected checksum"),
            (changed(good.len() - 1, &[1]), "the table: expected checksum"),
            (
                with_checksums(changed(12, &[1])),
                "expected 15625 architectures and 1 to 28 columns, found 15617 and 2",
            ),
            (with_checksums(changed(16, &[0])), "found 15625 and 0"),
            (with_checksums(changed(16, &[255; 4])), "found 15625 and 4294967295"),
            (with_checksums(changed(16, &[3])), "truncated"),
            (with_checksums(changed(32, &[1])), "corrupt: expected 156442 bytes"),
            (with_checksums(changed(HEADER_BYTES, &[255])), "a column name is not UTF-8"),
            (
                with_checksums(changed(HEADER_BYTES + 56, &[7])),
                "expected at most 6 decimals in a column, found 7",
            ),
            (with_checksums(changed(codes_at, &[1, 0])), "duplicate architecture code 1"),
            (with_checksums(changed(codes_at, &[255, 255])), "invalid architecture code 65535"),
        ] {
            let error = refusal(&bytes);
            assert!(error.contains(what), "{what} is not in {error}");
        }
    }
}
