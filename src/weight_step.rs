//! The step of the weights, as search and evaluation share it: gradients of the replicas, averaged over the ranks while
//! the backward pass goes on, clipped, descended.

use crate::comm::Communicator;
use crate::comm::bucket::Bucket;
use crate::data::{Batch, Upload};
use crate::error::Result;
use crate::net::tape::Tape;
use crate::optimiser::{Sgd, clip_coefficient};
use crate::tally::{StepOutcome, timed};
use tch::Tensor;

/// A batch on the device: normalised images, labels.
pub fn prepare(batch: Batch, upload: &mut Upload, outcome: &mut StepOutcome) -> Result<(Tensor, Tensor)> {
    outcome.num_skipped += batch.num_skipped;
    upload.input(&batch)
}

/// Differentiates the loss of local replica `local` of `num_local`, the ones of this rank in order. A bucket's reduction
/// starts as soon as the last one has its gradients, and travels while the segments before it are differentiated.
/// Collective for the last one.
pub fn backward(
    tape: Tape,
    loss: &Tensor,
    buckets: &[Bucket],
    (local, num_local): (usize, usize),
    comm: &dyn Communicator,
) -> Result<()> {
    let (last, share) = (local + 1 == num_local, 1.0 / num_local as f64);
    tape.backward(loss, |number, grads| {
        let bucket = &buckets[number];
        bucket.add(&grads);
        if last {
            let _ = bucket.grads.shallow_clone().g_mul_scalar_(share);
            comm.start_mean(&bucket.grads)?;
        }
        comm.progress()
    })
}

/// Waits for the averaged gradients, clips their common norm at `grad_clip` and takes the step. Collective.
pub fn descend(
    buckets: &mut [Bucket],
    sgd: &Sgd,
    (lr, grad_clip): (f64, f64),
    comm: &dyn Communicator,
    outcome: &mut StepOutcome,
) -> Result<()> {
    timed(&mut outcome.reduce_wait_ms, || comm.finish())?;
    let coefficient = clip_coefficient(buckets.iter().map(|bucket| &bucket.grads), grad_clip);
    sgd.step(buckets, &coefficient, lr);
    Ok(())
}
