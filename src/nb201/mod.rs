//! NAS-Bench-201 table: the results of all 15,625 architectures in a small memory-mapped file instead of the gigabytes
//! of the public API.

pub(crate) mod error;
mod format;
mod import;

pub use error::{Error, Result};
pub use import::import;

use crate::files;
use crate::space::nb201::{Architecture, Dataset, NUM_ARCHITECTURES};
use memmap2::Mmap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A column of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name as in the source, such as "c10_test_200".
    pub name: String,
    /// "percent", or empty if unknown.
    pub unit: String,
    /// Digits after the decimal point.
    pub decimals: u32,
}

/// The memory-mapped table of the whole benchmark. Accuracies: larger is better.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    map: Mmap,
    layout: format::Layout,
}

/// The row of an architecture.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    table: &'a Table,
    /// Index in the benchmark.
    pub index: usize,
}

impl Table {
    /// Maps and validates a table written by `nb201 import`. Errors: a specific one for each fault.
    pub fn open(path: &Path) -> Result<Table> {
        let file = File::open(path).map_err(files::io("open", path))?;
        // Some platforms cannot map empty files, and special files cannot be mapped at all.
        let metadata = file.metadata().map_err(files::io("read", path))?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(Error::Magic { path: path.to_owned() });
        }
        // SAFETY: the map is read-only and private to this process. The checksum detects changes by another process
        // before the checks; later changes give wrong values but no invalid access, because all offsets are computed
        // from the checked layout. A file truncated while it is mapped ends the process with SIGBUS; a complete table
        // is never written to again (`import` renames it into place).
        let map = unsafe { Mmap::map(&file) }.map_err(files::io("map", path))?;
        let layout = format::check(path, &map)?;
        Ok(Table { path: path.to_owned(), map, layout })
    }

    /// Number of architectures: the whole space.
    pub fn len(&self) -> usize {
        NUM_ARCHITECTURES
    }

    /// Returns false: a table contains the whole space.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Columns in the order of the file.
    pub fn columns(&self) -> &[Column] {
        &self.layout.columns
    }

    /// Returns the row of an architecture.
    pub fn row(&self, architecture: &Architecture) -> Row<'_> {
        Row { table: self, index: self.layout.index_of[architecture.code()] as usize }
    }

    /// Returns the row with an index of the benchmark, `None` from `len()` on.
    pub fn row_at(&self, index: usize) -> Option<Row<'_>> {
        (index < self.len()).then_some(Row { table: self, index })
    }

    /// Returns all rows in the order of the benchmark.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.len()).map(|index| Row { table: self, index })
    }

    /// Returns the index of a column by its name, or by the name of a data set (see [`Table::accuracy`]).
    pub fn column(&self, name: &str) -> Result<usize> {
        let wanted = Dataset::from_name(name).map_or(name, |dataset| dataset.column());
        self.columns().iter().position(|column| column.name == wanted).ok_or_else(|| Error::NoColumn {
            path: self.path.clone(),
            name: wanted.to_string(),
            columns: self.columns().iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Returns the column of the test accuracy after 200 epochs, percent, on a data set: what papers report. Errors:
    /// the table lacks it.
    pub fn accuracy(&self, dataset: Dataset) -> Result<usize> {
        self.column(dataset.column())
    }

    /// Returns the values of a column in the order of the benchmark. `column`: below `columns().len()`.
    pub fn values(&self, column: usize) -> Vec<f64> {
        self.rows().map(|row| row.value(column)).collect()
    }

    /// Returns the row with the largest value, the first of equal ones.
    pub fn optimum(&self, column: usize) -> Row<'_> {
        self.top(column, 1)[0]
    }

    /// Returns the median of a column over all architectures.
    pub fn median(&self, column: usize) -> f64 {
        quantile(&self.values(column), 0.5)
    }

    /// Returns the `count` rows with the largest values in descending order, equal ones by ascending index.
    pub fn top(&self, column: usize, count: usize) -> Vec<Row<'_>> {
        let mut rows: Vec<Row<'_>> = self.rows().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.integer(column))); // stable
        rows.truncate(count);
        rows
    }

    fn integer(&self, index: usize, column: usize) -> u32 {
        let at = self.layout.values_at + 4 * (index * self.columns().len() + column);
        u32::from_le_bytes(self.map[at..at + 4].try_into().expect("four bytes"))
    }
}

impl<'a> Row<'a> {
    /// Returns the architecture.
    pub fn architecture(&self) -> Architecture {
        let at = self.table.layout.codes_at + 2 * self.index;
        let code = u16::from_le_bytes([self.table.map[at], self.table.map[at + 1]]);
        // The codes were checked; if the file changed afterwards, an invalid one is read as the first architecture.
        Architecture::from_code(code as usize).unwrap_or(Architecture([0; 6]))
    }

    /// Returns the value in a column, in the unit of the column. `column`: below `columns().len()`.
    pub fn value(&self, column: usize) -> f64 {
        // Correctly rounded: the float nearest to the decimal number of the source.
        self.integer(column) as f64 / 10f64.powi(self.table.columns()[column].decimals as i32)
    }

    /// Returns the place among all architectures in a column: 1 for the largest; equal values have the same place.
    pub fn rank(&self, column: usize) -> usize {
        let own = self.integer(column);
        1 + self.table.rows().filter(|row| row.integer(column) > own).count()
    }

    /// Formats the value with all its decimals.
    pub fn text(&self, column: usize) -> String {
        format!("{:.*}", self.table.columns()[column].decimals as usize, self.value(column))
    }

    /// Returns the test accuracy after 200 epochs, percent, by data set; `None` if the table lacks the column.
    pub fn accuracies(&self) -> [Option<f64>; 3] {
        Dataset::ALL.map(|dataset| self.table.accuracy(dataset).ok().map(|column| self.value(column)))
    }

    fn integer(&self, column: usize) -> u32 {
        self.table.integer(self.index, column)
    }
}

/// Returns the quantile `fraction` (0..=1) of `values`, interpolated linearly as numpy does by default. `values`: not
/// empty, no NaN.
pub fn quantile(values: &[f64], fraction: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = fraction * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}
