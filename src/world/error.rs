//! Errors of joining and watching ranks.

/// An error of joining or watching the ranks of a run.
///
/// The message is one line: what, where, expected, found, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rank died or stopped, as detected by another one.
    #[error("rank {rank} on {host}: lost {lost}: {how}; terminating all ranks, resume with --resume")]
    RankLost {
        /// The rank that detected it.
        rank: usize,
        /// Its host.
        host: String,
        /// The lost rank, its host, and its last known step and phase.
        lost: String,
        /// How it was detected.
        how: String,
    },
    /// Heartbeats cannot start.
    #[error("heartbeats: {what}: {source}; set run.heartbeat_s = 0 to disable them")]
    HeartbeatSetup {
        /// The attempted action.
        what: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A rank cannot reach rank 0 by TCP.
    #[error(
        "heartbeats: rank {rank} on {host} cannot reach rank 0 at {}; allow TCP between the machines in the firewall, \
         or disable heartbeats with run.heartbeat_s = 0",
        addresses.iter().map(|address| address.to_string()).collect::<Vec<_>>().join(", ")
    )]
    HeartbeatUnreachable {
        /// The rank.
        rank: usize,
        /// Its host.
        host: String,
        /// The addresses tried.
        addresses: Vec<std::net::SocketAddr>,
    },
    /// The launcher and MPI disagree on the number of ranks.
    #[error(
        "{variable} says {expected} ranks, MPI says {found}: each process would run alone and write to the same \
         folder; {advice}"
    )]
    WorldSize {
        /// The environment variable of the launcher.
        variable: &'static str,
        /// The number of ranks according to that variable.
        expected: usize,
        /// The number of ranks according to MPI.
        found: usize,
        /// How to start the program.
        advice: &'static str,
    },
    /// MPI does not support multithreaded processes.
    #[error(
        "MPI: expected thread level Funneled or higher (worker threads read the data), found {granted}; use an MPI \
         built with thread support"
    )]
    MpiThreads {
        /// The level granted.
        granted: String,
    },
    /// The GPUs cannot be used, with `device = "auto"`.
    #[error("{host} has GPUs that cannot be used: {why}, or compute on the CPU with --set device=cpu")]
    GpuUnusable {
        /// The machine.
        host: String,
        /// Why not, and what to do.
        why: String,
    },
    /// A GPU is required, but none can be used.
    #[error("device = \"cuda\": no usable GPU on {host}: {why}, or compute on the CPU with --set device=cpu")]
    NoGpu {
        /// The machine.
        host: String,
        /// Why not, and what to do.
        why: String,
    },
    /// Some machines have usable GPUs, others do not.
    #[error(
        "{with} has a usable GPU, {host} does not: {why}; exclude {host}, or compute on the CPU everywhere with \
         --set device=cpu"
    )]
    SomeHaveNoGpu {
        /// A machine with GPUs.
        with: String,
        /// A machine without one.
        host: String,
        /// Why not, and what to do.
        why: String,
    },
    /// A machine has more ranks than GPUs.
    #[error(
        "{host}: {ranks} ranks but {gpus} GPU{}; start at most one rank per GPU, or let ranks share GPUs with \
         --share-gpu",
        if *gpus == 1 { "" } else { "s" }
    )]
    TooFewGpus {
        /// The machine.
        host: String,
        /// Its number of ranks.
        ranks: usize,
        /// Its number of GPUs.
        gpus: usize,
    },
}
