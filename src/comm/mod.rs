//! What ranks say to one another: the `Communicator`; `Solo` for one process, `Mpi` for tensors in host memory, `Nccl` for
//! tensors on cards.

mod communicator;
pub(crate) mod error;
mod mpi;
mod nccl;
mod rank_0;
mod solo;

pub use communicator::{Communicator, Reduction, Trace};
pub use error::{Error, Result};
pub use mpi::Mpi;
pub(crate) use nccl::Terms;
pub use nccl::{NCCL_VARIABLE, Nccl, nccl_library};
pub use rank_0::work_of_rank_0;
pub use solo::Solo;
