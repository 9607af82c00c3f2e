//! Restores a run from its newest checkpoint.

use super::journal::Sums;
use super::training::Training;
use crate::config::Settings;
use crate::error::Result;
use crate::process::messages::print_stderr;
use crate::run::error::Error as RunError;
use crate::train::{self, checkpoint};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// State of a run in a checkpoint, apart from what is trained.
#[derive(Serialize, Deserialize)]
pub(super) struct Extra {
    /// The resolved configuration.
    config: String,
    /// Hashes from `Training::input_hashes`.
    sets: Vec<u64>,
    /// Class names, for users of the weights. On resume, `sets` covers them.
    #[serde(default)]
    classes: Vec<String>,
    sums: Sums,
}

impl Extra {
    /// Returns the current state as JSON for a checkpoint.
    pub(super) fn of(training: &impl Training, sums: &Sums) -> Result<serde_json::Value> {
        let extra = Extra {
            config: training.settings().to_toml(),
            sets: training.input_hashes().into_iter().map(|(_, hash)| hash).collect(),
            classes: training.classes().to_vec(),
            sums: sums.clone(),
        };
        serde_json::to_value(extra).map_err(|error| train::Error::CheckpointState(error.to_string()).into())
    }
}

/// Restores `training` from the newest valid checkpoint in the run folder `out`; returns its step and sums. One rank
/// `warns` about corrupt checkpoints. All ranks read the same files, which `compare_ranks` checks before the first
/// step.
pub(super) fn resume(out: &Path, warns: bool, training: &mut impl Training) -> Result<Option<(u64, Sums)>> {
    let folder = checkpoint::folder(out);
    let latest = checkpoint::latest(&folder)?;
    if warns {
        latest.warnings.iter().for_each(|warning| print_stderr(&format!("warning: {warning}")));
    }
    let Some((step, saved)) = latest.found else {
        // Starting from scratch would discard the log of the old run.
        return match latest.warnings.len() {
            0 => Ok(None),
            count => Err(train::Error::NoValidCheckpoint { folder, count }.into()),
        };
    };
    let extra: Extra = serde_json::from_value(saved.meta["extra"].clone())
        .map_err(|error| train::Error::CheckpointState(error.to_string()))?;
    check_same_run(training, &extra)?;
    training.state_mut().restore(&saved)?;
    Ok(Some((step, extra.sums)))
}

/// Checks that the inputs are those of the checkpointed run; runtime keys may differ.
fn check_same_run<T: Training>(training: &T, saved: &Extra) -> Result<()> {
    let now = training.settings();
    let mut before = T::Settings::parse(&saved.config, "the checkpoint's configuration", &[])?;
    before.take_runtime_keys(now);
    let (before, now) = (before.to_toml(), now.to_toml());
    if let Some((before, now)) = before.lines().zip(now.lines()).find(|(before, now)| before != now) {
        return Err(RunError::RunChanged { before: before.into(), now: now.into() }.into());
    }
    for (index, (name, hash)) in training.input_hashes().iter().enumerate() {
        if saved.sets.get(index) != Some(hash) {
            let before = saved.sets.get(index).map_or("none".into(), |hash| format!("{hash:016x}"));
            return Err(RunError::RunChanged {
                before: format!("content hash of --{name} {before}"),
                now: format!("{hash:016x}"),
            }
            .into());
        }
    }
    Ok(())
}
