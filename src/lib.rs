//! drnas-dist: Dirichlet neural architecture search (DrNAS, ICLR 2021) over many ranks.
//!
//! One direction: cli -> config -> launch -> data -> space -> net -> search -> report; a file uses only what stands
//! before it.

pub mod checkpoint;
pub mod cli;
pub mod comm;
pub mod config;
pub mod cuda;
pub mod data;
pub mod doctor;
pub mod error;
pub mod launch;
pub mod net;
pub mod random;
pub mod report;
pub mod schedule;
pub mod search;
pub mod space;
pub mod verify;

pub use config::Config;
pub use error::{Error, Result};

use cli::Command;

/// Does what the command line says, and returns when it is done.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::SearchImagenet(args) => {
            let config = Config::load(&args.config, &args.sets)?;
            print!("{}", config.to_toml());
            Ok(())
        }
        Command::Verify(_) | Command::Doctor => Ok(()),
    }
}
