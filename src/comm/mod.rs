//! What ranks say to one another: the `Communicator`; `Solo` for one process, `Mpi` for tensors in host memory, `Nccl` for
//! tensors on GPUs.

mod communicator;
pub(crate) mod error;
mod mpi;
mod nccl;
mod solo;

pub use communicator::{Communicator, Reduction, Trace};
pub use error::{Error, Result};
pub use mpi::Mpi;
pub(crate) use nccl::NcclOptions;
pub use nccl::{NCCL_VARIABLE, Nccl, nccl_library};
pub use solo::Solo;
