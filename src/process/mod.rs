//! This rank as a process: host and cores, current phase, messages, signals, exit.

pub mod console;
pub mod error_line;
pub mod exit;
pub mod identity;
pub mod messages;
pub mod openmp;
pub mod phase;
pub mod place;
pub mod rank_status;
pub mod shm_segments;
pub mod signals;
pub mod terminal;
pub mod torch;
