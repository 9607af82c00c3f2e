//! MPI start-up: detects the launcher, checks the number of ranks, terminates all ranks on a panic.

use super::error::Error;
use crate::error::{Result, panic_line};
use crate::process::exit::abort_all;
use crate::process::messages::print_stderr;
use crate::process::phase;
use crate::process::place::host_name;
use crate::process::signals::Deadline;
use mpi::Threading;
use mpi::environment::Universe;
use std::time::Duration;

/// Environment variables set by launchers in the processes of a parallel job.
pub(super) const LAUNCHER_VARIABLES: [&str; 5] =
    ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "I_MPI_PMI_LIBRARY"];

/// Limits MPI_Finalize, which has no non-blocking form.
pub(super) fn finalize_deadline(rank: usize, host: &str) -> Deadline {
    let limit = Duration::from_secs(60);
    Deadline::new(limit, format!("rank {rank} on {host}: MPI_Finalize did not return within 60 s"))
}

/// Starts MPI at level Funneled: only this thread calls MPI, while other threads read data.
pub(super) fn start_mpi(limit: Duration) -> Result<(Universe, Threading)> {
    let _deadline = Deadline::new(
        limit,
        format!(
            "{}: MPI_Init did not return within {:.0} s: not all ranks have started; if hosts are slow to start, \
             increase run.start_limit_s",
            host_name(),
            limit.as_secs_f64()
        ),
    );
    let started = mpi::initialize_with_threading(Threading::Funneled);
    crash_at_once();
    match started {
        Some((universe, level)) if level >= Threading::Funneled => Ok((universe, level)),
        Some((_, level)) => Err(Error::MpiThreads { granted: format!("{level:?}") }.into()),
        // A second world in one process is a bug.
        None => panic!("MPI is already initialised"),
    }
}

/// Makes a crash in native code end the process, so that the other ranks detect it. Open MPI's own handler prints a
/// backtrace, which allocates: if the allocator is what crashed, the rank hangs and still sends heartbeats.
fn crash_at_once() {
    for signal in [libc::SIGABRT, libc::SIGFPE] {
        // SAFETY: sets the default action; Open MPI leaves the other signals alone, since Rust had already handled
        // them.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Returns the number of ranks according to the launcher, and the variable that holds it. Open MPI's variable takes
/// precedence over Slurm's: mpirun inside an allocation may start fewer ranks than the allocation has tasks.
pub(super) fn launcher_size(variable: impl Fn(&str) -> Option<String>) -> Option<(&'static str, usize)> {
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"]
        .into_iter()
        .find_map(|name| Some((name, variable(name)?.trim().parse().ok()?)))
}

pub(super) fn check_world_size(expected: Option<(&'static str, usize)>, size: usize) -> Result<()> {
    match expected {
        Some((variable, expected)) if expected > size => Err(Error::WorldSize {
            variable,
            expected,
            found: size,
            advice: match variable {
                "SLURM_STEP_NUM_TASKS" => {
                    "start it with `srun --mpi=pmix` or with mpirun (for a single process: `srun -n 1`)"
                }
                "SLURM_NTASKS" => {
                    "start it with `srun --mpi=pmix` or with mpirun (for a single process: SLURM_NTASKS=1)"
                }
                _ => "start it with the mpirun of the MPI that `drnas-dist doctor` shows",
            },
        }
        .into()),
        _ => Ok(()),
    }
}

/// Terminates all ranks when the main thread panics, so that they need not wait for their time limit. A panic of
/// another thread is printed here, and turned into an error by the code that joins the thread.
pub(super) fn abort_all_on_panic(rank: usize, host: String) {
    let main = std::thread::current().id();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic_line(panic.payload());
        let at = panic.location().map_or(String::new(), |at| format!(" at {at}"));
        print_stderr(&format!("rank {rank} on {host}{}: panicked{at}: {text}", phase::step_suffix()));
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            print_stderr(&trace.to_string());
        }
        if std::thread::current().id() == main {
            abort_all(101);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_and_mpi_must_agree_on_the_number_of_ranks() {
        let with = |pairs: &'static [(&str, &str)]| {
            launcher_size(move |name| {
                let pair = pairs.iter().find(|(key, _)| *key == name);
                pair.map(|(_, value)| value.to_string())
            })
        };
        assert!(check_world_size(with(&[]), 1).is_ok());
        assert!(check_world_size(with(&[("SLURM_NTASKS", "1")]), 1).is_ok());
        // mpirun -n 2 in an allocation of 4 tasks.
        let inner = with(&[("SLURM_NTASKS", "4"), ("OMPI_COMM_WORLD_SIZE", "2")]);
        assert!(check_world_size(inner, 2).is_ok());
        let error = check_world_size(with(&[("SLURM_NTASKS", "4")]), 1).unwrap_err().to_string();
        assert!(error.contains("SLURM_NTASKS says 4 ranks, MPI says 1") && error.contains("--mpi=pmix"));
        // srun of 2 tasks in an allocation of 4.
        let step = with(&[("SLURM_NTASKS", "4"), ("SLURM_STEP_NUM_TASKS", "2")]);
        let error = check_world_size(step, 1).unwrap_err().to_string();
        assert!(error.contains("SLURM_STEP_NUM_TASKS says 2") && error.contains("--mpi=pmix"), "{error}");
        let error = check_world_size(with(&[("PMI_SIZE", "2")]), 1).unwrap_err().to_string();
        assert!(error.contains("PMI_SIZE says 2"), "{error}");
    }
}
