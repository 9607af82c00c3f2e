//! Errors of the NAS-Bench-201 table and its import.

use crate::files::{IoError, NewFileError};
use std::path::PathBuf;

/// Result with the [`Error`] of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the NAS-Bench-201 table or its import; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A different file would be overwritten.
    #[error(transparent)]
    NewFile(#[from] NewFileError),
    /// The file is not a table.
    #[error("{}: not a drnas-dist table (its first 8 bytes are not \"DRNAS201\"); create one with `drnas-dist nb201 import`", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
    },
    /// The table has a different format version.
    #[error("{}: expected format version {expected}, found {found}; import the table again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// The table is truncated.
    #[error("{}: truncated: expected {expected} bytes, found {found}; copy or import the table again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Number of bytes in the file.
        found: usize,
        /// Number of bytes of a complete table.
        expected: usize,
    },
    /// A checksum or a value of the table is invalid.
    #[error("{}: corrupt: {what}; copy or import the table again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The part, expected and found.
        what: String,
    },
    /// The table lacks a column.
    #[error("{}: no column \"{name}\"; available: {columns}", path.display())]
    NoColumn {
        /// The table.
        path: PathBuf,
        /// The requested column.
        name: String,
        /// The available columns.
        columns: String,
    },
    /// The index is out of range.
    #[error("no architecture with index {0}: expected 0 to 15624")]
    NoIndex(String),
    /// The source of a table cannot be used.
    #[error("{}{place}: {what}", path.display())]
    Source {
        /// The JSON or CSV file.
        path: PathBuf,
        /// " row 12", " line 12", or nothing.
        place: String,
        /// Description of the error.
        what: String,
    },
    /// Invalid architecture.
    #[error(transparent)]
    Space(#[from] crate::space::error::Error),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
}
