//! The world of a run: its ranks, this rank's placement, device and threads, and shutdown.

mod device;
pub(crate) mod error;
mod heartbeat;
mod start;

pub use device::Devices;
pub use error::Error;

use crate::comm::{Communicator, Mpi, Nccl, NcclOptions, Solo, all_gather_values};
use crate::config::{Precision, Settings};
use crate::cuda::{Context, Gpu};
use crate::error::Result;
use crate::process::exit::{abort_all, on_exit, run_exit_hooks};
use crate::process::messages::print_stderr;
use crate::process::place::{CpuBinding, RankPlacement, host_name, placement, threads_per_rank};
use crate::process::signals::{STOPPED, SignalState};
use crate::process::{openmp, phase, shm_segments, torch};
use device::RankDevice;
use heartbeat::HeartbeatWatch;
use mpi::Threading;
use mpi::environment::Universe;
use signal_hook::iterator::Handle;
use start::{
    LAUNCHER_VARIABLES, abort_all_on_panic, check_world_size, finalize_deadline, launcher_size, start_mpi,
};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long an operation waits for the other ranks.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until all ranks have started and [`World::start_heartbeats`] has returned: before that, only this limit detects
    /// a rank that hangs.
    pub start: Duration,
    /// From then on.
    pub operation: Duration,
}

impl From<Duration> for Limits {
    /// Uses the same limit for both.
    fn from(limit: Duration) -> Limits {
        Limits { start: limit, operation: limit }
    }
}

/// Limit of commands without a configuration.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Joins the world, does `work` in it and shuts it down. Called by all ranks.
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

/// All ranks of the run and the placement of this one. One per process, on the main thread; dropped last.
pub struct World {
    ranks: Ranks,
    place: RankPlacement,
    device: tch::Device,
    gpu: Option<(Gpu, Context)>,
    threads: usize,
    limits: Limits,
    watch: OnceLock<Arc<HeartbeatWatch>>,
    signal_state: Arc<SignalState>,
    signals: Handle,
}

/// How the ranks communicate.
enum Ranks {
    /// A single process, with MPI initialised if a launcher started it.
    Alone(Solo, Option<(Universe, Threading)>),
    /// Several ranks; with one GPU each, tensors go through NCCL.
    Joined(Rc<Mpi>, Option<Box<Nccl>>, Option<(Universe, Threading)>),
}

impl World {
    /// Starts the world on the CPU: initialises MPI if a launcher started this process (a single process never calls
    /// MPI), determines the placement of this rank, sets libtorch's threads and installs the signal and panic handlers.
    ///
    /// `threads` are per rank; the default is OMP_NUM_THREADS or, if it is not set, the available cores of the machine
    /// divided among its ranks. Errors: the launcher and MPI disagree on the number of ranks. Called by all ranks, once,
    /// before the first tensor.
    pub fn start(limits: impl Into<Limits>, threads: Option<usize>) -> Result<World> {
        Self::start_on(Devices::cpu(), limits, threads)
    }

    /// Like [`World::start`], on the given devices. On GPUs, each rank binds one before the first tensor, and the ranks
    /// are joined by NCCL.
    pub fn start_on(devices: Devices, limits: impl Into<Limits>, threads: Option<usize>) -> Result<World> {
        let limits = limits.into();
        let variable = |name: &str| std::env::var(name).ok();
        // Read first: Open MPI sets its own variables when it starts.
        let expected = launcher_size(variable);
        let found = devices.probe(expected.is_some_and(|(_, size)| size > 1));
        let (signal_state, signals) = SignalState::watch_signals()?;
        let universe = if LAUNCHER_VARIABLES.iter().any(|name| variable(name).is_some()) {
            let started = start_mpi(limits.start)?;
            let size = mpi::traits::Communicator::size(&started.0.world()) as usize;
            // With the launcher of another MPI, or srun without its plugin, every process is a world of one rank.
            check_world_size(expected, size)?;
            Some(started)
        } else {
            check_world_size(expected, 1)?;
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
        let bindings = ranks.or_abort(all_gather_values(comm, &binding))?;
        let place = placement(&bindings, comm.rank(), host);
        let neighbours: Vec<&CpuBinding> =
            (bindings.iter()).filter(|other| other.machine == bindings[comm.rank()].machine).collect();
        let threads = threads.or_else(openmp::num_threads);
        let threads = threads.unwrap_or_else(|| threads_per_rank(&binding, &neighbours)).max(1);
        torch::set_threads(threads);
        let (rank, size) = (comm.rank(), comm.size());
        phase::set_identity(rank, &place.host);
        let rank_device = ranks.or_abort(devices.choose(found, &place, comm))?;
        ranks.join_nccl(&devices, &rank_device, limits.operation);
        if size > 1 {
            on_exit(shm_segments::remove);
            abort_all_on_panic(rank, place.host.clone());
        }
        signal_state.join(rank, size);
        let watch = OnceLock::new();
        Ok(World {
            ranks,
            place,
            device: rank_device.device,
            gpu: rank_device.gpu,
            threads,
            limits,
            watch,
            signal_state,
            signals,
        })
    }

    /// Starts the heartbeats, which are independent of the collective library: a rank that dies, or sends none for
    /// `limit`, is named and all ranks are terminated. No effect in a world of one rank, for a limit of 0, and when
    /// called again.
    /// Errors: the ranks cannot reach one another by TCP. Collective.
    pub fn start_heartbeats(&self, limit: Duration) -> Result<()> {
        if self.size() > 1 && !limit.is_zero() && self.watch.get().is_none() {
            let watch = HeartbeatWatch::start(self.communicator(), self.host(), limit)?;
            let announcing = Arc::clone(&watch);
            on_exit(move || announcing.announce_failure());
            let checking = Arc::clone(&watch);
            self.signal_state.before_exit(move || checking.check_once());
            let _ = self.watch.set(watch);
        }
        if let Ranks::Joined(mpi, ..) = &self.ranks {
            mpi.set_limit(self.limits.operation);
        }
        Ok(())
    }

    /// Returns the communicator of all ranks.
    pub fn communicator(&self) -> &dyn Communicator {
        self.ranks.communicator()
    }

    /// Returns this rank, 0..size.
    pub fn rank(&self) -> usize {
        self.communicator().rank()
    }

    /// Returns the number of ranks.
    pub fn size(&self) -> usize {
        self.communicator().size()
    }

    /// Returns the local rank, 0..local_size, which is also the index of its GPU.
    pub fn local_rank(&self) -> usize {
        self.place.local_rank
    }

    /// Returns the number of ranks on this machine.
    pub fn local_size(&self) -> usize {
        self.place.local_size
    }

    /// Returns the number of machines.
    pub fn num_hosts(&self) -> usize {
        self.place.num_hosts
    }

    /// Returns the host name.
    pub fn host(&self) -> &str {
        &self.place.host
    }

    /// Returns the device this rank computes on.
    pub fn device(&self) -> tch::Device {
        self.device
    }

    /// Returns this rank's GPU, or `None` on the CPU.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref().map(|(gpu, _)| gpu)
    }

    /// Returns the context of this rank's GPU, current on the thread that started the world, or `None` on the CPU.
    pub fn context(&self) -> Option<Context> {
        self.gpu.as_ref().map(|(_, context)| *context)
    }

    /// Returns the number of libtorch threads of this rank.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Returns the thread level granted by MPI, or `None` if MPI was not needed.
    pub fn threading(&self) -> Option<Threading> {
        match &self.ranks {
            Ranks::Alone(_, universe) | Ranks::Joined(_, _, universe) => {
                universe.as_ref().map(|(_, level)| *level)
            }
        }
    }

    /// Sets the message that rank 0 prints when a signal ends the run: the newest checkpoint and the command to resume.
    pub fn set_exit_message(&self, text: impl Into<String>) {
        self.signal_state.set_exit_message(text.into());
    }

    /// Prints the exit message, finalises MPI and exits with code [`STOPPED`]. Collective.
    pub fn exit_stopped(&self) -> ! {
        if let Some(text) = self.signal_state.exit_message() {
            print_stderr(&text);
        }
        if let Ranks::Joined(mpi, nccl, _) = &self.ranks {
            if let Err(why) = mpi.agree("stop") {
                mpi.abort(&why);
            }
            if let Some(nccl) = nccl {
                nccl.stop_watching();
            }
            self.goodbye();
        }
        if self.threading().is_some() {
            let _deadline = finalize_deadline(self.rank(), self.host());
            // SAFETY: MPI is initialised, nothing is in progress, this is the thread that initialised it, and MPI is
            // not called again.
            unsafe { mpi::ffi::MPI_Finalize() };
        }
        run_exit_hooks();
        // SAFETY: exits without running destructors or exit handlers: MPI must not be finalised twice.
        unsafe { libc::_exit(STOPPED) }
    }

    fn goodbye(&self) {
        if let Some(watch) = self.watch.get() {
            watch.goodbye();
        }
    }

    /// Shuts down the world after `outcome`, the result of the run on this rank. With several ranks, an error is
    /// printed with the rank and terminates all of them; in a single process, it is returned.
    pub fn end<T, E: Into<crate::Error>>(self, outcome: Result<T, E>) -> Result<T> {
        self.ranks.or_abort(outcome)
    }
}

impl Drop for World {
    /// Finalises MPI, which waits for all ranks: therefore only after all ranks have agreed to, under the time limit. A
    /// rank that ends otherwise (an error is being propagated) terminates all ranks.
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
                        "rank {rank} on {host}: exiting with operations in progress; terminating all ranks"
                    ));
                    abort_all(1);
                }
                if let Err(why) = mpi.agree("shutdown") {
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

    /// Joins several ranks with GPUs by NCCL. Collective.
    fn join_nccl(&mut self, devices: &Devices, rank_device: &RankDevice, limit: Duration) {
        if let (Ranks::Joined(mpi, nccl, _), Some((gpu, context))) = (self, &rank_device.gpu) {
            let terms = NcclOptions {
                gpu: gpu.clone(),
                context: *context,
                device: rank_device.device,
                reduce: devices.reduce,
                share_gpu: devices.share_gpu,
                limit,
            };
            *nccl = match Nccl::join(mpi, terms) {
                Ok(nccl) => Some(Box::new(nccl)),
                Err(why) => mpi.abort(&why),
            };
        }
    }

    /// Terminates all ranks on an error; a single process returns it.
    fn or_abort<T, E: Into<crate::Error>>(&self, outcome: Result<T, E>) -> Result<T> {
        match (self, outcome.map_err(Into::into)) {
            (Ranks::Joined(mpi, ..), Err(why)) => mpi.abort(&why),
            (_, outcome) => outcome,
        }
    }
}
