//! `nb201 query`, `nb201 top`, `nb201 import`: the table on the command line, for people, and as JSON for programs.

use super::{Column, Row, Table, import};
use crate::console;
use crate::error::{Error, Result};
use crate::space::nb201::{Architecture, Dataset};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Arguments of `nb201`.
#[derive(Args, Debug)]
pub struct Nb201Args {
    /// What to do with the table.
    #[command(subcommand)]
    pub command: Nb201Command,
}

/// One variant per subcommand of `nb201`.
#[derive(Debug, Subcommand)]
pub enum Nb201Command {
    /// Show what one architecture reaches, and its rank among all.
    #[command(after_help = QUERY_EXAMPLES)]
    Query {
        /// The architecture's text, in quotes (it is full of '|'), or its index in the benchmark.
        #[arg(value_name = "ARCH")]
        architecture: String,
        /// The table, as `nb201 import` wrote it.
        #[arg(long, value_name = "FILE")]
        table: PathBuf,
        /// One JSON object instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// List the best architectures.
    Top {
        /// How many.
        #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        count: u16,
        /// The column that counts, or a data set for its test accuracy after 200 epochs.
        #[arg(long, value_name = "COLUMN", default_value = "cifar10")]
        by: String,
        /// The table, as `nb201 import` wrote it.
        #[arg(long, value_name = "FILE")]
        table: PathBuf,
        /// A JSON array instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// Make a table from a published file: JSON ("columns", "rows") or CSV with named columns.
    Import {
        /// The JSON or CSV; a column "arch" is needed, "index" is the benchmark's index.
        #[arg(value_name = "FILE")]
        source: PathBuf,
        /// The table to write. The same table again changes nothing.
        #[arg(long, value_name = "TABLE")]
        out: PathBuf,
        /// Replace another table.
        #[arg(long)]
        overwrite: bool,
        /// A column to leave out; may be repeated.
        #[arg(long, value_name = "COLUMN")]
        skip: Vec<String>,
    },
}

const QUERY_EXAMPLES: &str = "\
Examples:
  drnas-dist nb201 query 9930 --table nb201.table
  drnas-dist nb201 query --table nb201.table \\
      '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|'";

/// Does `drnas-dist nb201`.
pub fn run(args: &Nb201Args) -> Result<()> {
    match &args.command {
        Nb201Command::Query { architecture, table, json } => {
            let table = Table::open(table)?;
            let row = find(&table, architecture)?;
            console::answer(&answer(*json, || row_json(&row, &table, true), || query_text(&row, &table)))
        }
        Nb201Command::Top { count, by, table, json } => {
            let table = Table::open(table)?;
            let column = table.column(by)?;
            let rows = table.top(column, *count as usize);
            let as_json = || Value::Array(rows.iter().map(|row| row_json(row, &table, false)).collect());
            console::answer(&answer(*json, as_json, || top_text(&rows, &table, column)))
        }
        Nb201Command::Import { source, out, overwrite, skip } => {
            import(source, out, skip, *overwrite)?;
            let table = Table::open(out)?;
            console::answer(&columns_text(&table, out))
        }
    }
}

fn answer(json: bool, value: impl Fn() -> Value, text: impl Fn() -> String) -> String {
    if json { format!("{:#}\n", value()) } else { text() }
}

/// What a new table at `path` holds.
fn columns_text(table: &Table, path: &Path) -> String {
    let mut text =
        format!("{}: {} architectures, {} columns\n", path.display(), table.len(), table.columns().len());
    for (number, column) in table.columns().iter().enumerate() {
        let best = table.optimum(number);
        text += &format!(
            "  {:<14} largest {}{} (index {})\n",
            column.name,
            best.text(number),
            unit(column),
            best.index
        );
    }
    text
}

/// The line that a user named by text or by index.
fn find<'a>(table: &'a Table, name: &str) -> Result<Row<'a>> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        let row = name.parse().ok().and_then(|index| table.row_at(index));
        return row.ok_or_else(|| Error::Nb201NoIndex(name.to_string()));
    }
    Ok(table.row(&name.parse::<Architecture>()?))
}

fn unit(column: &Column) -> &str {
    if column.unit == "percent" { " %" } else { &column.unit }
}

/// "CIFAR-10, test, 200 epochs" for a column that is known, else its name.
fn title(column: &Column) -> String {
    let known = |dataset: &Dataset| {
        let (_, rest) = column.name.split_once('_')?;
        let (split, epochs) = rest.split_once('_')?;
        dataset.owns(&column.name).then(|| format!("{}, {split}, {epochs} epochs", dataset.title()))
    };
    Dataset::ALL.iter().find_map(known).unwrap_or_else(|| column.name.clone())
}

fn query_text(row: &Row, table: &Table) -> String {
    let heading = ["", "value", "rank", "better than", "median", "largest"].map(String::from);
    let lines = table.columns().iter().enumerate().map(|(number, column)| {
        let (rank, best) = (row.rank(number), table.optimum(number));
        let below = table.values(number).iter().filter(|value| **value < row.value(number)).count();
        [
            title(column),
            format!("{}{}", row.text(number), unit(column)),
            rank.to_string(),
            format!("{:.2} %", 100.0 * below as f64 / table.len() as f64),
            format!("{:.*}", column.decimals as usize, table.median(number)),
            format!("{} (index {})", best.text(number), best.index),
        ]
    });
    let lines: Vec<[String; 6]> = std::iter::once(heading).chain(lines).collect();
    let head =
        format!("{}\nindex {}, one of {} architectures\n\n", row.architecture(), row.index, table.len());
    head + &aligned(&lines)
}

fn top_text(rows: &[Row], table: &Table, column: usize) -> String {
    let mut shown: Vec<usize> =
        Dataset::ALL.iter().filter_map(|dataset| table.accuracy(*dataset).ok()).collect();
    if !shown.contains(&column) {
        shown.insert(0, column);
    }
    let names = shown.iter().map(|number| table.columns()[*number].name.clone());
    let heading = ["rank", "index"].map(String::from).into_iter().chain(names).chain(["architecture".into()]);
    let line = |row: &Row| -> Vec<String> {
        let values = shown.iter().map(|number| row.text(*number));
        let place = [row.rank(column).to_string(), row.index.to_string()];
        place.into_iter().chain(values).chain([row.architecture().to_string()]).collect()
    };
    let lines: Vec<Vec<String>> = std::iter::once(heading.collect()).chain(rows.iter().map(line)).collect();
    aligned(&lines)
}

/// Columns side by side, numbers to the right; the first line is the heading.
fn aligned<L: AsRef<[String]>>(lines: &[L]) -> String {
    let lines: Vec<&[String]> = lines.iter().map(AsRef::as_ref).collect();
    let num_cells = lines[0].len();
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let left =
        |at: usize| lines.iter().skip(1).any(|line| !line[at].starts_with(|c: char| c.is_ascii_digit()));
    let layout: Vec<(usize, bool)> = (0..num_cells).map(|at| (width(at), left(at))).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&layout).map(|(cell, (width, left))| match left {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// `{"index", "architecture", "values": {column: number}}`, with `ranks`, `medians` and `optima` of each column too.
fn row_json(row: &Row, table: &Table, compared: bool) -> Value {
    let by_column = |value: &dyn Fn(usize) -> Value| -> Value {
        table
            .columns()
            .iter()
            .enumerate()
            .map(|(number, column)| (column.name.clone(), value(number)))
            .collect()
    };
    let mut object = json!({
        "index": row.index,
        "architecture": row.architecture().to_string(),
        "values": by_column(&|number| json!(row.value(number))),
    });
    if compared {
        object["architectures"] = json!(table.len());
        object["ranks"] = by_column(&|number| json!(row.rank(number)));
        object["medians"] = by_column(&|number| json!(table.median(number)));
        object["optima"] = by_column(&|number| {
            let best = table.optimum(number);
            json!({"index": best.index, "value": best.value(number)})
        });
    }
    object
}
