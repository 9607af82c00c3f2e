//! The NAS-Bench-201 table: import and queries, error messages, and known values of the published benchmark.

#[path = "common/shared.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod shared;

use drnas_dist::nb201::{Table, import};
use drnas_dist::space::nb201::{Architecture, DRNAS, Dataset, NUM_ARCHITECTURES};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Rows of a synthetic benchmark: `c10_test_200` is the sum of the operation indices in percent, with four decimals;
/// `params` has no unit. Indices are in the reverse order of the codes.
fn csv_rows() -> Vec<String> {
    let row = |(index, architecture): (usize, Architecture)| {
        let sum: usize = architecture.0.iter().sum();
        format!("{architecture},{index},{}.{:04},{}", sum, architecture.code() % 7, 1000 * architecture.0[0])
    };
    let mut rows: Vec<Architecture> = Architecture::all().collect();
    rows.reverse();
    rows.into_iter().enumerate().map(row).collect()
}

fn csv(rows: &[String]) -> String {
    format!("arch,index,c10_test_200,params\n{}\n", rows.join("\n"))
}

fn imported(folder: &Path, text: &str) -> Result<Table, String> {
    let (source, out) = (folder.join("source"), folder.join("table"));
    fs::write(&source, text).unwrap();
    let error =
        |error: drnas_dist::nb201::Error| error.to_string().replace(source.to_str().unwrap(), "SOURCE");
    import(&source, &out, &[], true).map_err(error)?;
    Table::open(&out).map_err(error)
}

#[test]
fn imported_values_are_returned() {
    let folder = tempfile::tempdir().unwrap();
    let table = imported(folder.path(), &csv(&csv_rows())).unwrap();
    let columns: Vec<_> = table.columns().iter().map(|c| (&c.name[..], &c.unit[..], c.decimals)).collect();
    assert_eq!(columns, [("c10_test_200", "percent", 4), ("params", "", 0)]);
    for (index, architecture) in Architecture::all().enumerate() {
        let row = table.row(&architecture);
        assert_eq!(row.index, NUM_ARCHITECTURES - 1 - index);
        assert_eq!(row.architecture(), architecture);
        let text = format!("{}.{:04}", architecture.0.iter().sum::<usize>(), architecture.code() % 7);
        assert_eq!(row.value(0), text.parse::<f64>().unwrap());
        assert_eq!(row.text(0), text);
        assert_eq!(row.text(1), (1000 * architecture.0[0]).to_string());
    }
    assert_eq!(table.row_at(NUM_ARCHITECTURES).map(|row| row.index), None);
}

#[test]
fn ranks_optimum_and_median_equal_those_of_a_full_sort() {
    let folder = tempfile::tempdir().unwrap();
    let table = imported(folder.path(), &csv(&csv_rows())).unwrap();
    for column in 0..2 {
        let values = table.values(column);
        let mut sorted = values.clone();
        sorted.sort_by(|a, b| b.partial_cmp(a).unwrap());
        assert_eq!(table.median(column), sorted[NUM_ARCHITECTURES / 2]);
        for index in (0..NUM_ARCHITECTURES).step_by(97) {
            let rank = 1 + sorted.iter().position(|value| *value == values[index]).unwrap();
            assert_eq!(table.row_at(index).unwrap().rank(column), rank);
        }
        let best = (0..NUM_ARCHITECTURES).find(|index| values[*index] == sorted[0]).unwrap();
        assert_eq!(table.optimum(column).index, best, "the first of equal values is the optimum");
        let top: Vec<f64> = table.top(column, 50).iter().map(|row| row.value(column)).collect();
        assert_eq!(top, sorted[..50]);
    }
}

#[test]
fn json_and_csv_give_the_same_table() {
    let folder = tempfile::tempdir().unwrap();
    let rows = csv_rows();
    let quoted = rows.iter().map(|row| {
        let cells: Vec<&str> = row.split(',').collect();
        format!("[\"{}\",{}]", cells[0], cells[1..].join(","))
    });
    let json = format!(
        "{{\"note\":\"n\",\"columns\":[\"arch\",\"index\",\"c10_test_200\",\"params\"],\"rows\":[{}]}}",
        quoted.collect::<Vec<_>>().join(",\n")
    );
    imported(folder.path(), &json).unwrap();
    let from_json = fs::read(folder.path().join("table")).unwrap();
    // Rows in a different order: the index determines the result.
    let mut shuffled = rows.clone();
    shuffled.rotate_left(1234);
    imported(folder.path(), &csv(&shuffled)).unwrap();
    assert_eq!(fs::read(folder.path().join("table")).unwrap(), from_json);
    assert!(from_json.len() < 2_000_000);
}

#[test]
fn errors_in_a_source_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let good = csv_rows();
    let with_row = |row: usize, text: &str| {
        let mut rows = good.clone();
        rows[row] = text.replace("ARCH", good[row].split(',').next().unwrap());
        csv(&rows)
    };
    for (text, what) in [
        (csv(&good[1..]), "SOURCE: expected 15625 architectures, found 15624; |avg_pool_3x3~0|+|avg"),
        (String::new(), "expected a column \"arch\", found "),
        ("{\"columns\":[\"arch\"]".into(), "SOURCE line 1: "),
        (
            "{\"columns\":[\"arch\",\"x\"],\"rows\":[[\"|none~0|\",1]]}".into(),
            "SOURCE row 1: architecture \"|none~0|\": expected 3 nodes",
        ),
        (
            csv(&good).replacen("arch,", "architecture,", 1),
            "expected a column \"arch\", found architecture, index, ",
        ),
        (csv(&good).replacen("params", "index", 1), "duplicate column \"index\""),
        (with_row(3, "ARCH,3,1.0"), "SOURCE line 5: expected 4 cells, found 3"),
        (
            with_row(3, "ARCH,3,1.0,"),
            "SOURCE line 5: column \"params\": expected a number from 0 to 4294967294, found ''",
        ),
        (with_row(3, "ARCH,3,-1.0,1"), "found '-1.0'; omit the column with --skip c10_test_200"),
        (with_row(3, "ARCH,3,NaN,1"), "found 'NaN'"),
        (with_row(3, "ARCH,2,1.0,1"), "SOURCE line 5: duplicate index 2"),
        (with_row(3, "ARCH,15625,1.0,1"), "SOURCE line 5: expected an index from 0 to 15624, found '15625'"),
        (with_row(3, &good[2]), "SOURCE line 5: duplicate architecture, first in line 4"),
        (
            csv(&good).replace("\n", "\r\n\n").replacen(",3,", ",x,", 1),
            "SOURCE line 9: expected an index from 0 to 15624",
        ),
        (with_row(3, "\"ARCH,3,1.0,1"), "unterminated quotation mark"),
        (with_row(3, &"1,".repeat(200)), "SOURCE line 5: too many columns"),
        (with_row(3, "|none~0|+,3,1.0,1"), "SOURCE line 5: architecture \"|none~0|+\": expected 3 nodes"),
    ] {
        let error = imported(folder.path(), &text).unwrap_err();
        assert!(error.contains(what), "no {what} in {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!folder.path().join("table").exists(), "a refused import created the table");
    }
}

#[test]
fn values_are_rounded_to_the_resolution_of_a_column() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = csv_rows();
    rows[0] = format!("{},0,94.37333333333,4294967294", rows[0].split(',').next().unwrap());
    let table = imported(folder.path(), &csv(&rows)).unwrap();
    let row = table.row_at(0).unwrap();
    assert_eq!((row.text(0), row.text(1)), ("94.373333".into(), "4294967294".into()));
}

fn drnas(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drnas-dist")).args(arguments).output().expect("the program starts")
}

fn stdout_of(arguments: &[&str]) -> String {
    let output = drnas(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = drnas(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn commands_print_text_and_json() {
    let folder = tempfile::tempdir().unwrap();
    imported(folder.path(), &csv(&csv_rows())).unwrap();
    let table = folder.path().join("table");
    let table = table.to_str().unwrap();
    assert_eq!(
        stdout_of(&["nb201", "query", "15624", "--table", table]),
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|\n\
         index 15624, one of 15625 architectures\n\n\
         \u{20}                              value   rank  better than   median            largest\n\
         CIFAR-10, test, 200 epochs  0.0000 %  15625       0.00 %  12.0003  24.0000 (index 0)\n\
         params                             0  12501       0.00 %     2000     4000 (index 0)\n"
    );
    let text = "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|";
    let answer: serde_json::Value =
        serde_json::from_str(&stdout_of(&["nb201", "query", text, "--table", table, "--json"])).unwrap();
    assert_eq!(answer["index"], 15623);
    assert_eq!(answer["architecture"], text);
    assert_eq!(answer["values"]["c10_test_200"], 1.0001);
    assert_eq!(answer["optima"]["params"]["index"], 0);
    let top = stdout_of(&["nb201", "top", "2", "--by", "c10_test_200", "--table", table]);
    let lines: Vec<&str> = top.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("rank  index  c10_test_200  architecture"), "{top}");
    assert!(lines[1].starts_with("   1      0       24.0000  |avg_pool_3x3~0|+"), "{top}");
    let top: serde_json::Value =
        serde_json::from_str(&stdout_of(&["nb201", "top", "3", "--table", table, "--json"])).unwrap();
    assert_eq!(top.as_array().unwrap().len(), 3);
    assert_eq!(top[0]["values"]["c10_test_200"], 24.0);

    assert!(refused(&["nb201", "query", "15625", "--table", table]).contains("expected 0 to 15624"));
    assert!(
        refused(&["nb201", "query", "none", "--table", table]).contains("expected 3 nodes joined by '+'")
    );
    assert!(
        refused(&["nb201", "top", "1", "--by", "cifar100", "--table", table])
            .contains("available: c10_test_200")
    );
    let source = folder.path().join("source");
    let source = source.to_str().unwrap();
    assert!(refused(&["nb201", "query", "1", "--table", source]).contains("not a drnas-dist table"));
    assert!(
        refused(&["nb201", "import", source, "--out", source]).contains("already exists and is not a table")
    );
    // Importing the same table again is accepted; a different one needs --overwrite.
    let before = fs::read(table).unwrap();
    stdout_of(&["nb201", "import", source, "--out", table]);
    let error = refused(&["nb201", "import", source, "--out", table, "--skip", "params"]);
    assert!(error.contains("already exists with different content"), "{error}");
    assert_eq!(fs::read(table).unwrap(), before);
    let answer = stdout_of(&["nb201", "import", source, "--out", table, "--skip", "params", "--overwrite"]);
    assert!(
        answer.ends_with("15625 architectures, 1 column\n  c10_test_200   largest 24.0000 % (index 0)\n"),
        "{answer}"
    );
}

const ACCURACIES: &str = "data/nasbench201_accuracy.json";

/// The published benchmark, imported once; `None` if `../shared` does not exist.
fn published() -> Option<&'static Table> {
    static TABLE: OnceLock<Option<Table>> = OnceLock::new();
    TABLE
        .get_or_init(|| {
            let source = shared::path(ACCURACIES)?;
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("table");
            import(&source, &out, &[], true).unwrap();
            assert_eq!(fs::metadata(&out).unwrap().len(), 594_390);
            // The map stays valid after the file is removed.
            Some(Table::open(&out).unwrap())
        })
        .as_ref()
}

#[test]
fn published_optima_and_the_architecture_of_drnas() {
    let Some(table) = published() else { return };
    assert_eq!(table.columns().len(), 9);
    let optimum = |dataset| {
        let best = table.optimum(table.accuracy(dataset).unwrap());
        (best.text(table.accuracy(dataset).unwrap()), best.index)
    };
    let optima = Dataset::ALL.map(optimum);
    assert_eq!(optima, [("94.3733".into(), 6111), ("73.5133".into(), 9930), ("47.3111".into(), 857)]);
    let found = table.row(&DRNAS);
    assert_eq!(found.index, 9930);
    assert_eq!(found.accuracies(), [Some(94.3633), Some(73.5133), Some(46.3444)]);
    assert_eq!(found.rank(table.accuracy(Dataset::Cifar100).unwrap()), 1);
}

#[test]
fn every_published_number_is_kept() {
    let Some(table) = published() else { return };
    let text = fs::read_to_string(shared::path(ACCURACIES).unwrap()).unwrap();
    let source: serde_json::Value = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> = source["columns"].as_array().unwrap().iter().filter_map(|c| c.as_str()).collect();
    for row in source["rows"].as_array().unwrap() {
        let ours = table.row(&row[1].as_str().unwrap().parse().unwrap());
        assert_eq!(ours.index as u64, row[0].as_u64().unwrap());
        for at in 2..names.len() {
            assert_eq!(ours.value(table.column(names[at]).unwrap()), row[at].as_f64().unwrap());
        }
    }
}
