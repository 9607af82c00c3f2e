//! Configuration: the sections of a TOML file, their defaults, and the resolved and checked settings.
//!
//! `configs/README.md` documents every key. An empty file is the published ImageNet search (DrNAS, ICLR 2021).

mod check;
pub(crate) mod error;
mod evaluate;
mod load;
mod precision;
pub mod published;
mod sections;
mod settings;
mod shared;

pub use error::{Error, Result};
pub use evaluate::{DecayKind, EvaluateConfig, EvaluateSection};
pub use precision::Precision;
pub use sections::{
    CropKind, DataSection, DeviceChoice, EtaSection, GradientOrder, ModelSection, Reduce, Regulariser,
    RunSection, SearchSection, StageSection, Theta, WeightsSection,
};
pub use settings::Settings;

use shared::configuration;

configuration! {
    /// Resolved and checked configuration of a search. [`Settings::load`] returns one; `Default` is the published
    /// ImageNet search.
    pub struct Config {
        /// The search: replicas, batch, stages.
        search: SearchSection,
        ;
        /// Adam of the architecture parameters.
        eta: EtaSection,
    }
}

impl Default for Config {
    fn default() -> Self {
        Config::with(
            DataSection::default(),
            SearchSection::default(),
            WeightsSection::default(),
            EtaSection::default(),
        )
    }
}

impl Config {
    /// Epochs of all stages.
    pub fn num_epochs(&self) -> u64 {
        self.search.stages.iter().map(|stage| stage.epochs).sum()
    }
}
