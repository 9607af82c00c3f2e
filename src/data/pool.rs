//! `DecodePool`: worker threads that answer each job on a channel of its own, so that order needs no sorting.

use crate::process::error_line::panic_line;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};

type Job = Box<dyn FnOnce() + Send>;

/// Threads shared by all loaders of a process. They end when the pool and every loader of it are gone; nobody joins
/// them, so dropping never waits.
///
/// The queue has no limit of its own: each loader keeps only a window of jobs under way, and a common limit would let
/// one loader block the other.
#[derive(Clone)]
pub struct DecodePool {
    jobs: Sender<Job>,
    num_threads: usize,
}

/// The answer to one job.
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

    /// Number of threads.
    pub fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// Queues `work`. A panic inside becomes its answer; the thread lives on.
    pub fn submit<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> PendingJob<T> {
        let (reply, answer) = bounded(1);
        let job = move || {
            let outcome = catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_line(&*panic));
            // Nobody waits any more when the loader was dropped.
            let _ = reply.send(outcome);
        };
        // The threads hold the other end and never end before `self`.
        let _ = self.jobs.send(Box::new(job));
        PendingJob(answer)
    }
}

impl<T> PendingJob<T> {
    /// Waits for the answer; `Err` is the text of a panic.
    pub fn wait(self) -> Result<T, String> {
        self.0.recv().unwrap_or_else(|_| Err("the decode threads have ended".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_answer_and_the_thread_goes_on() {
        let pool = DecodePool::new(1);
        let bad: PendingJob<u32> = pool.submit(|| panic!("no picture {}", 7));
        assert_eq!(bad.wait(), Err("no picture 7".into()));
        assert_eq!(pool.submit(|| 5).wait(), Ok(5));
    }

    #[test]
    fn a_pool_may_go_before_its_answers() {
        let pool = DecodePool::new(2);
        let answers: Vec<_> = (0..20).map(|i| pool.submit(move || i)).collect();
        drop(pool);
        assert!(answers.into_iter().map(PendingJob::wait).eq((0..20).map(Ok)));
    }
}
