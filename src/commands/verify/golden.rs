//! Golden files in memory: tensors with settings, or a JSON list.

use crate::commands::error::Error as CommandError;
use crate::error::{Error, Result};
use crate::files;
use crate::net::params::Named;
use crate::space::{Mask, Operation, SearchSpace};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use tch::{Kind, Tensor};

/// A golden safetensors file.
pub struct Golden {
    path: String,
    settings: BTreeMap<String, String>,
    /// Tensors by name.
    pub tensors: Named,
}

impl Golden {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Golden> {
        let bytes = std::fs::read(path).map_err(files::io("read", path))?;
        let wrong = |what: String| CommandError::Golden { path: path.display().to_string(), what };
        let (_, header) =
            safetensors::SafeTensors::read_metadata(&bytes).map_err(|error| wrong(error.to_string()))?;
        let settings = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let tensors = Tensor::read_safetensors(path)?.into_iter().collect();
        Ok(Golden { path: path.display().to_string(), settings, tensors })
    }

    /// Reads the file `name`.safetensors in the folder of this one.
    pub fn beside(&self, name: &str) -> Result<Golden> {
        let file = format!("{name}.safetensors");
        match Path::new(&file).file_name() {
            Some(only) if only == file.as_str() => Golden::read(&Path::new(&self.path).with_file_name(file)),
            _ => Err(self.wrong(format!("expected the name of a file in the same folder, found '{name}'"))),
        }
    }

    /// Returns an error about this file.
    pub fn wrong(&self, what: impl Into<String>) -> Error {
        CommandError::Golden { path: self.path.clone(), what: what.into() }.into()
    }

    /// Returns the search space, if the settings name a known one.
    pub fn space(&self) -> Option<SearchSpace> {
        match self.setting("space")? {
            "darts-imagenet" => Some(SearchSpace::DartsImagenet),
            "darts-cifar" => Some(SearchSpace::DartsCifar),
            "nas-bench-201" => Some(SearchSpace::NasBench201),
            _ => None,
        }
    }

    /// Returns the operations of the setting `primitives`, one per column of the tables.
    pub fn operations(&self) -> Result<Vec<Operation>> {
        operations(self.text("primitives")?).map_err(|why| self.wrong(why))
    }

    /// Returns required tensors, one per table; see [`table_names`].
    pub fn tables(&self, space: SearchSpace, prefix: &str, suffix: &str) -> Result<Vec<Tensor>> {
        table_names(space, prefix, suffix).iter().map(|name| Ok(self.tensor(name)?.copy())).collect()
    }

    /// Returns a required tensor.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.wrong(format!("no tensor '{name}'")))
    }

    /// Returns an optional setting.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// Returns a required setting.
    pub fn text(&self, key: &str) -> Result<&str> {
        self.setting(key).ok_or_else(|| self.wrong(format!("no setting '{key}'")))
    }

    /// Returns a required setting as a number.
    pub fn number<T: FromStr>(&self, key: &str) -> Result<T> {
        let text = self.text(key)?;
        text.parse().map_err(|_| self.wrong(format!("setting '{key}': expected a number, found '{text}'")))
    }

    /// Returns a required size of a network. Channels and classes are dimensions of tensors in the file, and every cell
    /// has a tensor: the limit prevents a corrupt number from filling the memory.
    pub fn size<T: TryFrom<i64>>(&self, key: &str) -> Result<T> {
        let extents = self.tensors.values().flat_map(Tensor::size);
        let max = extents.chain([self.tensors.len() as i64]).max().unwrap_or(0);
        let size = self.number(key)?;
        let fits = T::try_from(size).ok().filter(|_| (1..=max).contains(&size));
        fits.ok_or_else(|| {
            self.wrong(format!("setting '{key}': expected 1 to {max} (from its tensors), found {size}"))
        })
    }

    /// Returns the tensors under `group/`, without that prefix.
    pub fn group(&self, group: &str) -> Named {
        let tensors = self.tensors.iter();
        tensors
            .filter_map(|(name, tensor)| {
                let name = name.strip_prefix(group)?.strip_prefix('/')?;
                Some((name.to_string(), tensor.shallow_clone()))
            })
            .collect()
    }

    /// Returns a mask for the table `like` [E, O]; nothing is pruned if the file has none.
    pub fn mask(&self, name: &str, like: &Tensor) -> Result<Mask> {
        let (edges, operations) = like.size2()?;
        match self.tensors.get(name) {
            None => Ok(Mask::full(edges as usize, operations as usize)),
            Some(mask) => Ok(Mask(
                (0..edges)
                    .map(|edge| (0..operations).map(|op| mask.int64_value(&[edge, op]) != 0).collect())
                    .collect(),
            )),
        }
    }
}

/// Parses names of operations, separated by commas.
pub fn operations(names: &str) -> Result<Vec<Operation>, String> {
    names.split(',').map(|name| Operation::try_from(name.to_string())).collect()
}

/// Returns the names of the tensors of all tables, `prefix.TABLE.suffix`. A space with one table does not name it; an
/// empty suffix is left out.
pub fn table_names(space: SearchSpace, prefix: &str, suffix: &str) -> Vec<String> {
    let tables = space.tables();
    let name = |table: &&str| {
        let table = if tables.len() == 1 { "" } else { table };
        let parts = [prefix, table, suffix].into_iter().filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(".")
    };
    tables.iter().map(name).collect()
}

/// Copies a table [E, O] to the host.
pub fn rows(table: &Tensor) -> Result<Vec<Vec<f64>>> {
    Ok(Vec::try_from(table.to_kind(Kind::Double))?)
}

/// A golden JSON file.
pub struct GoldenList {
    path: String,
    text: String,
}

impl GoldenList {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<GoldenList> {
        let text = std::fs::read_to_string(path).map_err(files::io("read", path))?;
        Ok(GoldenList { path: path.display().to_string(), text })
    }

    /// Returns an error about this file.
    pub fn wrong(&self, what: impl Into<String>) -> Error {
        CommandError::Golden { path: self.path.clone(), what: what.into() }.into()
    }

    /// Parses the content.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.text).map_err(|error| self.wrong(error.to_string()))
    }
}
