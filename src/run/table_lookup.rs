//! Compares a found architecture with the published one and, on NAS-Bench-201, with the best of the table.

use crate::error::Result;
use crate::nb201::{Row, Table};
use crate::report::Accuracies;
use crate::space::SearchSpace;
use crate::space::found::Found;
use crate::space::genotype::Genotype;
use crate::space::nb201::{Architecture, DRNAS, Dataset};
use std::fmt::Write;

/// The NAS-Bench-201 table and the data set of the search.
pub struct TableLookup {
    table: Table,
    dataset: Dataset,
}

impl TableLookup {
    /// Errors: `table` lacks the test accuracy on `dataset`.
    pub fn new(table: Table, dataset: Dataset) -> Result<TableLookup> {
        table.accuracy(dataset)?;
        Ok(TableLookup { table, dataset })
    }

    /// Looks up the test accuracies of an architecture.
    pub fn accuracies(&self, architecture: &Architecture) -> Accuracies {
        let known = self.table.row(architecture).accuracies();
        let named =
            Dataset::ALL.iter().zip(known).filter_map(|(dataset, value)| Some((dataset.name(), value?)));
        named.map(|(name, value)| (name.to_string(), value)).collect()
    }

    /// Formats accuracies for the line of an epoch: "; table: CIFAR-10 93.76, CIFAR-100 70.90 %".
    pub fn epoch_text(&self, accuracies: &Accuracies) -> String {
        let text = |dataset: &Dataset| {
            accuracies.get(dataset.name()).map(|value| format!("{} {value:.2}", dataset.title()))
        };
        let known: Vec<String> = Dataset::ALL.iter().filter_map(text).collect();
        format!("; table: {} %", known.join(", "))
    }

    /// Formats a table of the found, published and best architectures with their accuracies and places.
    fn comparison_text(&self, found: &Architecture) -> Result<String> {
        let column = self.table.accuracy(self.dataset)?;
        let best = self.table.optimum(column);
        let rows =
            [("found", self.table.row(found)), ("DrNAS, published", self.table.row(&DRNAS)), ("best", best)];
        let known: Vec<Dataset> =
            Dataset::ALL.into_iter().filter(|dataset| self.table.accuracy(*dataset).is_ok()).collect();
        let mut text = format!(
            "NAS-Bench-201 test accuracy after 200 epochs, percent (place among {} architectures); searched on {}:\n",
            self.table.len(),
            self.dataset.title()
        );
        let mut line = |name: &str, cells: Vec<String>, end: &str| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>18}")).collect();
            let _ = writeln!(text, "  {name:<16}{cells}  {end}");
        };
        line("", known.iter().map(|dataset| dataset.title().to_string()).collect(), "");
        for (name, row) in &rows {
            let cell = |dataset: &Dataset| -> Result<String> { self.cell(row, *dataset) };
            let cells = known.iter().map(cell).collect::<Result<_>>()?;
            line(name, cells, &row.architecture().to_string());
        }
        let medians = known.iter().map(|dataset| -> Result<String> {
            Ok(format!("{:.2}{:9}", self.table.median(self.table.accuracy(*dataset)?), ""))
        });
        line("median", medians.collect::<Result<_>>()?, "");
        Ok(text)
    }

    fn cell(&self, row: &Row, dataset: Dataset) -> Result<String> {
        let column = self.table.accuracy(dataset)?;
        Ok(format!("{:.2} ({:>6})", row.value(column), row.rank(column)))
    }
}

/// Formats the comparison for the report of a search.
pub fn comparison_text(space: SearchSpace, found: &Found, benchmark: Option<&TableLookup>) -> Result<String> {
    let published = match (found, space) {
        (Found::NasBench201(architecture), _) => match benchmark {
            Some(benchmark) => return benchmark.comparison_text(architecture),
            None => DRNAS.to_string(),
        },
        (Found::Darts(_), SearchSpace::DartsImagenet) => Genotype::read("DrNAS_imagenet")?.to_line(),
        (Found::Darts(_), _) => Genotype::read("DrNAS_cifar10")?.to_line(),
    };
    Ok(format!("Published result of DrNAS:\n\n{published}\n"))
}
