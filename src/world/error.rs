//! Why the ranks of a run cannot be joined, or have to end.

/// Why the ranks of a run cannot be joined, or have to end.
///
/// One line each: what, where, expected, found, and a way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rank that died or stopped, as another one sees it.
    #[error("rank {rank} on {host}: lost {lost}: {how}; all ranks are ended, go on with --resume")]
    RankLost {
        /// The rank that noticed.
        rank: usize,
        /// Its host.
        host: String,
        /// The lost rank, its host, step and phase when it was last heard of.
        lost: String,
        /// How it shows.
        how: String,
    },
    /// Heartbeats cannot begin.
    #[error("heartbeats: {what}: {source}; run.heartbeat_s = 0 goes without them")]
    HeartbeatSetup {
        /// What was tried.
        what: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A rank that does not reach rank 0 outside MPI.
    #[error(
        "heartbeats: rank {rank} on {host} does not reach rank 0 at {}; let a firewall between the machines pass TCP, or \
         go without heartbeats by run.heartbeat_s = 0",
        addresses.iter().map(|address| address.to_string()).collect::<Vec<_>>().join(", ")
    )]
    HeartbeatUnreachable {
        /// The rank.
        rank: usize,
        /// Its host.
        host: String,
        /// Where it tried.
        addresses: Vec<std::net::SocketAddr>,
    },
    /// The launcher and MPI count different numbers of ranks.
    #[error(
        "{variable} says {promised} ranks, MPI says {size}: each process would be a world of its own and write the \
         same folder; {advice}"
    )]
    WorldSize {
        /// The environment variable of the launcher.
        variable: &'static str,
        /// Ranks by that variable.
        promised: usize,
        /// Ranks by MPI.
        size: usize,
        /// How to start it.
        advice: &'static str,
    },
    /// MPI does not allow a process with several threads.
    #[error(
        "MPI grants thread level {granted} only, Funneled is needed (worker threads read the data); \
         use an MPI built with threads"
    )]
    MpiThreads {
        /// The level granted.
        granted: String,
    },
    /// GPUs that cannot be used, where the device was left open.
    #[error("{host} has GPUs that cannot be used: {why}, or compute on the CPU with --set device=cpu")]
    GpuUnusable {
        /// The machine.
        host: String,
        /// Why not, and what to do.
        why: String,
    },
    /// A GPU is wanted, and there is none.
    #[error("device = \"cuda\": no GPU can be used on {host}: {why}, or compute there with --set device=cpu")]
    NoGpu {
        /// The machine.
        host: String,
        /// Why not, and what to do.
        why: String,
    },
    /// Some machines have GPUs, some have none.
    #[error(
        "{with} has a GPU that can be used, {host} has none: {why}; leave {host} out, or compute everywhere with \
         --set device=cpu"
    )]
    SomeHaveNoGpu {
        /// A machine with GPUs.
        with: String,
        /// A machine without.
        host: String,
        /// Why not, and what to do.
        why: String,
    },
    /// More ranks than GPUs on a machine.
    #[error(
        "{host}: {ranks} ranks, but {gpus} GPUs; start at most one rank for each GPU, or let ranks share one with \
         --share-gpu"
    )]
    TooFewGpus {
        /// The machine.
        host: String,
        /// Its ranks.
        ranks: usize,
        /// Its GPUs.
        gpus: usize,
    },
}
