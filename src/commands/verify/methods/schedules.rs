//! `methods_schedules.json`: learning rates, temperatures and sizes of perturbations per epoch of the published searches.

use crate::commands::verify::comparison::{Comparison, Finding};
use crate::commands::verify::golden::GoldenList;
use crate::commands::verify::tolerances::EXACT;
use crate::config::Ramp;
use crate::error::Result;
use crate::method::parameters::ramp;
use crate::train::schedule::{Decay, Schedule};
use std::collections::BTreeMap;
use tch::Tensor;

/// Learning rates: first and last rate of the cosine, epochs of the warm-up.
const RATES: [(&str, [f64; 2], u64); 7] = [
    ("darts_search", [0.025, 0.001], 0),
    ("nb201_search_100", [0.025, 0.001], 0),
    ("pcdarts_cifar_search", [0.1, 0.0], 0),
    ("pcdarts_imagenet_search", [0.5, 0.0], 5),
    ("autodl_darts", [0.025, 0.001], 0),
    ("autodl_gdas", [0.025, 0.001], 0),
    ("snas_search", [0.025, 0.001], 0),
];

/// Temperatures and sizes of perturbations.
const RAMPS: [(&str, [f64; 2], Ramp); 5] = [
    ("tau_drnas201", [10.0, 1.0], Ramp::Start),
    ("tau_autodl_gdas", [10.0, 0.1], Ramp::Both),
    ("temperature_snas", [1.0, 0.03], Ramp::End),
    ("epsilon_sdarts_50", [0.03, 0.3], Ramp::Start),
    ("epsilon_sdarts_100", [0.03, 0.3], Ramp::Start),
];

/// Cosines with restarts, of ENAS, which is no method of this program yet.
const LATER: [&str; 2] = ["autodl_enas", "enas_micro_child"];

/// Compares all series of the file; the length of a series is the number of epochs.
pub fn schedules(list: &GoldenList) -> Result<Vec<Finding>> {
    let mut rates = Comparison::new("learning rates", EXACT, 0.0);
    let mut ramps = Comparison::new("temperatures, epsilons", EXACT, 0.0);
    for (name, theirs) in &list.parse::<BTreeMap<String, Vec<f64>>>()? {
        let epochs = theirs.len() as u64;
        let compare = |comparison: &mut Comparison, value: &dyn Fn(u64) -> f64| {
            let ours: Vec<f64> = (0..epochs).map(value).collect();
            comparison.add(name, &Tensor::from_slice(&ours), &Tensor::from_slice(theirs));
        };
        if let Some((_, [lr, lr_min], warmup_epochs)) = RATES.iter().find(|(known, ..)| known == name) {
            let decay = Decay::Cosine { lr_min: *lr_min };
            let schedule = Schedule { lr: *lr, epochs, warmup_epochs: *warmup_epochs, decay };
            compare(&mut rates, &|epoch| schedule.lr(epoch));
        } else if let Some((_, ends, kind)) = RAMPS.iter().find(|(known, ..)| known == name) {
            compare(&mut ramps, &|epoch| ramp(*ends, *kind, epoch, epochs));
        } else if !LATER.contains(&name.as_str()) {
            return Err(list.wrong(format!("'{name}' is no known schedule")));
        }
    }
    Ok(vec![rates.finding(), ramps.finding()])
}
