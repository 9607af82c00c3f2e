//! What is wrong with a table of NAS-Bench-201, its source, or a question about it.

use crate::files::{IoError, NewFileError};
use std::path::PathBuf;

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with a table of NAS-Bench-201, its source, or a question about it.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A table that would be replaced by another.
    #[error(transparent)]
    NewFile(#[from] NewFileError),
    /// Not a table at all.
    #[error("{}: not a drnas-dist table (its first 8 bytes are not \"DRNAS201\"); make one with `drnas-dist nb201 import`", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
    },
    /// A table of another format version.
    #[error("{}: format version {found}, this program reads version {expected}; import the table again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// A table that ends too early.
    #[error("{}: cut short: {expected} bytes expected, {found} found; copy it again or import it again", path.display())]
    CutShort {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// A checksum or a bound of a table does not hold.
    #[error("{}: damaged: {what}; copy it again or import it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The part, expected and found.
        what: String,
    },
    /// A column that the table does not have.
    #[error("{}: no column \"{name}\"; there are {columns}", path.display())]
    NoColumn {
        /// The table.
        path: PathBuf,
        /// The column asked for.
        name: String,
        /// Those there are.
        columns: String,
    },
    /// An index that no architecture has.
    #[error("no architecture has the index {0}; they go from 0 to 15624")]
    NoIndex(String),
    /// A source of a table that cannot be read.
    #[error("{}{place}: {what}", path.display())]
    Source {
        /// The JSON or CSV file.
        path: PathBuf,
        /// " row 12", " line 12", or nothing.
        place: String,
        /// What is wrong, expected and found.
        what: String,
    },
    /// Not an architecture.
    #[error(transparent)]
    Space(#[from] crate::space::error::Error),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
}
