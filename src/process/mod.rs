//! This rank as a process: which machine and cores it runs on, what it is doing, what it says, and how it ends.

pub mod console;
pub mod error_line;
pub mod exit;
pub mod identity;
pub mod leftovers;
pub mod messages;
pub mod phase;
pub mod place;
pub mod rank_status;
pub mod signals;
pub mod terminal;
pub mod torch;
