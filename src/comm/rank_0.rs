//! Work of rank 0 for which the other ranks wait, however long it takes.

use super::communicator::Communicator;
use super::error::Result;

/// Lets rank 0 do `work`; returns its result there, and `None` on the other ranks when it is done.
///
/// A single collective would end with an error after its time limit. Here the ranks meet again and again: `work` has to call
/// the function it is given at shorter intervals than that limit. Collective. Errors: those of `work`, on rank 0.
pub fn work_of_rank_0<T, E: From<super::Error>>(
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
