//! `eval_counts.json`, `methods_genotypes_published.json`: parameter counts of published genotypes at published sizes.

use super::PLACEMENT;
use super::comparison::{Comparison, Finding};
use super::golden::GoldenList;
use crate::error::Result;
use crate::net::network::{Network, NetworkShape};
use crate::space::SearchSpace;
use crate::space::genotype::Genotype;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use tch::Tensor;

#[derive(Deserialize)]
struct Counts {
    /// Keys such as `imagenet-48-14-DrNAS_imagenet`: space, channels, cells, genotype.
    parameters_without_auxiliary: BTreeMap<String, i64>,
    genotypes: BTreeMap<String, Value>,
}

/// Compares the genotypes in the file with those of the same name in this program, and parameter counts.
pub fn counts(list: &GoldenList) -> Result<Vec<Finding>> {
    let counts: Counts = list.parse()?;
    let mut genotypes = Comparison::new("genotypes", 0.0, 0.0);
    for (name, theirs) in &counts.genotypes {
        genotypes.equal(name, Genotype::read(name)? == Genotype::from_json(&theirs.to_string())?);
    }
    Ok(vec![genotypes.finding(), parameters(list, &counts)?])
}

/// Compares parameter counts of genotypes that only the file has. The others of the file, of SNAS, keep all edges or
/// `none`, which is no architecture of this program yet.
pub fn counts_of_methods(list: &GoldenList) -> Result<Vec<Finding>> {
    Ok(vec![parameters(list, &list.parse()?)?])
}

/// Compares all parameter counts.
fn parameters(list: &GoldenList, counts: &Counts) -> Result<Finding> {
    let mut parameters = Comparison::new("parameters", 0.0, 0.0);
    for (name, &theirs) in &counts.parameters_without_auxiliary {
        let wrong = || list.wrong(format!("'{name}' is not SPACE-CHANNELS-CELLS-GENOTYPE"));
        let shape = shape_of(name, &counts.genotypes)?.ok_or_else(wrong)?;
        let net = Network::new(shape, PLACEMENT);
        parameters.add(name, &Tensor::from(net.num_parameters()), &Tensor::from(theirs));
    }
    Ok(parameters.finding())
}

/// Returns the published network with a name, whose genotype is one of `genotypes`.
fn shape_of(name: &str, genotypes: &BTreeMap<String, Value>) -> Result<Option<NetworkShape>> {
    let parts: Vec<&str> = name.split('-').collect();
    let [space, channels, layers, genotype] = parts[..] else { return Ok(None) };
    // At most 48 channels and 20 cells were published. The limit prevents a corrupt number from filling the memory.
    let size = |text: &str| text.parse().ok().filter(|size| (1..=128).contains(size));
    let (space, num_classes, px) = match space {
        "imagenet" => (SearchSpace::DartsImagenet, 1000, 224),
        "cifar" => (SearchSpace::DartsCifar, 10, 32),
        _ => return Ok(None),
    };
    let (Some(init_channels), Some(layers), Some(genotype)) =
        (size(channels), size(layers), genotypes.get(genotype))
    else {
        return Ok(None);
    };
    Ok(Some(NetworkShape {
        space,
        genotype: Genotype::from_json(&genotype.to_string())?,
        init_channels,
        layers: layers as usize,
        num_classes,
        px,
        auxiliary: true,
    }))
}
