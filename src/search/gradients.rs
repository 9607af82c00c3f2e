//! Gradients of the weights: added up over the local replicas, averaged over the ranks while backward goes on.

use crate::comm::Communicator;
use crate::comm::bucket::Bucket;
use crate::error::Result;
use crate::net::supernet::Tape;
use tch::Tensor;

/// Differentiates a tape for the weights: gradients are added up over the `num_shares` local replicas; with the `last`
/// one a bucket's reduction starts as soon as it is whole, and travels while the segments before are differentiated.
/// `comm.finish` has to follow. Collective.
pub fn weight_grads(
    buckets: &[Bucket],
    tape: Tape,
    loss: &Tensor,
    last: bool,
    num_shares: usize,
    comm: &dyn Communicator,
) -> Result<()> {
    tape.backward(loss, |number, grads| {
        buckets[number].add(&grads);
        if last {
            start_mean(&buckets[number], num_shares, comm)?;
        }
        comm.progress()
    })
}

/// Starts to average a bucket over all replicas: `num_shares` local ones have been added up. Collective.
pub fn start_mean(bucket: &Bucket, num_shares: usize, comm: &dyn Communicator) -> Result<()> {
    let _ = bucket.grads.shallow_clone().g_mul_scalar_(1.0 / num_shares as f64);
    comm.start_mean(&bucket.grads)
}
