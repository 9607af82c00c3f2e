//! Compares the ranks' operations before each collective, so that differing calls are reported as an error. Requests to
//! stop travel with the comparison.

use super::Mpi;
use super::requests::PendingRequests;
use crate::comm::error::{Error, Result};
use crate::process::signals;
use mpi::ffi;
use std::time::Instant;
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of the description that ranks exchange if they differ.
const DESCRIPTION: usize = 128;

/// A pending comparison.
pub(super) struct Agreement {
    operation: String,
    /// Sequence number of the collective.
    number: u64,
    /// Minimum over the ranks of: the hash, its complement, and 0 for a rank that was asked to stop, else 1.
    least: Tensor,
    requests: PendingRequests,
}

impl Mpi {
    /// Returns when every rank is about to call the same `operation`. Collective.
    pub(crate) fn agree(&self, operation: &str) -> Result<()> {
        self.agree_since(operation, Instant::now())
    }

    pub(super) fn agree_since(&self, operation: &str, since: Instant) -> Result<()> {
        self.finish_deferred()?;
        let agreement = self.start_agreement(operation)?;
        self.finish_agreement(agreement, since)
    }

    /// Compares `operation` without blocking; the result is checked by the next comparison. Collective.
    pub(crate) fn agree_deferred(&self, operation: &str) -> Result<()> {
        self.finish_deferred()?;
        let agreement = self.start_agreement(operation)?;
        self.deferred.replace(Some(agreement));
        Ok(())
    }

    /// Makes progress on the deferred comparison. Its result is not read: that happens in the same call on all ranks.
    pub(super) fn progress_deferred(&self) -> Result<()> {
        match &mut *self.deferred.borrow_mut() {
            Some(Agreement { operation, number, requests, .. }) => {
                let tested = requests.test();
                tested.map(drop).map_err(|code| self.mpi_error_of(*number, operation, code))
            }
            None => Ok(()),
        }
    }

    fn finish_deferred(&self) -> Result<()> {
        let deferred = self.deferred.take();
        deferred.map_or(Ok(()), |agreement| self.finish_agreement(agreement, Instant::now()))
    }

    fn start_agreement(&self, operation: &str) -> Result<Agreement> {
        if self.failed.get() {
            return Err(Error::EarlierFailure {
                rank: self.rank,
                host: self.host.clone(),
                operation: operation.into(),
            });
        }
        self.next_sequence();
        let hash = xxh3_64(operation.as_bytes()) as i64;
        // min(x) equals !min(!x) only if x is equal on all ranks.
        let mine = Tensor::f_from_slice(&[hash, !hash, i64::from(!signals::stop_requested())])?;
        let least = mine.f_empty_like()?;
        let mut requests = PendingRequests::new(vec![mine.shallow_clone(), least.shallow_clone()]);
        // SAFETY: both buffers hold 3 i64 and are kept alive by `requests`.
        self.call(operation, &mut requests, |request| unsafe {
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
        Ok(Agreement { operation: operation.into(), number: self.sequence.get(), least, requests })
    }

    fn finish_agreement(&self, agreement: Agreement, since: Instant) -> Result<()> {
        let Agreement { operation, number, least, mut requests } = agreement;
        self.wait_for(number, &operation, since, &mut requests)?;
        if least.int64_value(&[2]) == 0 {
            self.stop_requested.set(true);
        }
        if least.int64_value(&[0]) == !least.int64_value(&[1]) {
            return Ok(());
        }
        // All ranks get the same two values, so all of them reach this point.
        let mut description = operation.as_bytes().to_vec();
        description.resize(DESCRIPTION, b' ');
        let descriptions = self.gather(&operation, since, &description, self.control)?;
        self.failed.set(true);
        Err(Error::RanksDiffer { number, differ: differences(&descriptions) })
    }
}

/// Lists each distinct description with the first rank that gave it.
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
