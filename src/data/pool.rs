//! `DecodePool`: worker threads that send each job's result on its own channel, so that results need no sorting.

use crate::process::error_line::panic_line;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};

type Job = Box<dyn FnOnce() + Send>;

/// Threads shared by all loaders of a process. They end when the pool and all its loaders are dropped; they are not
/// joined, so dropping does not block.
///
/// The queue is unbounded: each loader limits its own jobs in flight, whereas a common limit would let one loader block
/// another.
#[derive(Clone)]
pub struct DecodePool {
    jobs: Sender<Job>,
    num_threads: usize,
}

/// The pending result of one job.
pub struct PendingJob<T>(Receiver<Result<T, String>>);

impl DecodePool {
    /// Starts `num_threads` threads (at least 1).
    pub fn new(num_threads: usize) -> DecodePool {
        let num_threads = num_threads.max(1);
        let (jobs, queue) = unbounded::<Job>();
        for number in 0..num_threads {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name(format!("decode-{number}"))
                .spawn(move || queue.iter().for_each(|job| job()))
                .expect("the system starts a thread");
        }
        DecodePool { jobs, num_threads }
    }

    /// Returns the number of threads.
    pub fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// Queues `work`. A panic in it becomes its result; the thread continues.
    pub fn submit<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> PendingJob<T> {
        let (reply, answer) = bounded(1);
        let job = move || {
            let outcome = catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_line(&*panic));
            // The receiver is gone if the loader was dropped.
            let _ = reply.send(outcome);
        };
        // Cannot fail: the threads hold the receiver and outlive `self`.
        let _ = self.jobs.send(Box::new(job));
        PendingJob(answer)
    }
}

impl<T> PendingJob<T> {
    /// Waits for the result; `Err` is the message of a panic.
    pub fn wait(self) -> Result<T, String> {
        self.0.recv().unwrap_or_else(|_| Err("the decode threads have stopped".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_result_and_the_thread_continues() {
        let pool = DecodePool::new(1);
        let bad: PendingJob<u32> = pool.submit(|| panic!("no image {}", 7));
        assert_eq!(bad.wait(), Err("no image 7".into()));
        assert_eq!(pool.submit(|| 5).wait(), Ok(5));
    }

    #[test]
    fn a_pool_may_be_dropped_before_its_results_are_read() {
        let pool = DecodePool::new(2);
        let answers: Vec<_> = (0..20).map(|i| pool.submit(move || i)).collect();
        drop(pool);
        assert!(answers.into_iter().map(PendingJob::wait).eq((0..20).map(Ok)));
    }
}
