//! The world of a run: MPI start, this rank's place in it, its threads; what ends it: Drop, a panic, a signal.

mod place;

use crate::comm::{Communicator, Mpi, Solo, end_all, say};
use crate::error::{Error, Result};
use mpi::Threading;
use mpi::environment::Universe;
use place::{Place, Seat, host_name, place, threads_per_rank};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

/// Exit code after a signal: the run is not finished and can go on.
pub const STOPPED: i32 = 130;

/// The variables by which a launcher tells a process that it is one of several.
const LAUNCHED: [&str; 5] =
    ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "I_MPI_PMI_LIBRARY"];

/// All ranks of the run and this one's place among them. One per process, on the main thread; dropped last.
pub struct World {
    ranks: Ranks,
    place: Place,
    threads: usize,
    stop: Arc<AtomicBool>,
    farewell: Arc<Mutex<String>>,
    signals: Handle,
}

/// How the ranks are joined.
enum Ranks {
    /// One process, with MPI started if a launcher started the process.
    Alone(Solo, Option<(Universe, Threading)>),
    /// Several.
    Joined(Mpi, Option<(Universe, Threading)>),
}

impl World {
    /// Starts MPI if a launcher started this process (alone, MPI is never touched: nothing of it can go wrong), finds the
    /// place of this rank, gives libtorch its threads and installs the handling of SIGINT, SIGTERM and panics.
    ///
    /// `limit` is the longest that one operation may wait for the other ranks. `threads` per rank; by default the cores of
    /// the machine that these ranks may use, divided among its ranks. Errors: the launcher and MPI count different
    /// numbers of ranks. All ranks call it, once, before the first tensor.
    pub fn start(limit: Duration, threads: Option<usize>) -> Result<World> {
        let variable = |name: &str| std::env::var(name).ok();
        let universe = if LAUNCHED.iter().any(|name| variable(name).is_some()) {
            // Read first: Open MPI sets variables of its own when it starts.
            let promise = promised(variable);
            let started = start_mpi(limit)?;
            let size = mpi::traits::Communicator::size(&started.0.world()) as usize;
            // A launcher of another MPI, or srun without its plugin, makes worlds of one.
            keeps_promise(promise, size)?;
            Some(started)
        } else {
            keeps_promise(promised(variable), 1)?;
            None
        };
        let size =
            (universe.as_ref()).map_or(1, |(universe, _)| mpi::traits::Communicator::size(&universe.world()));
        let host = host_name();
        let ranks = match size {
            1 => Ranks::Alone(Solo, universe),
            _ => match Mpi::join(host.clone(), limit) {
                Ok(mpi) => Ranks::Joined(mpi, universe),
                Err(why) => {
                    say(&why.to_string());
                    end_all(1)
                }
            },
        };
        let comm = ranks.communicator();
        let seat = Seat::here();
        let seats: Vec<Seat> = (ranks.or_end(comm.all_gather(&seat.to_bytes()))?.iter())
            .map(|bytes| Seat::from_bytes(bytes))
            .collect();
        let place = place(&seats, comm.rank(), host);
        let neighbours: Vec<&Seat> =
            (seats.iter()).filter(|other| other.machine == seats[comm.rank()].machine).collect();
        let threads = threads.unwrap_or_else(|| threads_per_rank(&seat, &neighbours)).max(1);
        tch::set_num_threads(threads as i32);
        // Nothing here runs operations side by side inside libtorch; libtorch takes this number once only.
        if tch::get_num_interop_threads() != 1 {
            tch::set_num_interop_threads(1);
        }
        let (rank, size) = (comm.rank(), comm.size());
        if size > 1 {
            end_all_on_panic(rank, place.host.clone());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let farewell = Arc::default();
        let signals = watch_signals(rank, size, Arc::clone(&stop), Arc::clone(&farewell));
        let signals = ranks.or_end(signals)?;
        Ok(World { ranks, place, threads, stop, farewell, signals })
    }

    /// The communicator of all ranks.
    pub fn communicator(&self) -> &dyn Communicator {
        self.ranks.communicator()
    }

    /// This rank, 0..size.
    pub fn rank(&self) -> usize {
        self.communicator().rank()
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.communicator().size()
    }

    /// This rank among those of its machine, 0..local_size: the number of its GPU.
    pub fn local_rank(&self) -> usize {
        self.place.local_rank
    }

    /// Number of ranks on this machine.
    pub fn local_size(&self) -> usize {
        self.place.local_size
    }

    /// Number of machines.
    pub fn num_hosts(&self) -> usize {
        self.place.hosts
    }

    /// Name of this machine.
    pub fn host(&self) -> &str {
        &self.place.host
    }

    /// The device that this rank computes on.
    pub fn device(&self) -> tch::Device {
        tch::Device::Cpu
    }

    /// Threads that libtorch uses in this rank.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The thread level that MPI granted; none if MPI was not needed.
    pub fn threading(&self) -> Option<Threading> {
        match &self.ranks {
            Ranks::Alone(_, universe) | Ranks::Joined(_, universe) => {
                universe.as_ref().map(|(_, level)| *level)
            }
        }
    }

    /// What rank 0 prints when a signal ends the run: which checkpoint is good, and the command that goes on.
    pub fn set_farewell(&self, text: impl Into<String>) {
        *lock(&self.farewell) = text.into();
    }

    /// Whether the run was asked to end (first SIGINT or SIGTERM). Only ever true in a world of one: launchers leave
    /// several ranks no time, these exit at once. Whoever reads true writes a checkpoint and calls [`World::leave`].
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Prints the farewell and exits with code 130, all ranks for themselves.
    pub fn leave(&self) -> ! {
        leave(self.rank(), &self.farewell)
    }

    /// Ends the world after `outcome`, the result of the run on this rank. Several ranks: an error is printed with the rank
    /// and ends all of them; alone, it is handed back to be printed.
    pub fn end<T>(self, outcome: Result<T>) -> Result<T> {
        self.ranks.or_end(outcome)
    }
}

impl Drop for World {
    /// Finalises MPI, which waits for all ranks: so only after all have said, under the time limit, that they are here. A
    /// rank that ends otherwise (an error on its way up) ends all.
    fn drop(&mut self) {
        self.signals.close();
        match &mut self.ranks {
            Ranks::Alone(_, universe) => drop(universe.take()),
            Ranks::Joined(mpi, universe) => {
                let (rank, host) = (mpi.rank(), &self.place.host);
                if !mpi.idle() || std::thread::panicking() {
                    say(&format!(
                        "rank {rank} on {host}: leaves with operations under way, all ranks are ended"
                    ));
                    end_all(1);
                }
                if let Err(why) = mpi.agree("end of the run") {
                    mpi.abort(&why);
                }
                let _deadline = Deadline::new(
                    Duration::from_secs(60),
                    format!("rank {rank} on {host}: MPI_Finalize did not return within 60 s"),
                );
                drop(universe.take());
            }
        }
    }
}

impl Ranks {
    fn communicator(&self) -> &dyn Communicator {
        match self {
            Ranks::Alone(solo, _) => solo,
            Ranks::Joined(mpi, _) => mpi,
        }
    }

    /// An error ends all ranks; alone, it is handed back.
    fn or_end<T>(&self, outcome: Result<T>) -> Result<T> {
        match (self, outcome) {
            (Ranks::Joined(mpi, _), Err(why)) => mpi.abort(&why),
            (_, outcome) => outcome,
        }
    }
}

/// Ends the process when it is not dropped in time: for the two calls of MPI that have no non-blocking form.
struct Deadline(#[expect(dead_code, reason = "dropping it stops the watch")] mpsc::Sender<()>);

impl Deadline {
    fn new(limit: Duration, message: String) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if stopped.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                say(&message);
                // SAFETY: ends the process without running anything of it; the launcher ends the others.
                unsafe { libc::_exit(1) }
            }
        });
        Self(stop)
    }
}

/// MPI is called from this thread alone, while others read data: level Funneled.
fn start_mpi(limit: Duration) -> Result<(Universe, Threading)> {
    let _deadline = Deadline::new(
        limit,
        format!(
            "{}: MPI_Init did not return within {:.0} s, not every rank has started",
            host_name(),
            limit.as_secs_f64()
        ),
    );
    match mpi::initialize_with_threading(Threading::Funneled) {
        Some((universe, level)) if level >= Threading::Funneled => Ok((universe, level)),
        Some((_, level)) => Err(Error::MpiThreads { granted: format!("{level:?}") }),
        // A second world in one process is a mistake of ours.
        None => panic!("MPI was started before"),
    }
}

/// The number of ranks that the launcher speaks of, and where it says so. Open MPI's own number goes before Slurm's:
/// mpirun inside an allocation may start fewer ranks than the allocation has tasks.
fn promised(variable: impl Fn(&str) -> Option<String>) -> Option<(&'static str, usize)> {
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"]
        .into_iter()
        .find_map(|name| Some((name, variable(name)?.trim().parse().ok()?)))
}

fn keeps_promise(promise: Option<(&'static str, usize)>, size: usize) -> Result<()> {
    match promise {
        Some((variable, promised)) if promised > size => Err(Error::WorldSize {
            variable,
            promised,
            size,
            advice: match variable {
                "SLURM_NTASKS" => {
                    "start it by `srun --mpi=pmix` or by mpirun (one process on purpose: SLURM_NTASKS=1)"
                }
                _ => "start it by the mpirun of the MPI that `drnas-dist doctor` names",
            },
        }),
        _ => Ok(()),
    }
}

/// A panic of the main thread ends all ranks at once, they need not wait for their time limit. A panic of another thread
/// is told here and turned into an error by who joins the thread.
fn end_all_on_panic(rank: usize, host: String) {
    let main = std::thread::current().id();
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let text = (payload.downcast_ref::<&str>().copied())
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no text")
            .replace('\n', " ");
        let at = panic.location().map_or(String::new(), |at| format!(" at {at}"));
        say(&format!("rank {rank} on {host}: panicked{at}: {text}"));
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            say(&trace.to_string());
        }
        if std::thread::current().id() == main {
            end_all(101);
        }
    }));
}

/// A thread that answers SIGINT and SIGTERM. Several ranks: the launcher kills them 0.3 s later, so they leave at once
/// (checkpoints are atomic, nothing is lost). Alone: the first signal asks, the second leaves.
fn watch_signals(
    rank: usize,
    size: usize,
    stop: Arc<AtomicBool>,
    farewell: Arc<Mutex<String>>,
) -> Result<Handle> {
    let failed = Error::io("watch signals of", "/proc/self");
    let mut signals = match Signals::new([SIGINT, SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => return Err(failed(error)),
    };
    let handle = signals.handle();
    let watch = move || {
        for _ in signals.forever() {
            if size > 1 || stop.swap(true, Ordering::Relaxed) {
                leave(rank, &farewell);
            }
            say("stopping after this step, with a checkpoint; a second signal leaves at once");
        }
    };
    match std::thread::Builder::new().name("signals".into()).spawn(watch) {
        Ok(_) => Ok(handle),
        Err(error) => Err(failed(error)),
    }
}

/// Several ranks: mpirun of Open MPI 5 throws away what ranks print once it was interrupted, so the farewell also goes to
/// the terminal itself, if there is one.
fn leave(rank: usize, farewell: &Mutex<String>) -> ! {
    let text = lock(farewell);
    if rank == 0 && !text.is_empty() {
        say(&text);
        if !std::io::stderr().is_terminal()
            && let Ok(mut terminal) = std::fs::OpenOptions::new().write(true).open("/dev/tty")
        {
            let _ = terminal.write_all(format!("{text}\r\n").as_bytes());
        }
    }
    // SAFETY: ends the process without running anything of it: what other threads do now is not waited for.
    unsafe { libc::_exit(STOPPED) }
}

fn lock(text: &Mutex<String>) -> std::sync::MutexGuard<'_, String> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_and_mpi_must_agree() {
        let with = |pairs: &'static [(&str, &str)]| {
            promised(move |name| {
                let pair = pairs.iter().find(|(key, _)| *key == name);
                pair.map(|(_, value)| value.to_string())
            })
        };
        assert!(keeps_promise(with(&[]), 1).is_ok());
        assert!(keeps_promise(with(&[("SLURM_NTASKS", "1")]), 1).is_ok());
        // mpirun -n 2 in an allocation of 4 tasks is a world of its own right.
        let inner = with(&[("SLURM_NTASKS", "4"), ("OMPI_COMM_WORLD_SIZE", "2")]);
        assert!(keeps_promise(inner, 2).is_ok());
        let error = keeps_promise(with(&[("SLURM_NTASKS", "4")]), 1).unwrap_err().to_string();
        assert!(error.contains("SLURM_NTASKS says 4 ranks, MPI says 1") && error.contains("--mpi=pmix"));
        let error = keeps_promise(with(&[("PMI_SIZE", "2")]), 1).unwrap_err().to_string();
        assert!(error.contains("PMI_SIZE says 2"), "{error}");
    }
}
