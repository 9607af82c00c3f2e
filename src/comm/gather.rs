//! All-gathers of data whose size differs between ranks.

use super::communicator::Communicator;
use super::error::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};

/// Gathers the bytes of all ranks on every rank, in rank order; their lengths may differ (as in MPI_Allgatherv).
/// Collective.
pub fn all_gather_varied(comm: &dyn Communicator, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let length = |bytes: &Vec<u8>| u64::from_le_bytes(bytes.as_slice().try_into().expect("8 bytes")) as usize;
    let lengths: Vec<usize> =
        comm.all_gather(&(bytes.len() as u64).to_le_bytes())?.iter().map(length).collect();
    let mut padded = bytes.to_vec();
    padded.resize(lengths.iter().copied().max().unwrap_or(0), 0);
    let mut all = comm.all_gather(&padded)?;
    all.iter_mut().zip(lengths).for_each(|(bytes, length)| bytes.truncate(length));
    Ok(all)
}

/// Gathers one value of each rank on every rank, in rank order; values are sent as JSON. Errors: a value cannot be
/// parsed, for example because its rank runs another version of the program. Collective.
pub fn all_gather_values<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    value: &T,
) -> Result<Vec<T>> {
    let json = serde_json::to_vec(value).expect("plain data is valid JSON");
    let read = |(rank, json): (usize, &Vec<u8>)| {
        serde_json::from_slice(json).map_err(|source| Error::UnreadableValue { rank, source })
    };
    all_gather_varied(comm, &json)?.iter().enumerate().map(read).collect()
}
