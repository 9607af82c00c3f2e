//! Errors of communication between ranks.

use crate::files::IoError;
use crate::process::phase::RankLocation;
use std::path::PathBuf;

/// The result type of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of communication between ranks.
///
/// The message is one line: what, where, expected, found, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other ranks did not reach a collective operation within the time limit.
    #[error(
        "rank {rank} on {host}: timed out after {waited_s:.1} s in operation {number} ({operation}): not all ranks \
         arrived{missing}; look for a rank that hangs or a broken network link, then resume with --resume"
    )]
    TimedOut {
        /// The rank that waited.
        rank: usize,
        /// Its host.
        host: String,
        /// The operation.
        operation: String,
        /// Sequence number of this collective, from 1.
        number: u64,
        /// Time waited, in seconds.
        waited_s: f64,
        /// The missing ranks and their locations in parentheses; empty if unknown.
        missing: String,
    },
    /// The ranks called different collective operations, or the same one with different sizes.
    #[error(
        "operation {number}: the ranks call different operations ({differ}); use the same program, configuration and \
         data on all ranks"
    )]
    RanksDiffer {
        /// Sequence number of this collective, from 1.
        number: u64,
        /// The distinct operations, each with its first rank.
        differ: String,
    },
    /// MPI reported an error.
    #[error("rank {rank} on {host}: MPI failed in operation {number} ({operation}): {text}")]
    Mpi {
        /// The rank that got the error.
        rank: usize,
        /// Its host.
        host: String,
        /// The operation.
        operation: String,
        /// Sequence number of this collective, from 1.
        number: u64,
        /// MPI's error message.
        text: String,
    },
    /// A collective operation after a failed one.
    #[error("rank {rank} on {host}: {operation} is not possible after an earlier failure")]
    EarlierFailure {
        /// The calling rank.
        rank: usize,
        /// Its host.
        host: String,
        /// The operation.
        operation: String,
    },
    /// An invalid argument of a collective operation.
    #[error("{operation}: expected {expected}, found {found}")]
    Buffer {
        /// The operation.
        operation: &'static str,
        /// What it requires.
        expected: String,
        /// The actual argument.
        found: String,
    },
    /// NCCL could not be loaded.
    #[error("NCCL not found, but ranks on several GPUs require it ({why}); {advice}")]
    NcclMissing {
        /// The error of the dynamic loader.
        why: String,
        /// How to install it.
        advice: &'static str,
    },
    /// The library lacks a function.
    #[error("{}: no {symbol}: NCCL is too old, or this is another library; {advice}", path.display())]
    NcclSymbol {
        /// The library.
        path: PathBuf,
        /// The missing function.
        symbol: &'static str,
        /// How to install another version.
        advice: &'static str,
    },
    /// NCCL is too old.
    #[error("{}: expected NCCL {oldest} or newer, found {found}; {advice}", path.display())]
    NcclTooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The oldest supported version.
        oldest: String,
        /// How to install another version.
        advice: &'static str,
    },
    /// The ranks use different versions of NCCL.
    #[error(
        "rank {rank} has NCCL {found}, rank 0 has {first}; install the same version on all hosts (this rank uses {})",
        path.display()
    )]
    NcclVersions {
        /// The first rank that differs.
        rank: usize,
        /// Version of rank 0.
        first: String,
        /// Version of that rank.
        found: String,
        /// The library of the reporting rank.
        path: PathBuf,
    },
    /// NCCL failed to initialise.
    #[error(
        "{call}: {text}; set NCCL_DEBUG=INFO for details, `drnas-dist doctor` shows the libraries in use"
    )]
    NcclStart {
        /// The call that failed.
        call: &'static str,
        /// NCCL's error message.
        text: String,
    },
    /// NCCL or the GPU failed in a collective operation.
    #[error(
        "{at}: {operation}: {call}: {text}; check the GPUs and network links of the hosts, then resume with --resume"
    )]
    NcclFailed {
        /// The rank that detected it, and its location.
        at: Box<RankLocation>,
        /// The operation.
        operation: String,
        /// The call that returned the error.
        call: &'static str,
        /// The error message.
        text: String,
    },
    /// A collective operation on the GPUs did not finish within the time limit.
    #[error(
        "{at}: timed out after {waited_s:.1} s in {operation}{behind}; look for a rank that hangs or a broken network \
         link, then resume with --resume"
    )]
    NcclTimedOut {
        /// The rank that waited, and its location.
        at: Box<RankLocation>,
        /// The operation.
        operation: String,
        /// Time waited, in seconds.
        waited_s: f64,
        /// The rank furthest behind, as a suffix.
        behind: String,
    },
    /// A rank sent a value that this one cannot read.
    #[error(
        "rank {rank} sent a value of an unexpected form ({source}); install the same version of drnas-dist on all hosts"
    )]
    UnreadableValue {
        /// The rank.
        rank: usize,
        /// What is wrong with the value.
        source: serde_json::Error,
    },
    /// Two ranks use the same GPU.
    #[error(
        "ranks {first} and {second} use the same GPU at {bus_id}; start at most one rank per GPU, or let ranks share \
         GPUs with --share-gpu"
    )]
    SameGpu {
        /// A rank.
        first: usize,
        /// The other.
        second: usize,
        /// PCI bus ID of the GPU.
        bus_id: String,
    },
    /// Ranks may share a GPU, but NCCL does not allow it.
    #[error(
        "sharing the GPU at {bus_id} (--share-gpu) requires NCCL {oldest} or newer and NCCL_MULTI_RANK_GPU_ENABLE=1 in \
         the environment; found NCCL {found}"
    )]
    CannotShare {
        /// PCI bus ID of the GPU.
        bus_id: String,
        /// Version of NCCL.
        found: String,
        /// The oldest version that supports it.
        oldest: String,
    },
    /// The GPU or its driver reported an error.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::error::Error),
    /// A file or folder could not be read, written, renamed or removed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// libtorch rejected an operation (out of memory, no such device ...).
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}
