//! The table of NAS-Bench-201: what each of its 15,625 architectures reaches when it is trained, looked up in a small
//! memory-mapped file instead of the gigabytes of the public API.

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

/// One column: what a number means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// As in the source, "c10_test_200".
    pub name: String,
    /// "percent", or nothing when it is not known.
    pub unit: String,
    /// Digits after the decimal point.
    pub decimals: u32,
}

/// The whole benchmark, in the memory map. Larger is better in every column of accuracies.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    map: Mmap,
    layout: format::Layout,
}

/// One architecture's line.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    table: &'a Table,
    /// The index that the benchmark gives it.
    pub index: usize,
}

impl Table {
    /// Maps a table that `nb201 import` wrote, and checks all of it. Errors: one per kind of damage.
    pub fn open(path: &Path) -> Result<Table> {
        let file = File::open(path).map_err(files::io("open", path))?;
        // An empty file cannot be mapped everywhere, and what is no plain file not at all.
        let metadata = file.metadata().map_err(files::io("read", path))?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(Error::Magic { path: path.to_owned() });
        }
        // SAFETY: the map is read-only and private to this process; what another process changes before the checks is
        // caught by the checksum, and values changed later are wrong numbers, not wrong memory: every position is
        // computed from the checked layout. A file that is cut while it is mapped ends the process with SIGBUS; a
        // finished table is never written to again (`import` renames it into place).
        let map = unsafe { Mmap::map(&file) }.map_err(files::io("map", path))?;
        let layout = format::check(path, &map)?;
        Ok(Table { path: path.to_owned(), map, layout })
    }

    /// Architectures, which is the whole space.
    pub fn len(&self) -> usize {
        NUM_ARCHITECTURES
    }

    /// Never: a table holds the whole space.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What there is of each architecture, in the order of the file.
    pub fn columns(&self) -> &[Column] {
        &self.layout.columns
    }

    /// The line of an architecture.
    pub fn row(&self, architecture: &Architecture) -> Row<'_> {
        Row { table: self, index: self.layout.index_of[architecture.code()] as usize }
    }

    /// The line with the benchmark's index; none from `len()` on.
    pub fn row_at(&self, index: usize) -> Option<Row<'_>> {
        (index < self.len()).then_some(Row { table: self, index })
    }

    /// All lines, in the benchmark's order.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.len()).map(|index| Row { table: self, index })
    }

    /// The number of the column of that name, or of a data set's name: its test accuracy (see [`Table::accuracy`]).
    pub fn column(&self, name: &str) -> Result<usize> {
        let wanted = Dataset::from_name(name).map_or(name, |dataset| dataset.column());
        self.columns().iter().position(|column| column.name == wanted).ok_or_else(|| Error::NoColumn {
            path: self.path.clone(),
            name: wanted.to_string(),
            columns: self.columns().iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The column of a data set's test accuracy after 200 epochs, percent: what papers report. An error if the table
    /// has none.
    pub fn accuracy(&self, dataset: Dataset) -> Result<usize> {
        self.column(dataset.column())
    }

    /// The column's values in the benchmark's order. `column`: below `columns().len()`.
    pub fn values(&self, column: usize) -> Vec<f64> {
        self.rows().map(|row| row.value(column)).collect()
    }

    /// The line with the largest value; of equals the first.
    pub fn optimum(&self, column: usize) -> Row<'_> {
        self.top(column, 1)[0]
    }

    /// The median of the column over all architectures.
    pub fn median(&self, column: usize) -> f64 {
        quantile(&self.values(column), 0.5)
    }

    /// The `count` lines with the largest values, largest first; of equals the lower index first.
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
    /// The architecture.
    pub fn architecture(&self) -> Architecture {
        let at = self.table.layout.codes_at + 2 * self.index;
        let code = u16::from_le_bytes([self.table.map[at], self.table.map[at + 1]]);
        // The codes were checked; a file that was changed behind our back reads as the first.
        Architecture::from_code(code as usize).unwrap_or(Architecture([0; 6]))
    }

    /// The value in a column, in the column's unit. `column`: below `columns().len()`.
    pub fn value(&self, column: usize) -> f64 {
        // Correctly rounded: the nearest number to the decimal one of the source.
        self.integer(column) as f64 / 10f64.powi(self.table.columns()[column].decimals as i32)
    }

    /// Place among all architectures by that column: 1 for the largest, equals have the same.
    pub fn rank(&self, column: usize) -> usize {
        let own = self.integer(column);
        1 + self.table.rows().filter(|row| row.integer(column) > own).count()
    }

    /// The value with all its decimals.
    pub fn text(&self, column: usize) -> String {
        format!("{:.*}", self.table.columns()[column].decimals as usize, self.value(column))
    }

    /// Test accuracy after 200 epochs, percent, by data set; none where the table has no such column.
    pub fn accuracies(&self) -> [Option<f64>; 3] {
        Dataset::ALL.map(|dataset| self.table.accuracy(dataset).ok().map(|column| self.value(column)))
    }

    fn integer(&self, column: usize) -> u32 {
        self.table.integer(self.index, column)
    }
}

/// The quantile `part` (0..=1) of some values, linear between neighbours as numpy does by default. `values`: not
/// empty, no NaN.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = part * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}
