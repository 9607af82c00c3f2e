//! Golden files in memory: tensors with settings, or a JSON list.

use crate::commands::error::Error as CommandError;
use crate::error::{Error, Result};
use crate::files;
use crate::net::params::Named;
use crate::space::Mask;
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

    /// Returns an error about this file.
    pub fn wrong(&self, what: impl Into<String>) -> Error {
        CommandError::Golden { path: self.path.clone(), what: what.into() }.into()
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
