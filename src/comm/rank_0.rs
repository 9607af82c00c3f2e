//! Work of rank 0 for which the other ranks wait, however long it takes.

use super::communicator::Communicator;
use super::error::Result;

/// Runs `work` on rank 0 and returns its result there; returns `None` on the other ranks when it is done.
///
/// The other ranks would time out in a single collective. Therefore `work` must call the function that it is given at intervals
/// shorter than the time limit: all ranks meet in it. Collective. Errors: those of `work`, on rank 0.
pub fn run_on_rank_0<T, E: From<super::Error>>(
    comm: &dyn Communicator,
    work: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> std::result::Result<T, E>,
) -> std::result::Result<Option<T>, E> {
    let still_working = |mine: bool| -> Result<bool> { Ok(comm.all_gather(&[u8::from(mine)])?[0] == [1]) };
    let done = match comm.rank() {
        0 => Some(work(&mut || still_working(true).map(drop))?),
        _ => None,
    };
    while still_working(false)? {}
    Ok(done)
}
