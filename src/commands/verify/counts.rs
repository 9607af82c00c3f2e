//! `eval_counts.json`: parameter counts of published genotypes at published sizes.

use super::PLACEMENT;
use super::comparison::{Comparison, Finding};
use super::golden::GoldenList;
use crate::error::Result;
use crate::net::network::{Network, NetworkShape};
use crate::space::SearchSpace;
use crate::space::genotype::Genotype;
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::Tensor;

#[derive(Deserialize)]
struct Counts {
    /// Keys such as `imagenet-48-14-DrNAS_imagenet`: space, channels, cells, genotype.
    parameters_without_auxiliary: BTreeMap<String, i64>,
    genotypes: BTreeMap<String, Genotype>,
}

/// Compares the genotypes and parameter counts in the file.
pub fn counts(list: &GoldenList) -> Result<Vec<Finding>> {
    let counts: Counts = list.parse()?;
    let mut genotypes = Comparison::new("genotypes", 0.0, 0.0);
    for (name, theirs) in &counts.genotypes {
        let ours = Genotype::read(name)?;
        genotypes.equal(name, ours == *theirs);
    }
    let mut parameters = Comparison::new("parameters", 0.0, 0.0);
    for (name, &theirs) in &counts.parameters_without_auxiliary {
        let wrong = || list.wrong(format!("'{name}' is not SPACE-CHANNELS-CELLS-GENOTYPE"));
        let shape = shape_of(name).ok_or_else(wrong)?;
        let net = Network::new(shape, PLACEMENT);
        parameters.add(name, &Tensor::from(net.num_parameters()), &Tensor::from(theirs));
    }
    Ok(vec![genotypes.finding(), parameters.finding()])
}

/// Returns the published network with a name.
fn shape_of(name: &str) -> Option<NetworkShape> {
    let parts: Vec<&str> = name.split('-').collect();
    let [space, channels, layers, genotype] = parts[..] else { return None };
    // At most 48 channels and 20 cells were published. The limit prevents a corrupt number from filling the memory.
    let size = |text: &str| text.parse().ok().filter(|size| (1..=128).contains(size));
    let (space, num_classes, px) = match space {
        "imagenet" => (SearchSpace::DartsImagenet, 1000, 224),
        "cifar" => (SearchSpace::DartsCifar, 10, 32),
        _ => return None,
    };
    Some(NetworkShape {
        space,
        genotype: Genotype::read(genotype).ok()?,
        init_channels: size(channels)?,
        layers: size(layers)? as usize,
        num_classes,
        px,
        auxiliary: true,
    })
}
