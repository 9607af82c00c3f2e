//! The world of a run: MPI start, this rank's place in it, its threads; what ends it: Drop, a panic, a signal.

mod device;
pub(crate) mod error;
mod heartbeat;
mod start;

pub use device::Devices;
pub use error::Error;

use crate::comm::{Communicator, Mpi, Nccl, Solo, Terms};
use crate::config::{Precision, Settings};
use crate::cuda::{Card, Context};
use crate::error::Result;
use crate::process::exit::{at_last, end_all, last_acts};
use crate::process::messages::say;
use crate::process::place::{MachinePlace, Seat, host_name, place, threads_per_rank};
use crate::process::signals::{STOPPED, Standing};
use crate::process::{leftovers, phase, torch};
use device::Own;
use heartbeat::HeartbeatWatch;
use mpi::Threading;
use mpi::environment::Universe;
use signal_hook::iterator::Handle;
use start::{LAUNCHED, end_all_on_panic, finalize_deadline, keeps_promise, promised, start_mpi};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long ranks wait for one another.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In each operation until all have started and [`World::keep_watch`] has begun: a rank that stops before that is
    /// missed by nothing else.
    pub start: Duration,
    /// In each operation after that.
    pub operation: Duration,
}

impl From<Duration> for Limits {
    /// The same for both.
    fn from(limit: Duration) -> Limits {
        Limits { start: limit, operation: limit }
    }
}

/// How long commands without a configuration wait for other ranks.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Every rank: joins the world, does `work` in it.
pub fn within<S: Settings>(
    settings: &S,
    share_gpu: bool,
    work: impl FnOnce(&World) -> Result<()>,
) -> Result<()> {
    let run = settings.run();
    let threads = (run.threads > 0).then_some(run.threads);
    let devices = Devices { choice: settings.device(), share_gpu, reduce: run.reduce, tensors: None };
    let limits = Limits {
        start: Duration::from_secs_f64(run.start_limit_s),
        operation: Duration::from_secs_f64(run.time_limit_s),
    };
    torch::allow_tf32(settings.precision() == Precision::Tf32);
    let world = World::start_on(devices, limits, threads)?;
    let watched = world.keep_watch(Duration::from_secs_f64(run.heartbeat_s));
    let outcome = watched.and_then(|()| work(&world));
    world.end(outcome)
}

/// All ranks of the run and this one's place among them. One per process, on the main thread; dropped last.
pub struct World {
    ranks: Ranks,
    place: MachinePlace,
    device: tch::Device,
    card: Option<(Card, Context)>,
    threads: usize,
    limits: Limits,
    watch: OnceLock<Arc<HeartbeatWatch>>,
    standing: Arc<Standing>,
    signals: Handle,
}

/// How the ranks are joined.
enum Ranks {
    /// One process, with MPI started if a launcher started the process.
    Alone(Solo, Option<(Universe, Threading)>),
    /// Several; with a card each, tensors go another way.
    Joined(Rc<Mpi>, Option<Box<Nccl>>, Option<(Universe, Threading)>),
}

impl World {
    /// Starts MPI if a launcher started this process (alone, MPI is never touched: nothing of it can go wrong), finds the
    /// place of this rank, gives libtorch its threads and installs the handling of signals and panics.
    ///
    /// `limits` say how long one operation may wait for the other ranks. `threads` per rank; by default OMP_NUM_THREADS or,
    /// if that is not set, the cores of the machine that these ranks may use, divided among its ranks. Errors: the launcher and MPI count different
    /// numbers of ranks. All ranks call it, once, before the first tensor. Ranks compute on the CPU.
    pub fn start(limits: impl Into<Limits>, threads: Option<usize>) -> Result<World> {
        Self::start_on(Devices::cpu(), limits, threads)
    }

    /// `start`, on the devices that are wanted. With cards, each rank has one, bound before the first tensor, and NCCL joins
    /// the ranks.
    pub fn start_on(devices: Devices, limits: impl Into<Limits>, threads: Option<usize>) -> Result<World> {
        let limits = limits.into();
        let variable = |name: &str| std::env::var(name).ok();
        // Read first: Open MPI sets variables of its own when it starts.
        let promise = promised(variable);
        let seen = devices.look(promise.is_some_and(|(_, size)| size > 1));
        let (standing, signals) = Standing::watch_signals()?;
        let universe = if LAUNCHED.iter().any(|name| variable(name).is_some()) {
            let started = start_mpi(limits.start)?;
            let size = mpi::traits::Communicator::size(&started.0.world()) as usize;
            // A launcher of another MPI, or srun without its plugin, makes worlds of one.
            keeps_promise(promise, size)?;
            Some(started)
        } else {
            keeps_promise(promise, 1)?;
            None
        };
        let size =
            (universe.as_ref()).map_or(1, |(universe, _)| mpi::traits::Communicator::size(&universe.world()));
        let host = host_name();
        let mut ranks = match size {
            1 => Ranks::Alone(Solo::default(), universe),
            _ => match Mpi::join(host.clone(), limits.start) {
                Ok(mpi) => Ranks::Joined(Rc::new(mpi), None, universe),
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
        let threads = threads.or_else(torch::omp_num_threads);
        let threads = threads.unwrap_or_else(|| threads_per_rank(&seat, &neighbours)).max(1);
        torch::set_threads(threads);
        let (rank, size) = (comm.rank(), comm.size());
        phase::set_identity(rank, &place.host);
        let own = ranks.or_end(devices.choose(seen, &place, comm))?;
        ranks.join_cards(&devices, &own, limits.operation);
        if size > 1 {
            at_last(leftovers::remove_segments);
            end_all_on_panic(rank, place.host.clone());
        }
        standing.join(rank, size);
        let watch = OnceLock::new();
        Ok(World {
            ranks,
            place,
            device: own.device,
            card: own.card,
            threads,
            limits,
            watch,
            standing,
            signals,
        })
    }

    /// Watches the other ranks by heartbeats, outside the collective library: one that dies, or gives no sign of life for
    /// `limit`, is named and ends all of them. Nothing happens in a world of one, for a limit of 0, and the second time.
    /// Errors: the ranks do not reach one another by TCP. Collective.
    pub fn keep_watch(&self, limit: Duration) -> Result<()> {
        if self.size() > 1 && !limit.is_zero() && self.watch.get().is_none() {
            let watch = HeartbeatWatch::start(self.communicator(), self.host(), limit)?;
            let told = Arc::clone(&watch);
            at_last(move || told.tell_failure());
            let looking = Arc::clone(&watch);
            self.standing.before_leaving(move || looking.look_once());
            let _ = self.watch.set(watch);
        }
        if let Ranks::Joined(mpi, ..) = &self.ranks {
            mpi.set_limit(self.limits.operation);
        }
        Ok(())
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
        self.device
    }

    /// This rank's card; none on the CPU.
    pub fn card(&self) -> Option<&Card> {
        self.card.as_ref().map(|(card, _)| card)
    }

    /// The context of this rank's card, current on the thread that started the world; none on the CPU.
    pub fn context(&self) -> Option<Context> {
        self.card.as_ref().map(|(_, context)| *context)
    }

    /// Threads that libtorch uses in this rank.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The thread level that MPI granted; none if MPI was not needed.
    pub fn threading(&self) -> Option<Threading> {
        match &self.ranks {
            Ranks::Alone(_, universe) | Ranks::Joined(_, _, universe) => {
                universe.as_ref().map(|(_, level)| *level)
            }
        }
    }

    /// What rank 0 prints when a signal ends the run: which checkpoint is good, and the command that goes on.
    pub fn set_farewell(&self, text: impl Into<String>) {
        self.standing.set_farewell(text.into());
    }

    /// Whether this rank was asked to end the run: SIGUSR1; alone SIGINT and SIGTERM too. The ranks have to agree on what
    /// to do about it (see `run`): then they write a checkpoint and call [`World::leave`].
    pub fn stop_requested(&self) -> bool {
        self.standing.stop_requested()
    }

    /// Prints the farewell, leaves MPI and exits with code [`STOPPED`]. Collective.
    pub fn leave(&self) -> ! {
        if let Some(text) = self.standing.farewell() {
            say(&text);
        }
        if let Ranks::Joined(mpi, nccl, _) = &self.ranks {
            if let Err(why) = mpi.agree("stop of the run") {
                mpi.abort(&why);
            }
            if let Some(nccl) = nccl {
                nccl.leave();
            }
            self.goodbye();
        }
        if self.threading().is_some() {
            let _deadline = finalize_deadline(self.rank(), self.host());
            // SAFETY: MPI is started, nothing is under way, this is the thread that started it, and nothing of MPI is
            // called after this.
            unsafe { mpi::ffi::MPI_Finalize() };
        }
        last_acts();
        // SAFETY: ends the process without running anything of it: MPI is finalised, and must not be a second time.
        unsafe { libc::_exit(STOPPED) }
    }

    fn goodbye(&self) {
        if let Some(watch) = self.watch.get() {
            watch.goodbye();
        }
    }

    /// Ends the world after `outcome`, the result of the run on this rank. Several ranks: an error is printed with the rank
    /// and ends all of them; alone, it is handed back to be printed.
    pub fn end<T, E: Into<crate::Error>>(self, outcome: Result<T, E>) -> Result<T> {
        self.ranks.or_end(outcome)
    }
}

impl Drop for World {
    /// Finalises MPI, which waits for all ranks: so only after all have said, under the time limit, that they are here. A
    /// rank that ends otherwise (an error on its way up) ends all.
    fn drop(&mut self) {
        self.signals.close();
        let watch = self.watch.get();
        match &mut self.ranks {
            Ranks::Alone(_, universe) => drop(universe.take()),
            Ranks::Joined(mpi, nccl, universe) => {
                let (rank, host) = (mpi.rank(), &self.place.host);
                let idle = mpi.idle() && nccl.as_ref().is_none_or(|nccl| nccl.idle());
                if !idle || std::thread::panicking() {
                    say(&format!(
                        "rank {rank} on {host}: leaves with operations under way, all ranks are ended"
                    ));
                    end_all(1);
                }
                if let Err(why) = mpi.agree("end of the run") {
                    mpi.abort(&why);
                }
                if let Some(nccl) = nccl.take() {
                    nccl.close();
                }
                if let Some(watch) = watch {
                    watch.goodbye();
                }
                let _deadline = finalize_deadline(rank, host);
                drop(universe.take());
            }
        }
    }
}

impl Ranks {
    fn communicator(&self) -> &dyn Communicator {
        match self {
            Ranks::Alone(solo, _) => solo,
            Ranks::Joined(_, Some(nccl), _) => &**nccl,
            Ranks::Joined(mpi, None, _) => &**mpi,
        }
    }

    /// Several ranks with cards are joined by NCCL too. Collective.
    fn join_cards(&mut self, devices: &Devices, own: &Own, limit: Duration) {
        if let (Ranks::Joined(mpi, nccl, _), Some((card, context))) = (self, &own.card) {
            let terms = Terms {
                card: card.clone(),
                context: *context,
                device: own.device,
                reduce: devices.reduce,
                share: devices.share_gpu,
                limit,
            };
            *nccl = match Nccl::join(mpi, terms) {
                Ok(nccl) => Some(Box::new(nccl)),
                Err(why) => mpi.abort(&why),
            };
        }
    }

    /// An error ends all ranks; alone, it is handed back.
    fn or_end<T, E: Into<crate::Error>>(&self, outcome: Result<T, E>) -> Result<T> {
        match (self, outcome.map_err(Into::into)) {
            (Ranks::Joined(mpi, ..), Err(why)) => mpi.abort(&why),
            (_, outcome) => outcome,
        }
    }
}
