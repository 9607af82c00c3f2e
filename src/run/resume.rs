//! Resume: what a checkpoint keeps of a run, and how a run goes on from it.

use super::journal::Sums;
use super::training::Training;
use crate::config::Settings;
use crate::error::Result;
use crate::process::messages::print_stderr;
use crate::run::error::Error as RunError;
use crate::train::{self, checkpoint};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a checkpoint keeps beside what is trained.
#[derive(Serialize, Deserialize)]
pub(super) struct Extra {
    /// The resolved configuration.
    config: String,
    /// What `Training::sets` gave.
    sets: Vec<u64>,
    /// Names of the classes, for those who use the weights; that a run goes on with the same ones is part of `sets`.
    #[serde(default)]
    classes: Vec<String>,
    sums: Sums,
}

impl Extra {
    /// Of this moment, as it stands in a checkpoint.
    pub(super) fn of(training: &impl Training, sums: &Sums) -> Result<serde_json::Value> {
        let extra = Extra {
            config: training.settings().to_toml(),
            sets: training.sets().into_iter().map(|(_, hash)| hash).collect(),
            classes: training.classes().to_vec(),
            sums: sums.clone(),
        };
        serde_json::to_value(extra).map_err(|error| train::Error::CheckpointState(error.to_string()).into())
    }
}

/// Puts `training` where the newest good checkpoint of the run folder `out` was; its step and the sums of then. One rank
/// `warns` of damaged ones. All ranks read the same files; `compare_ranks` before the first step makes sure of it.
pub(super) fn resume(out: &Path, warns: bool, training: &mut impl Training) -> Result<Option<(u64, Sums)>> {
    let folder = checkpoint::folder(out);
    let latest = checkpoint::latest(&folder)?;
    if warns {
        latest.warnings.iter().for_each(|warning| print_stderr(&format!("warning: {warning}")));
    }
    let Some((step, saved)) = latest.found else {
        // To begin anew would drop what the log knows of the old run.
        return match latest.warnings.len() {
            0 => Ok(None),
            count => Err(train::Error::NoGoodCheckpoint { folder, count }.into()),
        };
    };
    let extra: Extra = serde_json::from_value(saved.meta["extra"].clone())
        .map_err(|error| train::Error::CheckpointState(error.to_string()))?;
    check_same_run(training, &extra)?;
    training.state_mut().restore(&saved)?;
    Ok(Some((step, extra.sums)))
}

/// A run goes on with what it began with, but for the free keys.
fn check_same_run<T: Training>(training: &T, saved: &Extra) -> Result<()> {
    let now = training.settings();
    let mut before = T::Settings::parse(&saved.config, "the checkpoint's configuration", &[])?;
    before.take_runtime_keys(now);
    let (before, now) = (before.to_toml(), now.to_toml());
    if let Some((before, now)) = before.lines().zip(now.lines()).find(|(before, now)| before != now) {
        return Err(RunError::RunChanged { before: before.into(), now: now.into() }.into());
    }
    for (index, (name, hash)) in training.sets().iter().enumerate() {
        if saved.sets.get(index) != Some(hash) {
            let before = saved.sets.get(index).map_or("nothing".into(), |hash| format!("{hash:016x}"));
            return Err(RunError::RunChanged {
                before: format!("--{name} with content {before}"),
                now: format!("{hash:016x}"),
            }
            .into());
        }
    }
    Ok(())
}
