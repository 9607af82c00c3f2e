//! Options of the NCCL communicator, and the check that the ranks' libraries and GPUs are compatible.

use super::library::{self, Library, version_text};
use crate::comm::communicator::Communicator;
use crate::comm::error::{Error, Result};
use crate::comm::mpi::Mpi;
use crate::config::Reduce;
use crate::cuda::{Context, Gpu};
use std::time::Duration;
use tch::Device;

/// The environment variable by which NCCL allows ranks to share a GPU.
const SHARING_VARIABLE: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// Options of the NCCL communicator.
pub(crate) struct NcclOptions {
    /// This rank's GPU, whose context is current.
    pub(crate) gpu: Gpu,
    /// Its context.
    pub(crate) context: Context,
    /// The device of all tensors.
    pub(crate) device: Device,
    /// Data type in which float32 buffers are reduced.
    pub(crate) reduce: Reduce,
    /// Whether ranks may share a GPU.
    pub(crate) share_gpu: bool,
    /// How long an operation may take.
    pub(crate) limit: Duration,
}

/// Bytes exchanged by the ranks: NCCL version, UUID and bus ID of the GPU.
const FACTS_BYTES: usize = 4 + 16 + 32;

/// Rejects combinations that NCCL would reject with an obscure message, or not at all. All ranks reach the same result,
/// except for differences in their environment variables. Collective.
pub(super) fn check_compatible(mpi: &Mpi, library: &Library, options: &NcclOptions) -> Result<()> {
    let mut facts = library.version.to_le_bytes().to_vec();
    facts.extend(options.gpu.uuid);
    facts.extend(options.gpu.bus_id.bytes());
    facts.resize(FACTS_BYTES, b' ');
    let all = mpi.all_gather(&facts)?;
    let version = |facts: &[u8]| i32::from_le_bytes([facts[0], facts[1], facts[2], facts[3]]);
    if let Some(rank) = (1..all.len()).find(|&rank| version(&all[rank]) != version(&all[0])) {
        return Err(Error::NcclVersions {
            rank,
            first: version_text(version(&all[0])),
            found: version_text(version(&all[rank])),
            path: library.path().to_path_buf(),
        });
    }
    let gpu = |rank: usize| &all[rank][4..20];
    let twice =
        (1..all.len()).find_map(|rank| Some(((0..rank).find(|&other| gpu(other) == gpu(rank))?, rank)));
    let Some((first, second)) = twice else {
        return Ok(());
    };
    let bus_id = String::from_utf8_lossy(&all[second][20..]).trim().to_string();
    let allowed = std::env::var(SHARING_VARIABLE).is_ok_and(|value| value == "1");
    match options.share_gpu {
        false => Err(Error::SameGpu { first, second, bus_id }),
        true if version(&all[0]) < library::OLDEST_SHARING || !allowed => Err(Error::CannotShare {
            bus_id,
            found: version_text(version(&all[0])),
            oldest: version_text(library::OLDEST_SHARING),
        }),
        true => Ok(()),
    }
}
