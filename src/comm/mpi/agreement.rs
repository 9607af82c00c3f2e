//! Agreement: before an operation the ranks compare what they are about to do, so that a difference is an error in words.

use super::Mpi;
use super::flight::Flight;
use crate::comm::error::{Error, Result};
use mpi::ffi;
use std::time::Instant;
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of the description that ranks exchange when they differ.
const DESCRIPTION: usize = 128;

/// A comparison under way.
pub(crate) struct Agreement {
    operation: String,
    /// Sequence number of the collective.
    number: u64,
    /// Smallest of: the hash, its complement, 0 where a rank wants to stop.
    least: Tensor,
    flight: Flight,
}

impl Mpi {
    /// Returns when every rank is about to do what this one is about to do. Collective.
    pub(crate) fn agree(&self, operation: &str) -> Result<()> {
        self.agree_since(operation, Instant::now())
    }

    pub(super) fn agree_since(&self, operation: &str, since: Instant) -> Result<()> {
        let agreement = self.start_agreement(operation)?;
        self.finish_agreement(agreement, since)
    }

    /// Starts to compare `operation`, and returns at once. Collective.
    pub(crate) fn start_agreement(&self, operation: &str) -> Result<Agreement> {
        if self.lost.get() {
            return Err(Error::RanksLost {
                rank: self.rank,
                host: self.host.clone(),
                operation: operation.into(),
            });
        }
        let hash = xxh3_64(operation.as_bytes()) as i64;
        // The smallest of x and the smallest of !x belong to one number only if all have the same.
        let goes_on = i64::from(!self.stop_wanted.get());
        let mine = Tensor::f_from_slice(&[hash, !hash, goes_on])?;
        let least = mine.f_empty_like()?;
        let mut flight = Flight::new(vec![mine.shallow_clone(), least.shallow_clone()]);
        // SAFETY: both buffers hold 3 i64 and are kept by the flight.
        self.call(operation, &mut flight, |request| unsafe {
            ffi::MPI_Iallreduce(
                mine.data_ptr(),
                least.data_ptr(),
                3,
                ffi::RSMPI_INT64_T,
                ffi::RSMPI_MIN,
                self.control,
                request,
            )
        })?;
        Ok(Agreement { operation: operation.into(), number: self.number.get(), least, flight })
    }

    /// Waits for the end of `agreement`, at most until the time limit after `since`.
    pub(crate) fn finish_agreement(&self, agreement: Agreement, since: Instant) -> Result<()> {
        let Agreement { operation, number, least, mut flight } = agreement;
        self.wait_for(number, &operation, since, &mut flight)?;
        self.stop_agreed.set(self.stop_agreed.get() || least.int64_value(&[2]) == 0);
        if least.int64_value(&[0]) == !least.int64_value(&[1]) {
            return Ok(());
        }
        // All ranks see the same two numbers, so all of them come here.
        let mut description = operation.as_bytes().to_vec();
        description.resize(DESCRIPTION, b' ');
        let told = self.gather(&operation, since, &description, self.control)?;
        self.lost.set(true);
        Err(Error::RanksDiffer { number, differ: differences(&told) })
    }
}

/// Each description once, with the first rank that gave it.
fn differences(told: &[Vec<u8>]) -> String {
    let mut seen: Vec<(usize, String)> = Vec::new();
    for (rank, bytes) in told.iter().enumerate() {
        let text = String::from_utf8_lossy(bytes).trim_end().to_string();
        if seen.iter().all(|(_, other)| *other != text) {
            seen.push((rank, text));
        }
    }
    let texts: Vec<_> = (seen.iter().take(4)).map(|(rank, text)| format!("rank {rank}: {text}")).collect();
    texts.join("; ")
}
