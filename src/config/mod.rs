//! Configuration: the sections of a TOML file, their defaults, and the resolved and checked settings.
//!
//! `configs/README.md` documents every key. An empty file is the published ImageNet search (DrNAS, ICLR 2021).

mod check;
mod check_search;
pub(crate) mod error;
mod evaluate;
mod load;
mod method;
mod precision;
pub mod published;
mod search;
mod sections;
mod settings;
mod shared;

pub use error::{Error, Result};
pub use evaluate::{DecayKind, EvaluateConfig, EvaluateSection};
pub use method::Method;
pub use precision::Precision;
pub use search::{
    ArchitectureSection, Attack, FirstPart, GradientOrder, Ramp, Regulariser, Scheme, SearchSection,
    StageSection, Theta, Unsampled,
};
pub use sections::{CropKind, DataSection, DeviceChoice, ModelSection, Reduce, RunSection, WeightsSection};
pub use settings::Settings;

use crate::space::edges::masks;
use crate::space::{Mask, Operation};
use shared::configuration;

configuration! {
    /// Resolved and checked configuration of a search. [`Settings::load`] returns one; `Default` is the published
    /// ImageNet search.
    pub struct Config {
        /// The search method.
        method: Method,
        ;
        /// The search: replicas, batch, stages.
        search: SearchSection,
        ;
        /// The architecture parameters and their optimiser.
        architecture: ArchitectureSection,
    }
}

impl Default for Config {
    fn default() -> Self {
        let mut config = Config::with(
            DataSection::default(),
            SearchSection::default(),
            WeightsSection::default(),
            ArchitectureSection::default(),
        );
        config.model.operations = config.operations();
        config
    }
}

impl Config {
    /// Returns the operations of the search, in the order of the columns of its tables.
    pub fn operations(&self) -> Vec<Operation> {
        match &self.model.operations[..] {
            [] => self.method.operations(self.model.space),
            operations => operations.to_vec(),
        }
    }

    /// Returns the operations of every edge at the start of the search, one mask per table. Errors: `model.edges` does not
    /// fit the space or the operations.
    pub fn masks(&self) -> Result<Vec<Mask>> {
        let masks = masks(self.model.space, &self.operations(), &self.model.edges);
        masks.map_err(|why| Error::Check(format!("model.edges: {why}")))
    }

    /// Epochs of all stages.
    pub fn num_epochs(&self) -> u64 {
        self.search.stages.iter().map(|stage| stage.epochs).sum()
    }
}
