//! Search methods, and the configuration keys that only some of them use.

use crate::space::{Operation, SearchSpace};
use serde::{Deserialize, Serialize};

/// A search method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// DrNAS (ICLR 2021): mixing weights drawn from Dirichlet distributions.
    #[default]
    Drnas,
    /// DARTS (ICLR 2019): softmax.
    Darts,
    /// SNAS (ICLR 2019): samples of the concrete distribution.
    Snas,
    /// GDAS (CVPR 2019): one operation per edge, drawn from a Gumbel-softmax; only that one is computed.
    Gdas,
    /// DSNAS (CVPR 2020): one operation per edge, drawn with its probability; only that one is computed.
    Dsnas,
    /// PC-DARTS (ICLR 2020): softmax with edge weights, partial channels.
    PcDarts,
    /// SDARTS-RS (ICML 2020): DARTS with randomly perturbed mixing weights in the weight step.
    SdartsRs,
    /// SDARTS-ADV (ICML 2020): DARTS with adversarially perturbed mixing weights in the weight step.
    SdartsAdv,
}

use Method::{Darts, Drnas, Dsnas, Gdas, PcDarts, SdartsAdv, SdartsRs, Snas};

/// Keys that only some methods use.
const KEYS: [(&str, &[Method]); 10] = [
    ("search.scheme", &[Drnas, Darts, Snas, Gdas, Dsnas, PcDarts]),
    ("search.theta", &[Drnas, Snas, Gdas, Dsnas, SdartsRs, SdartsAdv]),
    ("search.order", &[Drnas, Darts, PcDarts, SdartsRs, SdartsAdv]),
    ("architecture.regulariser", &[Drnas]),
    ("architecture.kl_scale", &[Drnas]),
    ("architecture.temperature", &[Snas, Gdas]),
    ("architecture.temperature_ramp", &[Snas, Gdas]),
    ("architecture.unsampled", &[Gdas]),
    ("architecture.epsilon", &[SdartsRs, SdartsAdv]),
    ("architecture.attack", &[SdartsAdv]),
];

impl Method {
    /// Returns the name in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Drnas => "drnas",
            Darts => "darts",
            Snas => "snas",
            Gdas => "gdas",
            Dsnas => "dsnas",
            PcDarts => "pc-darts",
            SdartsRs => "sdarts-rs",
            SdartsAdv => "sdarts-adv",
        }
    }

    /// Returns the operations that the published search of this method uses in `space`, in the order of the columns.
    pub fn operations(self, space: SearchSpace) -> Vec<Operation> {
        let all = space.operations();
        match (space, self) {
            (SearchSpace::NasBench201, _) | (_, Drnas | SdartsRs | SdartsAdv) => all.to_vec(),
            (_, Darts | Snas | Gdas | Dsnas | PcDarts) => [&[Operation::None], all].concat(),
        }
    }

    /// Returns the keys that this method does not use, with the methods that do.
    pub fn unused_keys(self) -> impl Iterator<Item = (&'static str, &'static [Method])> {
        KEYS.into_iter().filter(move |(_, users)| !users.contains(&self))
    }
}
