//! What is wrong with images, lists of them, or shards.

use crate::files::{IoError, NewFileError};
use std::path::PathBuf;

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with images, lists of them, or shards.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file whose name cannot be stored or listed.
    #[error("{}: a name that no list can hold (not UTF-8, a line break, outer spaces, a leading #); rename it", path.display())]
    FileName {
        /// The file.
        path: PathBuf,
    },
    /// A folder that should hold one folder of images per class does not.
    #[error(
        "{}: no class folders found; expected ROOT/<class>/<image>.jpg, one folder a class",
        root.display()
    )]
    NoClasses {
        /// The folder looked at.
        root: PathBuf,
    },
    /// A class without an image: its label would never occur.
    #[error("class {class} of {} has no usable image; add some or remove the class folder", root.display())]
    EmptyClass {
        /// The class folder's name.
        class: String,
        /// The folder, or the list, that names the images.
        root: PathBuf,
    },
    /// A data set, or a list of its images, that is not what it should be.
    #[error("{}: {what} (datasets/README.md says what is expected)", path.display())]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Arguments about a data set that do not fit it.
    #[error("{0}; datasets/README.md has examples")]
    SourceArgs(String),
    /// A line of a split list that cannot be used.
    #[error("{} line {line}: {what}", path.display())]
    ListLine {
        /// The list.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what was expected.
        what: String,
    },
    /// Fractions or names of a split that make no sense.
    #[error("split: {0}")]
    SplitArgs(String),
    /// A class too small for a fraction.
    #[error(
        "split {name}: class {class} has {images} images, {fraction} of them is 0; take a larger fraction"
    )]
    SplitEmpty {
        /// The subset.
        name: String,
        /// The class.
        class: String,
        /// Images of the class.
        images: usize,
        /// The fraction asked for.
        fraction: f64,
    },
    /// A file that would be replaced by another content.
    #[error(transparent)]
    NewFile(#[from] NewFileError),
    /// An image that cannot be used for training.
    #[error(
        "{place}: not a usable image: {reason}; replace or remove it, or give --skip-bad (skip_bad = true)"
    )]
    BadImage {
        /// The file, or shard, record and file name.
        place: String,
        /// What the decoder said.
        reason: String,
    },
    /// Shards of another plan are in the way.
    #[error(
        "{}: holds shards of another set (other images, classes, seed or options); pack into an empty folder or give --overwrite",
        dir.display()
    )]
    OtherPlan {
        /// The folder of shards.
        dir: PathBuf,
    },
    /// Packing was stopped on purpose; finished shards stay.
    #[error("{}: stopped after {done} of {total} shards; the same command goes on from there", dir.display())]
    PackStopped {
        /// The folder of shards.
        dir: PathBuf,
        /// Finished shards.
        done: usize,
        /// Injected shards.
        total: usize,
    },
    /// A folder without `set.json`, which is written last.
    #[error("{}: no set.json, so this is no finished set of shards; run `drnas-dist pack` (again)", dir.display())]
    SetMissing {
        /// The folder of shards.
        dir: PathBuf,
    },
    /// A `set.json` that cannot be understood.
    #[error("{}: {what}; pack it again (datasets/README.md)", path.display())]
    SetCorrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A shard that `set.json` names is not there.
    #[error("shard {shard}: not in {}, of {num_shards} shards; copy it again or pack again", dir.display())]
    ShardMissing {
        /// File name.
        shard: String,
        /// The folder of shards.
        dir: PathBuf,
        /// Shards of the set.
        num_shards: usize,
    },
    /// Not a shard at all.
    #[error(
        "shard {shard}: not a drnas-dist shard (its first 8 bytes are not \"DRNASHRD\"); pack it again (datasets/README.md)"
    )]
    ShardMagic {
        /// File name.
        shard: String,
    },
    /// A shard of another format version.
    #[error(
        "shard {shard}: format version {found}, this program reads version {expected}; pack it again (datasets/README.md)"
    )]
    ShardVersion {
        /// File name.
        shard: String,
        /// Version in the file.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// A shard that ends too early.
    #[error(
        "shard {shard}: {present} of {expected} samples present, the file is cut short; pack it again (datasets/README.md)"
    )]
    ShardTruncated {
        /// File name.
        shard: String,
        /// Samples that are complete.
        present: usize,
        /// Samples promised; 0 when the header itself is cut.
        expected: usize,
    },
    /// A checksum or a bound of a shard does not hold.
    #[error("shard {shard}: {part} is damaged ({what}); copy it again or pack it again (datasets/README.md)")]
    ShardCorrupt {
        /// File name.
        shard: String,
        /// "header", "index", "record 12 (class/file)".
        part: String,
        /// Expected and found.
        what: String,
    },
    /// A good shard that belongs to another set.
    #[error("shard {shard}: belongs to another set than {}/set.json (files of two sets are mixed); pack again", dir.display())]
    ShardForeign {
        /// File name.
        shard: String,
        /// The folder of shards.
        dir: PathBuf,
    },
    /// Fewer images than one global batch.
    #[error(
        "{}: the set has {images} images, one global batch needs {global_batch} ({num_replicas} replicas x {batch}); use a smaller batch or more images",
        set.display()
    )]
    SetTooSmall {
        /// Folder of the set.
        set: PathBuf,
        /// Images of the set.
        images: usize,
        /// Images of a step over all replicas.
        global_batch: usize,
        /// Replicas.
        num_replicas: usize,
        /// Images per replica.
        batch: usize,
    },
    /// A loader that was asked for something impossible.
    #[error("loader: {0}")]
    LoaderSpec(String),
    /// A decode thread panicked: a bug of ours.
    #[error("a decode thread panicked on {place}: {what}; please report it with that image")]
    DecodePanic {
        /// Which sample.
        place: String,
        /// The panic's message.
        what: String,
    },
    /// `next` after the loader had ended with an error.
    #[error("the loader has ended, see the earlier error")]
    LoaderEnded,
    /// The GPU or its driver refused something.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::error::Error),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::error::Error),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// libtorch refused an operation (out of memory, no such device ...).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
