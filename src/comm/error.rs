//! What goes wrong between ranks.

use crate::files::IoError;
use crate::process::phase::RankLocation;
use std::path::PathBuf;

/// The result of what can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What goes wrong between ranks.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other ranks did not come to a collective operation within the time limit.
    #[error(
        "rank {rank} on {host}: waited {waited_s:.1} s in operation {number} ({operation}) and not every rank \
         came{missing}; look for a rank that hangs or a link that is cut, then go on with --resume"
    )]
    TimedOut {
        /// The rank that waited.
        rank: usize,
        /// Its host.
        host: String,
        /// What it waited in.
        operation: String,
        /// The how manyth collective call of this run it was, from 1.
        number: u64,
        /// Seconds waited.
        waited_s: f64,
        /// Who did not come and where they are, in brackets; empty if that is not known.
        missing: String,
    },
    /// The ranks called different collective operations, or the same one with other lengths.
    #[error(
        "operation {number}: the ranks do not do the same ({differ}); give all of them the same program, \
         configuration and data"
    )]
    RanksDiffer {
        /// The how manyth collective call of this run it was, from 1.
        number: u64,
        /// What the ranks do, one for each kind of difference.
        differ: String,
    },
    /// The MPI library refused or broke off an operation.
    #[error("rank {rank} on {host}: MPI broke off operation {number} ({operation}): {text}")]
    Mpi {
        /// The rank that got the error.
        rank: usize,
        /// Its host.
        host: String,
        /// What it was doing.
        operation: String,
        /// The how manyth collective call of this run it was, from 1.
        number: u64,
        /// What the library said.
        text: String,
    },
    /// A collective operation after one that failed.
    #[error("rank {rank} on {host}: {operation} is not possible, an earlier operation failed")]
    EarlierFailure {
        /// The rank that asked.
        rank: usize,
        /// Its host.
        host: String,
        /// What it asked for.
        operation: String,
    },
    /// A buffer that cannot be sent.
    #[error("{operation}: {expected} expected, {found} found")]
    Buffer {
        /// The operation.
        operation: &'static str,
        /// What it takes.
        expected: String,
        /// What it got.
        found: String,
    },
    /// NCCL is not there.
    #[error("NCCL is not found, ranks on several GPUs need it ({why}); {advice}")]
    NcclMissing {
        /// What the loader said.
        why: String,
        /// How to get it.
        advice: &'static str,
    },
    /// A library that is not NCCL, or an NCCL that lacks something.
    #[error("{}: has no {symbol}, so this NCCL is too old or another library; {advice}", path.display())]
    NcclSymbol {
        /// The library.
        path: PathBuf,
        /// The missing function.
        symbol: &'static str,
        /// How to get another.
        advice: &'static str,
    },
    /// An NCCL that lacks what is needed.
    #[error("{}: NCCL {found} is too old, {oldest} or newer is needed; {advice}", path.display())]
    NcclTooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The oldest that will do.
        oldest: String,
        /// How to get another.
        advice: &'static str,
    },
    /// Ranks with different versions of NCCL.
    #[error(
        "rank {rank} has NCCL {found}, rank 0 has {first}; give all hosts the same one (rank 0 or {rank} uses {})",
        path.display()
    )]
    NcclVersions {
        /// The first rank that differs.
        rank: usize,
        /// Version of rank 0.
        first: String,
        /// Version of that rank.
        found: String,
        /// The library of the rank that says it.
        path: PathBuf,
    },
    /// NCCL does not start.
    #[error("{call}: {text}; NCCL_DEBUG=INFO makes NCCL say more, `drnas-dist doctor` shows what it runs on")]
    NcclStart {
        /// The call that failed.
        call: &'static str,
        /// The library's words.
        text: String,
    },
    /// NCCL or the GPU failed in a collective operation.
    #[error(
        "{at}: {operation}: {call}: {text}; look at the GPUs and links of the hosts, then go on with --resume"
    )]
    NcclFailed {
        /// The rank that found it, and where it was.
        at: Box<RankLocation>,
        /// The operation.
        operation: String,
        /// The call that told it.
        call: &'static str,
        /// The library's words.
        text: String,
    },
    /// A collective operation on the GPUs that does not end.
    #[error(
        "{at}: waited {waited_s:.1} s in {operation} and it does not end{behind}; \
         look for a rank that hangs or a link that is cut, then go on with --resume"
    )]
    NcclTimedOut {
        /// The rank that waited, and where it was.
        at: Box<RankLocation>,
        /// The operation.
        operation: String,
        /// Seconds waited.
        waited_s: f64,
        /// Who was last heard of furthest behind, as the end of a sentence.
        behind: String,
    },
    /// Two ranks with one GPU.
    #[error(
        "ranks {first} and {second} both have the gpu at {bus_id}; start as many ranks as there are gpus, or let \
         them share with --share-gpu"
    )]
    SameCard {
        /// A rank.
        first: usize,
        /// The other.
        second: usize,
        /// Where the GPU is plugged in.
        bus_id: String,
    },
    /// Ranks may share a GPU, but NCCL will not let them.
    #[error(
        "ranks are to share the gpu at {bus_id} (--share-gpu): that needs NCCL {oldest} or newer and \
         NCCL_MULTI_RANK_GPU_ENABLE=1 in the environment; this is NCCL {found}"
    )]
    CannotShare {
        /// Where the GPU is plugged in.
        bus_id: String,
        /// Version of NCCL.
        found: String,
        /// The oldest that will do.
        oldest: String,
    },
    /// The GPU or its driver refused something.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::error::Error),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// libtorch refused an operation (out of memory, no such device ...).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
