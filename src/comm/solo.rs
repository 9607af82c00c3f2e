//! `Solo`: the communicator of a single process.

use super::communicator::{Communicator, ReduceWait, contiguous, reducible, root_within};
use super::error::Result;
use crate::process::exit::run_exit_hooks;
use crate::process::messages::print_stderr;
use crate::process::signals;
use tch::Tensor;

/// The communicator of a single process: nothing is sent.
pub struct Solo;

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn start_mean(&self, buffer: &Tensor) -> Result<()> {
        reducible("mean", buffer)
    }

    fn progress(&self) -> Result<()> {
        Ok(())
    }

    fn finish(&self) -> Result<ReduceWait> {
        Ok(ReduceWait::Host(0.0))
    }

    fn stop_requested(&self) -> bool {
        signals::stop_requested()
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        contiguous("broadcast", buffer)?;
        root_within(root, 1)
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn abort(&self, why: &dyn std::error::Error) -> ! {
        print_stderr(&format!("error: {why}"));
        run_exit_hooks();
        std::process::exit(1)
    }
}
