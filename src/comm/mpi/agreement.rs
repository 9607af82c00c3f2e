//! Agreement: before an operation the ranks compare what they are about to do, so that a difference is an error in words.

use super::Mpi;
use super::requests::PendingRequests;
use crate::comm::error::{Error, Result};
use mpi::ffi;
use std::time::Instant;
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of the description that ranks exchange when they differ.
const DESCRIPTION: usize = 128;

impl Mpi {
    /// Returns when every rank is about to do what this one is about to do. Collective.
    pub(crate) fn agree(&self, operation: &str) -> Result<()> {
        self.agree_since(operation, Instant::now())
    }

    pub(super) fn agree_since(&self, operation: &str, since: Instant) -> Result<()> {
        if self.lost.get() {
            return Err(Error::EarlierFailure {
                rank: self.rank,
                host: self.host.clone(),
                operation: operation.into(),
            });
        }
        let hash = xxh3_64(operation.as_bytes()) as i64;
        // The smallest of x and the smallest of !x belong to one number only if all have the same.
        let mine = Tensor::f_from_slice(&[hash, !hash])?;
        let least = mine.f_empty_like()?;
        let mut requests = PendingRequests::new(vec![mine.shallow_clone(), least.shallow_clone()]);
        // SAFETY: both buffers hold 2 i64 and are kept by the requests.
        self.call(operation, &mut requests, |request| unsafe {
            ffi::MPI_Iallreduce(
                mine.data_ptr(),
                least.data_ptr(),
                2,
                ffi::RSMPI_INT64_T,
                ffi::RSMPI_MIN,
                self.control,
                request,
            )
        })?;
        self.wait(operation, since, &mut requests)?;
        if least.int64_value(&[0]) == !least.int64_value(&[1]) {
            return Ok(());
        }
        // All ranks see the same two numbers, so all of them come here.
        let mut description = operation.as_bytes().to_vec();
        description.resize(DESCRIPTION, b' ');
        let descriptions = self.gather(operation, since, &description, self.control)?;
        self.lost.set(true);
        Err(Error::RanksDiffer { number: self.number.get(), differ: differences(&descriptions) })
    }
}

/// Each description once, with the first rank that gave it.
fn differences(descriptions: &[Vec<u8>]) -> String {
    let mut seen: Vec<(usize, String)> = Vec::new();
    for (rank, bytes) in descriptions.iter().enumerate() {
        let text = String::from_utf8_lossy(bytes).trim_end().to_string();
        if seen.iter().all(|(_, other)| *other != text) {
            seen.push((rank, text));
        }
    }
    let texts: Vec<_> = (seen.iter().take(4)).map(|(rank, text)| format!("rank {rank}: {text}")).collect();
    texts.join("; ")
}
