//! `methods_genotypes.json`: architectures that given parameters select, by the rule of each method.
//!
//! Shapes: E edges, O operations.

use super::model::parameters;
use crate::commands::verify::comparison::{Comparison, Finding};
use crate::commands::verify::golden::{GoldenList, operations};
use crate::config::{ArchitectureSection, Method, Precision};
use crate::error::Result;
use crate::method::parameters::HostTable;
use crate::space::found::Found;
use crate::space::genotype::Edges;
use crate::space::{Mask, Operation, SearchSpace};
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::{Device, Tensor};

/// Rules whose architectures this program does not have yet: all edges, edges with `none`, and (GDAS in the published
/// space of its own) two operations on the same edge.
const LATER: [&str; 3] = ["snas", "snas_all", "gdas"];

/// Cases of one rule.
#[derive(Deserialize)]
struct Rule {
    primitives: String,
    cases: Vec<serde_json::Value>,
}

/// Parameters of two kinds of cells, and the edges that they select.
#[derive(Deserialize)]
struct Darts {
    normal: HostTable,
    reduce: HostTable,
    beta_normal: Option<Vec<f64>>,
    beta_reduce: Option<Vec<f64>>,
    genotype: Cells,
}

#[derive(Deserialize)]
struct Cells {
    normal: Edges,
    reduce: Edges,
}

/// Parameters of a NAS-Bench-201 cell, and the architecture that they select.
#[derive(Deserialize)]
struct NasBench201 {
    alpha: HostTable,
    genotype: String,
}

/// Compares the architectures of all cases.
pub fn genotypes(list: &GoldenList) -> Result<Vec<Finding>> {
    let rules: BTreeMap<String, Rule> = list.parse()?;
    let mut findings = Vec::new();
    for (name, rule) in rules.into_iter().filter(|(name, _)| !LATER.contains(&name.as_str())) {
        let (kind, method) = match &*name {
            "darts" => ("genotypes, DARTS", Method::Darts),
            "darts7" => ("genotypes, 7 operations", Method::Darts),
            "pcdarts" => ("genotypes, PC-DARTS", Method::PcDarts),
            "nb201" => ("genotypes, NAS-Bench-201", Method::Darts),
            _ => return Err(list.wrong(format!("'{name}' is no known rule"))),
        };
        let operations = operations(&rule.primitives).map_err(|why| list.wrong(why))?;
        let mut comparison = Comparison::new(kind, 0.0, 0.0);
        for (number, case) in rule.cases.into_iter().enumerate() {
            let equal = match &*name {
                "nb201" => read(list, case).and_then(|case| nas_bench_201(&case, &operations)),
                _ => read(list, case).and_then(|case| darts(&case, method, &operations)),
            };
            comparison.equal(&format!("case {number}"), equal?);
        }
        findings.push(comparison.finding());
    }
    Ok(findings)
}

fn read<T: for<'de> Deserialize<'de>>(list: &GoldenList, case: serde_json::Value) -> Result<T> {
    serde_json::from_value(case).map_err(|error| list.wrong(error.to_string()))
}

/// Returns whether the parameters select the cells of the case.
fn darts(case: &Darts, method: Method, operations: &[Operation]) -> Result<bool> {
    let alpha = [&case.normal, &case.reduce].map(table);
    let beta: Vec<Tensor> =
        [&case.beta_normal, &case.beta_reduce].into_iter().flatten().map(|b| Tensor::from_slice(b)).collect();
    let mut values = vec![Tensor::stack(&alpha, 0)];
    if !beta.is_empty() {
        values.push(Tensor::stack(&beta, 0));
    }
    Ok(match found(method, (SearchSpace::DartsCifar, operations), &values)? {
        Found::Darts(ours) => ours.normal == case.genotype.normal && ours.reduce == case.genotype.reduce,
        Found::NasBench201(_) => false,
    })
}

/// Returns whether the parameters select the architecture of the case.
fn nas_bench_201(case: &NasBench201, operations: &[Operation]) -> Result<bool> {
    let values = [table(&case.alpha).unsqueeze(0)];
    let ours = found(Method::Darts, (SearchSpace::NasBench201, operations), &values)?;
    Ok(ours == Found::NasBench201(case.genotype.parse()?))
}

/// Returns the architecture that parameters, one tensor [T, ...] each, select as in a search.
fn found(
    method: Method,
    (space, operations): (SearchSpace, &[Operation]),
    values: &[Tensor],
) -> Result<Found> {
    let place = (space, operations, Precision::Fp64, Device::Cpu);
    let parameters = parameters(method, place, ArchitectureSection::default(), values);
    let masks = vec![Mask::full(space.num_edges(), operations.len()); space.tables().len()];
    Ok(Found::from_scores(space, operations, &parameters.scores(&masks)?))
}

/// Returns the tensor [E, O] of a table.
fn table(rows: &HostTable) -> Tensor {
    Tensor::stack(&rows.iter().map(|row| Tensor::from_slice(row)).collect::<Vec<_>>(), 0)
}
