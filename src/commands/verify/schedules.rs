//! `schedules.json`: learning rates per epoch of every published run.

use super::comparison::{Comparison, Finding};
use super::golden::GoldenList;
use super::tolerances::EXACT;
use crate::error::Result;
use crate::train::schedule::{Decay, Schedule};
use std::collections::BTreeMap;
use tch::Tensor;

/// Compares all series of the file.
pub fn schedules(list: &GoldenList) -> Result<Vec<Finding>> {
    let series: BTreeMap<String, Vec<f64>> = list.parse()?;
    let mut comparison = Comparison::new("learning rates", EXACT, 0.0);
    for (name, rates) in &series {
        // For example imagenet_search_0.5_50_warmup5: run, peak rate, epochs, warm-up.
        let numbers: Vec<f64> =
            name.split('_').filter_map(|part| part.trim_start_matches("warmup").parse().ok()).collect();
        let [lr, epochs, ref rest @ ..] = numbers[..] else {
            return Err(
                list.wrong(format!("'{name}': expected a learning rate and a number of epochs in the name"))
            );
        };
        let decay = match name {
            name if name.contains("linear") => Decay::Linear,
            name if name.starts_with("nb201") => Decay::Cosine { lr_min: 0.001 },
            _ => Decay::Cosine { lr_min: 0.0 },
        };
        let warmup_epochs = rest.first().map_or(0, |&epochs| epochs as u64);
        let schedule = Schedule { lr, epochs: epochs as u64, warmup_epochs, decay };
        let ours: Vec<f64> = (0..rates.len() as u64).map(|epoch| schedule.lr(epoch)).collect();
        comparison.add(name, &Tensor::from_slice(&ours), &Tensor::from_slice(rates));
    }
    Ok(vec![comparison.finding()])
}
