//! Errors of images, lists of images, and shards.

use crate::files::{IoError, NewFileError};
use std::path::PathBuf;

/// The result type of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of images, lists of images, or shards.
///
/// The message is one line: what, where, expected, found, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file name that cannot be stored or listed.
    #[error(
        "{}: invalid file name (not UTF-8, a line break, leading or trailing space, or a leading #); rename it",
        path.display()
    )]
    FileName {
        /// The file.
        path: PathBuf,
    },
    /// A folder that does not contain one folder of images per class.
    #[error(
        "{}: no class folders found; expected ROOT/<class>/<image>.jpg, one folder per class",
        root.display()
    )]
    NoClasses {
        /// The folder.
        root: PathBuf,
    },
    /// A class without images: its label would never occur.
    #[error("class {class} of {} has no usable image; add images or remove the class folder", root.display())]
    EmptyClass {
        /// The class folder's name.
        class: String,
        /// The folder or list of images.
        root: PathBuf,
    },
    /// An invalid data set or split file.
    #[error("{}: {what}; see datasets/README.md for the expected format", path.display())]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Arguments that do not fit the data set.
    #[error("{0}; see datasets/README.md for examples")]
    SourceArgs(String),
    /// An invalid line of a split list.
    #[error("{} line {line}: {what}", path.display())]
    ListLine {
        /// The list.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong and what was expected.
        what: String,
    },
    /// Invalid fractions or names of a split.
    #[error("split: {0}")]
    SplitArgs(String),
    /// A class that is too small for a fraction.
    #[error(
        "split {name}: class {class} has {images} images, a fraction of {fraction} rounds to 0; use a larger fraction"
    )]
    SplitEmpty {
        /// The subset.
        name: String,
        /// The class.
        class: String,
        /// Number of images of the class.
        images: usize,
        /// The requested fraction.
        fraction: f64,
    },
    /// A file that already exists with different content.
    #[error(transparent)]
    NewFile(#[from] NewFileError),
    /// An image that cannot be used for training.
    #[error(
        "{place}: not a usable image: {reason}; replace or remove it, or use --skip-bad (skip_bad = true)"
    )]
    BadImage {
        /// The file, or shard, record and file name.
        place: String,
        /// The decoder's message.
        reason: String,
    },
    /// The output folder holds shards of another plan.
    #[error(
        "{}: contains shards of another set (different images, classes, seed or options); pack into an empty folder \
         or use --overwrite",
        dir.display()
    )]
    OtherPlan {
        /// The folder of shards.
        dir: PathBuf,
    },
    /// Packing was stopped on request; finished shards are kept.
    #[error("{}: stopped after {done} of {total} shards; run the same command again to continue", dir.display())]
    PackStopped {
        /// The folder of shards.
        dir: PathBuf,
        /// Number of finished shards.
        done: usize,
        /// Number of planned shards.
        total: usize,
    },
    /// The folder has no `set.json`, which is written last.
    #[error("{}: no set.json: not a complete shard set; run `drnas-dist pack`", dir.display())]
    SetMissing {
        /// The folder of shards.
        dir: PathBuf,
    },
    /// A `set.json` that is invalid or does not match the shards.
    #[error("{}: {what}; pack it again (datasets/README.md)", path.display())]
    SetCorrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A shard named by `set.json` does not exist.
    #[error("shard {shard}: not found in {}, expected {num_shards} shards; copy it again or pack again", dir.display())]
    ShardMissing {
        /// File name.
        shard: String,
        /// The folder of shards.
        dir: PathBuf,
        /// Number of shards of the set.
        num_shards: usize,
    },
    /// Not a shard.
    #[error(
        "shard {shard}: not a drnas-dist shard (expected \"DRNASHRD\" in the first 8 bytes); pack it again \
         (datasets/README.md)"
    )]
    ShardMagic {
        /// File name.
        shard: String,
    },
    /// An unsupported format version.
    #[error(
        "shard {shard}: expected format version {expected}, found {found}; pack it again (datasets/README.md)"
    )]
    ShardVersion {
        /// File name.
        shard: String,
        /// The version of the file.
        found: u32,
        /// The version of this program.
        expected: u32,
    },
    /// A truncated shard.
    #[error(
        "shard {shard}: truncated: {present} of {expected} samples present; pack it again (datasets/README.md)"
    )]
    ShardTruncated {
        /// File name.
        shard: String,
        /// Number of complete samples.
        present: usize,
        /// Number of samples according to the header; 0 if the header itself is truncated.
        expected: usize,
    },
    /// A checksum or bound of a shard is wrong.
    #[error("shard {shard}: {part} is corrupt ({what}); copy it again or pack it again (datasets/README.md)")]
    ShardCorrupt {
        /// File name.
        shard: String,
        /// "header", "index", "record 12 (class/file)".
        part: String,
        /// Expected and found.
        what: String,
    },
    /// A valid shard of another set.
    #[error(
        "shard {shard}: does not belong to {}/set.json (files of different shard sets are mixed); pack again",
        dir.display()
    )]
    ShardForeign {
        /// File name.
        shard: String,
        /// The folder of shards.
        dir: PathBuf,
    },
    /// The set is smaller than one global batch.
    #[error(
        "{}: the set has {images} images, but one global batch needs {global_batch} ({num_replicas} x {batch}); use a \
         smaller batch or more images",
        set.display()
    )]
    SetTooSmall {
        /// The folder of shards.
        set: PathBuf,
        /// Number of images of the set.
        images: usize,
        /// Number of images per step over all replicas.
        global_batch: usize,
        /// Number of replicas.
        num_replicas: usize,
        /// Number of images per replica.
        batch: usize,
    },
    /// Invalid options of a loader.
    #[error("loader: {0}")]
    LoaderSpec(String),
    /// A decode thread panicked, which is a bug.
    #[error("a decode thread panicked on {place}: {what}; please report it, with the image")]
    DecodePanic {
        /// The sample.
        place: String,
        /// The panic's message.
        what: String,
    },
    /// `next` was called after an error.
    #[error("the loader has already failed; see the earlier error")]
    LoaderEnded,
    /// The GPU or its driver reported an error.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::error::Error),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::error::Error),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// libtorch rejected an operation (out of memory, no such device ...).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
