//! The assignment of images to shards, and the check of the output folder against it.

use super::set::{hex, read_set_file};
use super::shard::{Shard, VERSION, file_name};
use super::source::Source;
use crate::cli::PackArgs;
use crate::data::error::{Error, Result};
use crate::files;
use crate::random::{Purpose, stream};
use rand::seq::SliceRandom;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// The assignment of images to shards.
pub struct Plan<'a> {
    /// The command-line arguments.
    pub args: &'a PackArgs,
    /// The images.
    pub source: Source,
    /// Indices in `source`. Images of a folder are shuffled: a shard is a random sample, and no page or shard holds
    /// only one class. Others keep their order: those data sets are already shuffled, and published lists refer to it.
    pub order: Vec<u32>,
    /// Identifies the plan: shards of different plans are not mixed.
    pub hash: u64,
}

impl<'a> Plan<'a> {
    /// Plans the shards, shuffling the images by the seed unless their order is meaningful.
    pub fn new(source: Source, args: &'a PackArgs) -> Plan<'a> {
        let mut order: Vec<u32> = (0..source.len() as u32).collect();
        if source.is_unordered() {
            order.shuffle(&mut stream(args.seed, Purpose::Order, &[]));
        }
        let mut hash = Xxh3::new();
        for number in [
            u64::from(VERSION),
            source.hash(),
            args.seed,
            args.shard_images.into(),
            args.skip_bad.into(),
            args.no_decode.into(),
        ] {
            hash.update(&number.to_le_bytes());
        }
        Plan { args, source, order, hash: hash.digest() }
    }

    /// Returns the number of shards.
    pub fn num_shards(&self) -> usize {
        self.order.len().div_ceil(self.args.shard_images as usize)
    }

    /// Returns the images of one shard, as indices in `source`.
    pub fn images_of(&self, shard: usize) -> &[u32] {
        let size = self.args.shard_images as usize;
        &self.order[shard * size..self.order.len().min((shard + 1) * size)]
    }
}

/// Makes sure that `out` contains only shards of this plan, or none. Returns whether the set is already complete.
pub fn prepare_output(plan: &Plan) -> Result<bool> {
    let out = &plan.args.out;
    let mut foreign = Vec::new();
    for entry in std::fs::read_dir(out).map_err(files::io("list folder", out))? {
        let path = entry.map_err(files::io("list folder", out))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("shard-") && name.ends_with(".tmp") {
            remove(&path)?;
        } else if name.starts_with("shard-") && name.ends_with(".bin") {
            // A corrupt shard is packed again; a valid one of another plan is not overwritten without --overwrite.
            match Shard::open(&path) {
                Ok(shard) if shard.header().plan_hash != plan.hash => foreign.push(path),
                Ok(_) => (),
                Err(Error::Io(error)) => return Err(error.into()),
                Err(_) if plan.args.overwrite => foreign.push(path),
                Err(_) => (),
            }
        }
    }
    let set_file = out.join("set.json");
    let described = match read_set_file(out) {
        Ok(file) => file.plan_hash == hex(plan.hash),
        Err(Error::SetMissing { .. }) => return refuse_or_remove(plan, foreign).map(|()| false),
        Err(_) => false,
    };
    if !described {
        foreign.insert(0, set_file.clone());
    }
    refuse_or_remove(plan, foreign)?;
    let whole =
        described && (0..plan.num_shards()).all(|number| Shard::open(&out.join(file_name(number))).is_ok());
    if described && !whole {
        remove(&set_file)?;
    }
    Ok(whole)
}

fn refuse_or_remove(plan: &Plan, foreign: Vec<PathBuf>) -> Result<()> {
    if !foreign.is_empty() && !plan.args.overwrite {
        return Err(Error::OtherPlan { dir: plan.args.out.clone() });
    }
    foreign.iter().try_for_each(|path| remove(path))
}

/// Removes a file, if it exists.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(files::io("remove", path)(e).into()),
        _ => Ok(()),
    }
}
