//! Checkpoints: a crash during writing leaves earlier ones intact, and every byte is verified when reading.
//!
//! `step-000000123/` contains `state.safetensors` (tensors), `state.json` (everything else) and, written last, `DONE`:
//! sizes and xxh3 hashes of both. A folder without `DONE` is not a checkpoint.

mod writer;

pub use writer::Writer;

use crate::error::{Error, Result};
use crate::files;
use crate::train::error::Error as TrainError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64;

const TENSORS: &str = "state.safetensors";
const META: &str = "state.json";
const DONE: &str = "DONE";
const VERSION: u32 = 1;

/// The state of a run at one step.
#[derive(Debug)]
pub struct Checkpoint {
    /// Unique names and values, of kind Bool, Uint8, Int, Int64, Float or Double. After reading: sorted by name, in
    /// host memory.
    pub tensors: Vec<(String, Tensor)>,
    /// Everything except tensors. Floats are restored bit-identical; NaN and infinities have no JSON form and become
    /// null.
    pub meta: serde_json::Value,
}

/// Newest valid checkpoint.
#[derive(Debug)]
pub struct Latest {
    /// Step and state; `None` if there is no valid checkpoint.
    pub found: Option<(u64, Checkpoint)>,
    /// One line for each newer, corrupt checkpoint that was skipped.
    pub warnings: Vec<String>,
}

/// The content of `DONE`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Done {
    version: u32,
    step: u64,
    files: BTreeMap<String, FileSum>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct FileSum {
    bytes: u64,
    xxh3: String,
}

impl FileSum {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, xxh3: format!("{:016x}", xxh3_64(bytes)) }
    }
}

impl Checkpoint {
    /// Returns the tensor `name`. Errors: there is none.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        (self.tensors.iter()).find(|(other, _)| other == name).map(|(_, tensor)| tensor).ok_or_else(|| {
            TrainError::CheckpointTensor { name: name.into(), why: "not in this checkpoint".into() }.into()
        })
    }
}

/// Writes the checkpoint of `step` to `dir` (created if missing), then removes older ones, keeping `keep` (at least 1).
/// An error leaves older checkpoints unchanged. Called by one rank.
pub fn write(dir: &Path, step: u64, state: &Checkpoint, keep: usize) -> Result<()> {
    write_new(dir, step, state).map_err(|source| {
        let _ = fs::remove_dir_all(dir.join(temporary(step)));
        TrainError::CheckpointNotWritten { step, source: Box::new(source) }
    })?;
    prune(dir, step, keep.max(1))
}

fn write_new(dir: &Path, step: u64, state: &Checkpoint) -> Result<()> {
    fs::create_dir_all(dir).map_err(files::io("create folder", dir))?;
    remove_leftovers(dir)?;
    let classes = classes_of(&state.meta);
    let files =
        [(TENSORS, to_safetensors(&state.tensors, classes.as_deref())?), (META, to_json(&state.meta))];
    let done = Done {
        version: VERSION,
        step,
        files: (files.iter()).map(|(name, bytes)| (name.to_string(), FileSum::of(bytes))).collect(),
    };
    let temporary = dir.join(temporary(step));
    fs::create_dir(&temporary).map_err(files::io("create folder", &temporary))?;
    for (name, bytes) in &files {
        write_synced(&temporary.join(name), bytes)?;
    }
    sync_folder(&temporary)?;
    // A checkpoint of the same step can only be a corrupt one that was skipped; older ones remain valid until DONE
    // exists.
    let folder = dir.join(name_of(step));
    remove_checkpoint(&folder)?;
    fs::rename(&temporary, &folder).map_err(files::io("rename", &temporary))?;
    sync_folder(dir)?;
    let unfinished = folder.join("DONE.tmp");
    write_synced(&unfinished, &to_json(&done))?;
    fs::rename(&unfinished, folder.join(DONE)).map_err(files::io("rename", &unfinished))?;
    sync_folder(&folder)
}

/// Lists the steps of complete checkpoints in `dir`, ascending; empty if the folder does not exist. Does not read
/// contents.
pub fn list(dir: &Path) -> Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(files::io("read folder", dir))?,
    };
    let mut steps = Vec::new();
    for entry in entries {
        let entry = entry.map_err(files::io("read folder", dir))?;
        if let Some(step) = step_of(&entry.file_name().to_string_lossy())
            && entry.path().join(DONE).exists()
        {
            steps.push(step);
        }
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Reads the newest valid checkpoint in `dir`; corrupt ones are skipped with a warning. Any rank.
pub fn latest(dir: &Path) -> Result<Latest> {
    let mut warnings = Vec::new();
    for step in list(dir)?.into_iter().rev() {
        match read(dir, step) {
            Ok(state) => {
                return Ok(Latest { found: Some((step, state)), warnings });
            }
            Err(why) => warnings.push(format!("{why}; skipped, trying the previous one")),
        }
    }
    Ok(Latest { found: None, warnings })
}

/// Reads the checkpoint of `step`. Errors: missing, incomplete or corrupt.
pub fn read(dir: &Path, step: u64) -> Result<Checkpoint> {
    let folder = dir.join(name_of(step));
    let corrupt = |why: String| Error::from(TrainError::CheckpointCorrupt { path: folder.clone(), why });
    let content = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).map_err(|error| corrupt(format!("{name}: {error}")))
    };
    let done: Done =
        serde_json::from_slice(&content(DONE)?).map_err(|error| corrupt(format!("{DONE}: {error}")))?;
    if done.version != VERSION || done.step != step {
        return Err(corrupt(format!(
            "{DONE}: expected version {VERSION} and step {step}, found version {} and step {}",
            done.version, done.step
        )));
    }
    let checked = |name: &str| {
        let bytes = content(name)?;
        let found = FileSum::of(&bytes);
        match done.files.get(name) {
            Some(expected) if *expected == found => Ok(bytes),
            Some(expected) if expected.bytes != found.bytes => {
                Err(corrupt(format!("{name}: expected {} bytes, found {}", expected.bytes, found.bytes)))
            }
            Some(_) => Err(corrupt(format!("{name}: checksum mismatch"))),
            None => Err(corrupt(format!("{DONE} does not list {name}"))),
        }
    };
    Ok(Checkpoint {
        tensors: from_safetensors(&checked(TENSORS)?).map_err(|why| corrupt(format!("{TENSORS}: {why}")))?,
        meta: serde_json::from_slice(&checked(META)?).map_err(|error| corrupt(format!("{META}: {error}")))?,
    })
}

/// Removes all but the `keep` newest checkpoints up to `step`. Newer ones stay: a run that resumed before a corrupt
/// checkpoint has not reached its step yet.
fn prune(dir: &Path, step: u64, keep: usize) -> Result<()> {
    let older: Vec<u64> = list(dir)?.into_iter().filter(|&other| other < step).collect();
    for &old in older.iter().rev().skip(keep - 1) {
        remove_checkpoint(&dir.join(name_of(old)))?;
    }
    Ok(())
}

/// Removes incomplete checkpoints of a run that was killed while writing.
fn remove_leftovers(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(files::io("read folder", dir))? {
        let entry = entry.map_err(files::io("read folder", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let left = name.strip_suffix(".tmp").and_then(step_of).is_some()
            || (step_of(&name).is_some() && !entry.path().join(DONE).exists());
        if left {
            remove_checkpoint(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a checkpoint if it exists, `DONE` first, so that a partial removal does not leave an apparently valid one.
fn remove_checkpoint(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let done = folder.join(DONE);
    if done.exists() {
        fs::remove_file(&done).map_err(files::io("remove", &done))?;
    }
    Ok(fs::remove_dir_all(folder).map_err(files::io("remove", folder))?)
}

fn name_of(step: u64) -> String {
    format!("step-{step:09}")
}

fn temporary(step: u64) -> String {
    format!("{}.tmp", name_of(step))
}

fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (name_of(step) == name).then_some(step)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(files::io("create", path))?;
    file.write_all(bytes).map_err(files::io("write", path))?;
    Ok(file.sync_all().map_err(files::io("write", path))?)
}

/// Syncs the entries of a folder to disk.
fn sync_folder(path: &Path) -> Result<()> {
    Ok(File::open(path).and_then(|folder| folder.sync_all()).map_err(files::io("write folder", path))?)
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("maps with text keys, numbers and text can be serialised as JSON")
}

/// Returns the class names of a saved network in the order of its outputs; `None` in checkpoints of older versions.
pub fn classes_of(meta: &serde_json::Value) -> Option<Vec<String>> {
    serde_json::from_value(meta.pointer("/extra/classes")?.clone()).ok()
}

/// Key in the `__metadata__` of a safetensors file: class names as a JSON list.
pub(crate) const CLASSES: &str = "classes";

/// Serialises tensors as safetensors, with the class names if known.
pub(crate) fn to_safetensors(tensors: &[(String, Tensor)], classes: Option<&[String]>) -> Result<Vec<u8>> {
    let refused =
        |name: &str, why: String| Error::from(TrainError::CheckpointTensor { name: name.into(), why });
    let mut names = BTreeSet::new();
    let mut plain = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if !names.insert(name) {
            return Err(refused(name, "duplicate name".into()));
        }
        let dtype = dtype_of(tensor.f_kind()?)
            .ok_or_else(|| refused(name, format!("kind {:?} cannot be stored", tensor.kind())))?;
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?;
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape = tensor.size().iter().map(|&length| length as usize).collect();
        plain.push((name, dtype, shape, bytes));
    }
    let mut views = Vec::with_capacity(plain.len());
    for (name, dtype, shape, bytes) in &plain {
        let view = TensorView::new(*dtype, Vec::clone(shape), bytes)
            .map_err(|error| refused(name, error.to_string()))?;
        views.push((name.as_str(), view));
    }
    let metadata = classes.map(|classes| {
        let text = serde_json::to_string(classes).expect("text can be serialised as JSON");
        HashMap::from([(CLASSES.to_owned(), text)])
    });
    safetensors::serialize(views, metadata).map_err(|error| refused("(all)", error.to_string()))
}

fn from_safetensors(bytes: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.tensors() {
        let kind = kind_of(view.dtype())
            .ok_or_else(|| format!("tensor {name}: unsupported dtype {:?}", view.dtype()))?;
        let shape: Vec<i64> = view.shape().iter().map(|&length| length as i64).collect();
        let tensor = match kind {
            // Any nonzero byte is true: other values than 0 and 1 in a bool would be undefined.
            Kind::Bool => {
                Tensor::f_from_data_size(view.data(), &shape, Kind::Uint8).and_then(|bytes| bytes.f_ne(0))
            }
            kind => Tensor::f_from_data_size(view.data(), &shape, kind),
        };
        tensors.push((name, tensor));
    }
    tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
    (tensors.into_iter())
        .map(|(name, tensor)| match tensor {
            Ok(tensor) => Ok((name, tensor)),
            Err(error) => Err(format!("tensor {name}: {error}")),
        })
        .collect()
}

/// Kinds that are restored bit-identical.
const KINDS: [(Kind, Dtype); 6] = [
    (Kind::Bool, Dtype::BOOL),
    (Kind::Uint8, Dtype::U8),
    (Kind::Int, Dtype::I32),
    (Kind::Int64, Dtype::I64),
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
];

fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(ours, _)| *ours == kind).map(|(_, dtype)| *dtype)
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(_, theirs)| *theirs == dtype).map(|(kind, _)| *kind)
}

/// Returns the checkpoint folder in a run folder.
pub fn folder(run: &Path) -> PathBuf {
    run.join("checkpoints")
}
