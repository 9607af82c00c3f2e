//! The world of a run: MPI start, this rank's place in it, its threads; what ends it: Drop, a panic, a signal.

mod device;
pub(crate) mod error;
mod heartbeat;
mod start;

pub use device::Devices;
pub use error::Error;

use crate::comm::{Communicator, Mpi, Nccl, Solo, NcclOptions};
use crate::config::{Precision, Settings};
use crate::cuda::{Gpu, Context};
use crate::error::Result;
use crate::process::exit::{on_exit, abort_all, run_exit_hooks};
use crate::process::messages::print_stderr;
use crate::process::place::{RankPlacement, CpuBinding, host_name, place, threads_per_rank};
use crate::process::signals::{STOPPED, SignalState};
use crate::process::{shm_segments, phase, torch};
use device::RankDevice;
use heartbeat::HeartbeatWatch;
use mpi::Threading;
use mpi::environment::Universe;
use signal_hook::iterator::Handle;
use start::{LAUNCHER_VARIABLES, abort_all_on_panic, finalize_deadline, check_world_size, promised, start_mpi};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long ranks wait for one another.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In each operation until all have started and [`World::start_heartbeats`] has begun: a rank that stops before that is
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
pub fn with_world<S: Settings>(
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
    let watched = world.start_heartbeats(Duration::from_secs_f64(run.heartbeat_s));
    let outcome = watched.and_then(|()| work(&world));
    world.end(outcome)
}

/// All ranks of the run and this one's place among them. One per process, on the main thread; dropped last.
pub struct World {
    ranks: Ranks,
    place: RankPlacement,
    device: tch::Device,
    gpu: Option<(Gpu, Context)>,
    threads: usize,
    limits: Limits,
    watch: OnceLock<Arc<HeartbeatWatch>>,
    standing: Arc<SignalState>,
    signals: Handle,
}

/// How the ranks are joined.
enum Ranks {
    /// One process, with MPI started if a launcher started the process.
    Alone(Solo, Option<(Universe, Threading)>),
    /// Several; with a GPU each, tensors go another way.
    Joined(Rc<Mpi>, Option<Box<Nccl>>, Option<(Universe, Threading)>),
}

impl World {
    /// Starts MPI if a launcher started this process (alone, MPI is never touched: nothing of it can go wrong), finds the
    /// place of this rank, gives libtorch its threads and installs the handling of signals and panics.
    ///
    /// `limits` say how long one operation may wait for the other ranks. `threads` per rank; by default the cores of
    /// the machine that these ranks may use, divided among its ranks. Errors: the launcher and MPI count different
    /// numbers of ranks. All ranks call it, once, before the first tensor. Ranks compute on the CPU.
    pub fn start(limits: impl Into<Limits>, threads: Option<usize>) -> Result<World> {
        Self::start_on(Devices::cpu(), limits, threads)
    }

    /// `start`, on the devices that are wanted. With GPUs, each rank has one, bound before the first tensor, and NCCL joins
    /// the ranks.
    pub fn start_on(devices: Devices, limits: impl Into<Limits>, threads: Option<usize>) -> Result<World> {
        let limits = limits.into();
        let variable = |name: &str| std::env::var(name).ok();
        // Read first: Open MPI sets variables of its own when it starts.
        let promise = promised(variable);
        let seen = devices.look(promise.is_some_and(|(_, size)| size > 1));
        let (standing, signals) = SignalState::watch_signals()?;
        let universe = if LAUNCHER_VARIABLES.iter().any(|name| variable(name).is_some()) {
            let started = start_mpi(limits.start)?;
            let size = mpi::traits::Communicator::size(&started.0.world()) as usize;
            // A launcher of another MPI, or srun without its plugin, makes worlds of one.
            check_world_size(promise, size)?;
            Some(started)
        } else {
            check_world_size(promise, 1)?;
            None
        };
        let size =
            (universe.as_ref()).map_or(1, |(universe, _)| mpi::traits::Communicator::size(&universe.world()));
        let host = host_name();
        let mut ranks = match size {
            1 => Ranks::Alone(Solo, universe),
            _ => match Mpi::join(host.clone(), limits.start) {
                Ok(mpi) => Ranks::Joined(Rc::new(mpi), None, universe),
                Err(why) => {
                    print_stderr(&why.to_string());
                    abort_all(1)
                }
            },
        };
        let comm = ranks.communicator();
        let binding = CpuBinding::here();
        let bindings: Vec<CpuBinding> = (ranks.or_abort(comm.all_gather(&binding.to_bytes()))?.iter())
            .map(|bytes| CpuBinding::from_bytes(bytes))
            .collect();
        let place = place(&bindings, comm.rank(), host);
        let neighbours: Vec<&CpuBinding> =
            (bindings.iter()).filter(|other| other.machine == bindings[comm.rank()].machine).collect();
        let threads = threads.unwrap_or_else(|| threads_per_rank(&binding, &neighbours)).max(1);
        torch::set_threads(threads);
        let (rank, size) = (comm.rank(), comm.size());
        phase::set_identity(rank, &place.host);
        let own = ranks.or_abort(devices.choose(seen, &place, comm))?;
        ranks.join_nccl(&devices, &own, limits.operation);
        if size > 1 {
            on_exit(shm_segments::remove);
            abort_all_on_panic(rank, place.host.clone());
        }
        standing.join(rank, size);
        let watch = OnceLock::new();
        Ok(World {
            ranks,
            place,
            device: own.device,
            gpu: own.gpu,
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
    pub fn start_heartbeats(&self, limit: Duration) -> Result<()> {
        if self.size() > 1 && !limit.is_zero() && self.watch.get().is_none() {
            let watch = HeartbeatWatch::start(self.communicator(), self.host(), limit)?;
            let told = Arc::clone(&watch);
            on_exit(move || told.announce_failure());
            let looking = Arc::clone(&watch);
            self.standing.before_exit(move || looking.check_once());
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

    /// This rank's GPU; none on the CPU.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref().map(|(gpu, _)| gpu)
    }

    /// The context of this rank's GPU, current on the thread that started the world; none on the CPU.
    pub fn context(&self) -> Option<Context> {
        self.gpu.as_ref().map(|(_, context)| *context)
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
    pub fn set_exit_message(&self, text: impl Into<String>) {
        self.standing.set_exit_message(text.into());
    }

    /// Whether this rank was asked to end the run: SIGUSR1; alone SIGINT and SIGTERM too. The ranks have to agree on what
    /// to do about it (see `run`): then they write a checkpoint and call [`World::exit_stopped`].
    pub fn stop_requested(&self) -> bool {
        self.standing.stop_requested()
    }

    /// Prints the exit_message, leaves MPI and exits with code [`STOPPED`]. Collective.
    pub fn exit_stopped(&self) -> ! {
        if let Some(text) = self.standing.exit_message() {
            print_stderr(&text);
        }
        if let Ranks::Joined(mpi, nccl, _) = &self.ranks {
            if let Err(why) = mpi.agree("stop of the run") {
                mpi.abort(&why);
            }
            if let Some(nccl) = nccl {
                nccl.stop_watching();
            }
            self.goodbye();
        }
        if self.threading().is_some() {
            let _deadline = finalize_deadline(self.rank(), self.host());
            // SAFETY: MPI is started, nothing is under way, this is the thread that started it, and nothing of MPI is
            // called after this.
            unsafe { mpi::ffi::MPI_Finalize() };
        }
        run_exit_hooks();
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
        self.ranks.or_abort(outcome)
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
                    print_stderr(&format!(
                        "rank {rank} on {host}: leaves with operations under way, all ranks are ended"
                    ));
                    abort_all(1);
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

    /// Several ranks with GPUs are joined by NCCL too. Collective.
    fn join_nccl(&mut self, devices: &Devices, own: &RankDevice, limit: Duration) {
        if let (Ranks::Joined(mpi, nccl, _), Some((gpu, context))) = (self, &own.gpu) {
            let terms = NcclOptions {
                gpu: gpu.clone(),
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
    fn or_abort<T, E: Into<crate::Error>>(&self, outcome: Result<T, E>) -> Result<T> {
        match (self, outcome.map_err(Into::into)) {
            (Ranks::Joined(mpi, ..), Err(why)) => mpi.abort(&why),
            (_, outcome) => outcome,
        }
    }
}
