//! Communication between ranks: the `Communicator` trait, implemented by `Solo` for a single process, `Mpi` for tensors
//! in host memory and `Nccl` for tensors on GPUs.

mod communicator;
pub(crate) mod error;
mod gather;
mod mpi;
mod nccl;
mod rank_0;
mod solo;

pub use communicator::{Communicator, ReduceWait, Reduction, Trace};
pub use error::{Error, Result};
pub use gather::{all_gather_values, all_gather_varied};
pub use mpi::Mpi;
pub(crate) use nccl::NcclOptions;
pub use nccl::{NCCL_VARIABLE, Nccl, nccl_library};
pub use rank_0::run_on_rank_0;
pub use solo::Solo;
