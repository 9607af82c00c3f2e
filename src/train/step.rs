//! Weight step of searches and evaluations: gradients of the replicas, averaged over ranks during the backward pass,
//! clipped, and applied.

use crate::comm::Communicator;
use crate::data::{Loader, Upload};
use crate::error::Result;
use crate::net::bucket::Bucket;
use crate::net::tape::{Backward, Tape};
use crate::process::phase::{Phase, begin};
use crate::train::optimiser::{Sgd, clip_coefficient};
use crate::train::tally::StepOutcome;
use tch::Tensor;

/// Returns the next batch on the device: normalised images, labels.
pub fn prepare(
    loader: &mut Loader,
    upload: &mut Upload,
    outcome: &mut StepOutcome,
) -> Result<(Tensor, Tensor)> {
    begin(Phase::Data)?;
    let mut batch = loader.next()?;
    begin(Phase::Forward)?;
    outcome.num_skipped += batch.num_skipped;
    outcome.replaced.append(&mut batch.replaced);
    Ok(upload.input(&batch)?)
}

/// Differentiates the loss of local replica `local` of `num_local`. With the last replica, the reduction of each bucket
/// starts as soon as its gradients are complete and overlaps with the differentiation of earlier segments. Returns the
/// pass, whose gradients of the mixing weights can be read. Collective for the last replica.
pub fn backward<'a, 'l>(
    tape: Tape<'a>,
    loss: &'l Tensor,
    buckets: &[Bucket],
    (local, num_local): (usize, usize),
    comm: &dyn Communicator,
) -> Result<Backward<'a, 'l>> {
    begin(Phase::Backward)?;
    let last = local + 1 == num_local;
    let mut pass = tape.backward(loss);
    for segment in pass.by_ref() {
        let (number, grads) = segment?;
        let bucket = &buckets[number];
        bucket.add(&grads);
        if last {
            start_mean(bucket, num_local, comm)?;
        }
        comm.progress()?;
    }
    Ok(pass)
}

/// Starts the average of a bucket over all replicas, after the gradients of `num_local` replicas were added.
/// Collective.
pub fn start_mean(bucket: &Bucket, num_local: usize, comm: &dyn Communicator) -> Result<()> {
    let _ = bucket.grads.shallow_clone().g_mul_scalar_(1.0 / num_local as f64);
    Ok(comm.start_mean(&bucket.grads)?)
}

/// Waits for the averaged gradients, clips their total norm to `grad_clip` and applies them. Collective.
pub fn descend(
    buckets: &mut [Bucket],
    sgd: &Sgd,
    (lr, grad_clip): (f64, f64),
    comm: &dyn Communicator,
    outcome: &mut StepOutcome,
) -> Result<()> {
    begin(Phase::AllReduce)?;
    outcome.reduce_waits.push(comm.finish()?);
    begin(Phase::Optimiser)?;
    let coefficient = clip_coefficient(buckets.iter().map(|bucket| &bucket.grads), grad_clip);
    sgd.step(buckets, &coefficient, lr);
    Ok(())
}
