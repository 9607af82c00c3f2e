//! `nb201 query`, `nb201 top`, `nb201 import`: the NAS-Bench-201 table on the command line, as text or JSON.

use crate::cli::{Nb201Args, Nb201Command};
use crate::error::Result;
use crate::nb201::{self, Column, Row, Table, import};
use crate::process::console;
use crate::process::messages::counted;
use crate::space::nb201::{Architecture, Dataset};
use serde_json::{Value, json};
use std::path::Path;

/// `drnas-dist nb201`.
pub fn run(args: &Nb201Args) -> Result<()> {
    match &args.command {
        Nb201Command::Query { architecture, table, json } => {
            let table = Table::open(table)?;
            let row = find(&table, architecture)?;
            Ok(console::print_result(&render(
                *json,
                || row_json(&row, &table, true),
                || query_text(&row, &table),
            ))?)
        }
        Nb201Command::Top { count, by, table, json } => {
            let table = Table::open(table)?;
            let column = table.column(by)?;
            let rows = table.top(column, *count as usize);
            let as_json = || Value::Array(rows.iter().map(|row| row_json(row, &table, false)).collect());
            Ok(console::print_result(&render(*json, as_json, || top_text(&rows, &table, column)))?)
        }
        Nb201Command::Import { source, out, overwrite, skip } => {
            import(source, out, skip, *overwrite)?;
            let table = Table::open(out)?;
            Ok(console::print_result(&columns_text(&table, out))?)
        }
    }
}

fn render(json: bool, value: impl Fn() -> Value, text: impl Fn() -> String) -> String {
    if json { format!("{:#}\n", value()) } else { text() }
}

/// Lists the columns of an imported table.
fn columns_text(table: &Table, path: &Path) -> String {
    let mut text = format!(
        "{}: {} architectures, {}\n",
        path.display(),
        table.len(),
        counted(table.columns().len() as u64, "column")
    );
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

/// Finds a row by architecture string or index.
fn find<'a>(table: &'a Table, name: &str) -> Result<Row<'a>> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        let row = name.parse().ok().and_then(|index| table.row_at(index));
        return row.ok_or_else(|| nb201::Error::NoIndex(name.to_string()).into());
    }
    Ok(table.row(&name.parse::<Architecture>()?))
}

fn unit(column: &Column) -> &str {
    if column.unit == "percent" { " %" } else { &column.unit }
}

/// Returns "CIFAR-10, test, 200 epochs" for a known column, otherwise its name.
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

/// Aligns columns, numbers to the right; the first line is the heading.
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

/// Returns `{"index", "architecture", "values": {column: number}}`; if `compared`, also `ranks`, `medians` and `optima`
/// by column.
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
