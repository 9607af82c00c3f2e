//! Runs work on rank 0 while the other ranks wait, for any length of time.

use super::communicator::Communicator;
use super::error::Result;

/// Runs `work` on rank 0 and returns its result there; on the other ranks, returns `None` when the work is done.
///
/// A single collective would time out on the waiting ranks. `work` must therefore call its argument, a collective in
/// which all ranks take part, at intervals shorter than the time limit. Collective. Errors: on rank 0, those of `work`.
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
