//! OpenMP threads of libtorch: their number, and competition for their cores.

use std::fs;
use std::time::{Duration, Instant};

/// Most threads per rank and purpose: more than the cores of any machine, and every thread takes memory.
pub const MAX_THREADS: usize = 1024;

/// Returns the number of threads that the environment variable OMP_NUM_THREADS requests; `None` if it is not set.
pub fn num_threads() -> Option<usize> {
    parse_num_threads(&std::env::var("OMP_NUM_THREADS").ok()?)
}

/// Returns the first number of a list with one number per nesting level, as OpenMP does; `None` outside
/// 1..=[`MAX_THREADS`].
fn parse_num_threads(list: &str) -> Option<usize> {
    list.split(',').next()?.trim().parse().ok().filter(|&threads| (1..=MAX_THREADS).contains(&threads))
}

/// Part of the time that the main thread may wait for a core. Less is normal on a machine that these ranks have for
/// themselves.
const MAX_CORE_WAIT: f64 = 0.15;

/// Shortest time over which the wait is measured.
const CORE_WAIT_TIME: Duration = Duration::from_secs(1);

/// Detects that other processes compete for the cores of a rank with several threads. OpenMP threads then spin while the
/// thread that they wait for has no core.
pub(crate) struct CoreWait {
    /// When it was measured, and how long the main thread had waited for a core by then.
    last: Option<(Instant, Duration)>,
    enabled: bool,
}

impl CoreWait {
    /// Starts for a rank with `num_threads` threads. Does nothing for one thread, or if the user has chosen how OpenMP
    /// threads wait.
    pub(crate) fn start(num_threads: usize) -> CoreWait {
        let chosen =
            ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"].iter().any(|name| std::env::var_os(name).is_some());
        CoreWait { last: None, enabled: num_threads > 1 && !chosen }
    }

    /// Returns a note for the user, once, if the main thread has waited too long. Called now and then on the main thread.
    pub(crate) fn note(&mut self) -> Option<String> {
        if !self.enabled {
            return None;
        }
        let stat = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let (now, waited) = (Instant::now(), run_queue_wait(&stat)?);
        let Some((then, waited_then)) = self.last else {
            self.last = Some((now, waited));
            return None;
        };
        let time = now - then;
        if time < CORE_WAIT_TIME {
            return None;
        }
        self.last = Some((now, waited));
        let part = waited.saturating_sub(waited_then).as_secs_f64() / time.as_secs_f64();
        if part <= MAX_CORE_WAIT {
            return None;
        }
        self.enabled = false;
        Some(format!(
            "note: the main thread of rank 0 waited for a core {:.0} % of the time: other processes use the cores of this \
             machine. OMP_WAIT_POLICY=passive makes such runs faster (configs/README.md)",
            100.0 * part
        ))
    }
}

/// Returns the time that a thread was ready to run but had no core, from its `schedstat` in /proc.
fn run_queue_wait(schedstat: &str) -> Option<Duration> {
    schedstat.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_queue_wait_is_the_second_number() {
        assert_eq!(run_queue_wait("123456 2000000000 17\n"), Some(Duration::from_secs(2)));
        assert_eq!(run_queue_wait(""), None);
    }

    #[test]
    fn num_threads_is_parsed_as_by_openmp() {
        for (list, threads) in
            [("3", Some(3)), (" 4,2 ", Some(4)), ("0", None), ("-1", None), ("", None), ("two", None)]
        {
            assert_eq!(parse_num_threads(list), threads, "{list:?}");
        }
        assert_eq!(parse_num_threads("3000000000"), None);
    }
}
