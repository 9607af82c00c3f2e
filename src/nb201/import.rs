//! Imports a table from a published file: JSON with `columns` and `rows`, or CSV with named columns.
//!
//! Both must have a column `arch`. The column `index` is the index in the benchmark; without it, the order of the file
//! is used. Every other column contains one number per architecture.

use super::format::{self, MAX_COLUMNS, MAX_DECIMALS, MAX_NAME_BYTES};
use super::{Column, Table};
use crate::files;
use crate::nb201::error::{Error, Result};
use crate::space;
use crate::space::nb201::{Architecture, Dataset, NUM_ARCHITECTURES};
use csv_core::ReadRecordResult;
use serde::Deserialize;
use std::fs;
use std::path::Path;

const ARCHITECTURE: &str = "arch";
const INDEX: &str = "index";

/// A parsed source: cells as text, independent of the format.
struct TableSource<'a> {
    path: &'a Path,
    /// "row" or "line".
    rows_are: &'static str,
    /// Number of each row as shown in errors: row or line.
    numbers: Vec<usize>,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// Reads `source` and writes the table `out`; a different table is replaced only if `overwrite` is set. Columns in
/// `skip` are omitted. Local. Errors: the row and what is wrong in it; missing or duplicate columns and architectures.
pub fn import(source: &Path, out: &Path, skip: &[String], overwrite: bool) -> Result<()> {
    let text = fs::read_to_string(source).map_err(files::io("read", source))?;
    let text = text.trim_start_matches('\u{feff}').trim_start(); // skips a byte order mark
    let source = if text.starts_with('{') { json(source, text)? } else { csv(source, text)? };
    if matches!(Table::open(out), Err(Error::Magic { .. })) {
        let what = "already exists and is not a table; choose another --out".to_string();
        return Err(Error::Source { path: out.to_owned(), place: String::new(), what });
    }
    source.write(out, skip, overwrite)
}

fn json<'a>(path: &'a Path, text: &str) -> Result<TableSource<'a>> {
    #[derive(Deserialize)]
    struct File {
        columns: Vec<String>,
        rows: Vec<Vec<serde_json::Value>>,
    }
    let file: File = serde_json::from_str(text).map_err(|error| Error::Source {
        path: path.to_owned(),
        place: format!(" line {}", error.line()),
        what: error.to_string(),
    })?;
    let cell = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    let rows: Vec<Vec<String>> =
        file.rows.into_iter().map(|row| row.into_iter().map(cell).collect()).collect();
    Ok(TableSource {
        path,
        rows_are: "row",
        numbers: (1..=rows.len()).collect(),
        columns: file.columns,
        rows,
    })
}

fn csv<'a>(path: &'a Path, text: &str) -> Result<TableSource<'a>> {
    let failed = |line: usize, what: &str| Error::Source {
        path: path.to_owned(),
        place: format!(" line {line}"),
        what: what.to_string(),
    };
    let ended = format!("{text}\n"); // the last line may lack its line ending
    let mut input = ended.as_bytes();
    let (mut bytes, mut ends) = (vec![0; ended.len()], [0; 4 * MAX_COLUMNS]);
    let mut reader = csv_core::Reader::new();
    let (mut lines, mut records, mut lines_before) = (Vec::new(), Vec::new(), 0);
    loop {
        let (result, num_read, num_written, num_cells) = reader.read_record(input, &mut bytes, &mut ends);
        let taken = &input[..num_read];
        let line_ends = taken.iter().filter(|byte| **byte == b'\n').count();
        let line = lines_before + line_ends + usize::from(!taken.ends_with(b"\n"));
        (input, lines_before) = (&input[num_read..], lines_before + line_ends);
        match result {
            ReadRecordResult::Record => {
                let starts = std::iter::once(0).chain(ends[..num_cells].iter().copied());
                let cells = starts.zip(&ends[..num_cells]).map(|(start, end)| {
                    // Split at ASCII characters, so valid UTF-8 stays valid.
                    String::from_utf8_lossy(&bytes[start..*end]).trim().to_string()
                });
                lines.push(line);
                records.push(cells.collect());
            }
            ReadRecordResult::End => break,
            ReadRecordResult::OutputEndsFull => return Err(failed(line, "too many columns")),
            ReadRecordResult::InputEmpty if num_written == 0 => {} // blank lines before the end
            ReadRecordResult::InputEmpty | ReadRecordResult::OutputFull => {
                return Err(failed(line, "unterminated quotation mark"));
            }
        }
    }
    let columns = if records.is_empty() { Vec::new() } else { records.remove(0) };
    Ok(TableSource {
        path,
        rows_are: "line",
        numbers: lines.split_off(lines.len().min(1)),
        columns,
        rows: records,
    })
}

impl TableSource<'_> {
    fn error(&self, what: String) -> Error {
        Error::Source { path: self.path.to_owned(), place: String::new(), what }
    }

    fn row_error(&self, row: usize, what: String) -> Error {
        let place = format!(" {} {}", self.rows_are, self.numbers[row]);
        Error::Source { path: self.path.to_owned(), place, what }
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// Validates everything, then writes the table: architectures in the order of the benchmark, all columns except
    /// `skip`.
    fn write(&self, out: &Path, skip: &[String], overwrite: bool) -> Result<()> {
        let order = self.order()?;
        let architectures: Vec<Architecture> = order.iter().map(|(_, architecture)| *architecture).collect();
        if let Some(unknown) = skip.iter().find(|name| self.position(name).is_none()) {
            return Err(self
                .error(format!("no column \"{unknown}\" to skip; available: {}", self.columns.join(", "))));
        }
        let kept =
            |name: &str| name != ARCHITECTURE && name != INDEX && !skip.iter().any(|other| other == name);
        let places: Vec<usize> = (0..self.columns.len()).filter(|&at| kept(&self.columns[at])).collect();
        if !(1..=MAX_COLUMNS).contains(&places.len()) {
            return Err(self.error(format!(
                "expected 1 to {MAX_COLUMNS} columns of numbers, found {}; omit some with --skip",
                places.len()
            )));
        }
        let (mut columns, mut values) = (Vec::new(), Vec::new());
        for at in places {
            let (column, integers) = self.column(at, &order)?;
            columns.push(column);
            values.push(integers);
        }
        format::write(out, &columns, &architectures, &values, overwrite)
    }

    /// Returns the row and the architecture of each index in the benchmark.
    fn order(&self) -> Result<Vec<(usize, Architecture)>> {
        let at = self.position(ARCHITECTURE).ok_or_else(|| {
            self.error(format!("expected a column \"{ARCHITECTURE}\", found {}", self.columns.join(", ")))
        })?;
        if let Some(name) = self.columns.iter().enumerate().find(|(i, name)| self.position(name) != Some(*i))
        {
            return Err(self.error(format!("duplicate column \"{}\"", name.1)));
        }
        let index_at = self.position(INDEX);
        let mut order: Vec<Option<(usize, Architecture)>> = vec![None; NUM_ARCHITECTURES];
        let mut row_of = vec![None; NUM_ARCHITECTURES];
        for (row, cells) in self.rows.iter().enumerate() {
            if cells.len() != self.columns.len() {
                let what = format!("expected {} cells, found {}", self.columns.len(), cells.len());
                return Err(self.row_error(row, what));
            }
            let architecture: Architecture =
                cells[at].parse().map_err(|error: space::Error| self.row_error(row, error.to_string()))?;
            if let Some(other) = row_of[architecture.code()].replace(row) {
                let first = format!("{} {}", self.rows_are, self.numbers[other]);
                return Err(self.row_error(row, format!("duplicate architecture, first in {first}")));
            }
            let index = match index_at {
                None => row,
                Some(at) => {
                    cells[at].parse().ok().filter(|index| *index < NUM_ARCHITECTURES).ok_or_else(|| {
                        let last = NUM_ARCHITECTURES - 1;
                        self.row_error(
                            row,
                            format!("expected an index from 0 to {last}, found '{}'", cells[at]),
                        )
                    })?
                }
            };
            // All architectures differ, so there are at most as many rows as places.
            if order[index].replace((row, architecture)).is_some() {
                return Err(self.row_error(row, format!("duplicate index {index}")));
            }
        }
        if let Some(missing) = Architecture::all().find(|architecture| row_of[architecture.code()].is_none())
        {
            return Err(self.error(format!(
                "expected {NUM_ARCHITECTURES} architectures, found {}; {missing} is missing",
                self.rows.len()
            )));
        }
        Ok(order
            .into_iter()
            .map(|place| place.expect("as many different indices as architectures"))
            .collect())
    }

    /// Converts a column with the fewest decimals that represent all values exactly, at most 6; further decimals are
    /// rounded.
    fn column(&self, at: usize, order: &[(usize, Architecture)]) -> Result<(Column, Vec<u32>)> {
        let name = &self.columns[at];
        if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
            return Err(
                self.error(format!("column \"{name}\": expected a name of 1 to {MAX_NAME_BYTES} bytes"))
            );
        }
        let mut values = Vec::with_capacity(order.len());
        for &(row, _) in order {
            let cell = &self.rows[row][at];
            let value = cell.parse().ok().filter(|value: &f64| *value >= 0.0 && *value < u32::MAX as f64);
            values.push(value.ok_or_else(|| {
                let what = format!(
                    "column \"{name}\": expected a number from 0 to {}, found '{cell}'",
                    u32::MAX - 1
                );
                self.row_error(row, format!("{what}; omit the column with --skip {name}"))
            })?);
        }
        let integer = |value: f64, decimals: u32| (value * 10f64.powi(decimals as i32)).round();
        let fits = |decimals: &u32| values.iter().all(|&value| integer(value, *decimals) <= u32::MAX as f64);
        let exact = |decimals: &u32| {
            values.iter().all(|&value| integer(value, *decimals) / 10f64.powi(*decimals as i32) == value)
        };
        let possible: Vec<u32> = (0..=MAX_DECIMALS).take_while(fits).collect();
        let decimals = possible.iter().find(|decimals| exact(decimals)).or(possible.last());
        let decimals = *decimals.expect("values fit without decimals");
        let percent = Dataset::ALL.iter().any(|dataset| dataset.owns(name));
        let unit = if percent { "percent" } else { "" }.to_string();
        let integers = values.iter().map(|&value| integer(value, decimals) as u32).collect();
        Ok((Column { name: name.clone(), unit, decimals }, integers))
    }
}
