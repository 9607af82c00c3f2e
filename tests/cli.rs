//! The command line of the real program: help, errors and exit codes.

use clap::CommandFactory;
use drnas_dist::cli::Cli;
use std::process::{Command, Output};

fn drnas(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drnas-dist")).args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_names_every_command_and_exit_code() {
    let output = drnas(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for word in ["Examples:", "Exit codes:", "75   stopped", "130  interrupted"] {
        assert!(help.contains(word), "no {word} in\n{help}");
    }
    for command in Cli::command().get_subcommands() {
        let start = format!("  {} ", command.get_name());
        assert!(help.lines().any(|line| line.starts_with(&start)), "no line starts with {start} in\n{help}");
    }
}

#[test]
fn help_fits_into_100_columns() {
    let names = Cli::command();
    let names = names.get_subcommands().map(|command| vec![command.get_name(), "--help"]);
    for arguments in std::iter::once(vec!["--help"]).chain(names) {
        let output = drnas(&arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let help = text(&output.stdout);
        assert!(help.contains("Usage: drnas-dist"), "{help}");
        // clap does not wrap the usage line.
        for line in help.lines().filter(|line| !line.starts_with("Usage: ")) {
            assert!(line.chars().count() <= 100, "{arguments:?}: {line}");
        }
    }
}

#[test]
fn help_of_a_search_lists_its_options() {
    let help = text(&drnas(&["search-imagenet", "--help"]).stdout);
    for word in ["--config", "--train", "--valid", "--out", "--set", "--resume", "mpirun --bind-to"] {
        assert!(help.contains(word), "no {word} in\n{help}");
    }
}

#[test]
fn version_is_the_package_version() {
    let output = drnas(&["--version"]);
    let expected = concat!("drnas-dist ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn a_usage_error_exits_with_2() {
    for arguments in [
        &[] as &[&str],
        &["search"],
        &["verify"],
        &["search-imagenet", "--config", "a.toml"],
        &["doctor", "--loud"],
    ] {
        let output = drnas(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("Usage: "), "{arguments:?}");
    }
}

/// Runs `search-imagenet` with a configuration that is refused before shards are opened; returns the single line on
/// stderr.
fn refusal(config: &str, sets: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, config).unwrap();
    let out = folder.path().join("run");
    let mut arguments = vec!["search-imagenet", "--config", path.to_str().unwrap()];
    arguments.extend(["--train", "no-shards", "--valid", "no-shards"]);
    arguments.extend(["--out", out.to_str().unwrap()]);
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    let output = drnas(&arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(!out.exists(), "a refused run creates no folder");
    let error = text(&output.stderr);
    assert_eq!(error.lines().count(), 1, "{error}");
    error.trim_end().replace(path.to_str().unwrap(), "run.toml")
}

#[test]
fn errors_are_one_line_and_exit_with_1() {
    assert_eq!(
        refusal("[search]\nglobal_bach = 64\n", &[]),
        "error: unknown key \"search.global_bach\" in run.toml line 2; did you mean \"search.global_batch\"?"
    );
    assert_eq!(
        refusal("", &["search.replicas=7"]),
        "error: configuration: search.replicas = 7 does not divide search.global_batch = 512; \
         the next multiple is 518"
    );
}

#[test]
fn missing_file_is_reported() {
    let output =
        drnas(&["search-imagenet", "--config", "no/such.toml", "--train", "t", "--valid", "v", "--out", "o"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.starts_with("error: read no/such.toml: "), "{error}");
}

/// Sizes that do not match the tensors, networks that exceed the memory, and an out-of-range label, on which libtorch
/// panics.
#[test]
fn inconsistent_golden_files_are_reported_in_one_line() {
    let golden =
        |name: &str| std::fs::read(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let supernet = golden("nb201_stage1.safetensors");
    let header = 8 + u64::from_le_bytes(supernet[..8].try_into().unwrap()) as usize;
    let fields: serde_json::Value = serde_json::from_slice(&supernet[8..header]).unwrap();
    let mut label = supernet.clone();
    label[header + fields["target"]["data_offsets"][0].as_u64().unwrap() as usize] = 99;
    let replaced = |file: &[u8], old: &str, new: &str| {
        let at = file.windows(old.len()).position(|bytes| bytes == old.as_bytes()).unwrap();
        [&file[..at], new.as_bytes(), &file[at + old.len()..]].concat()
    };
    let huge = "cifar-129-20-PC_DARTS_cifar";
    let cases = [
        ("label.safetensors", label, "its tensors do not match: Target 99 is out of bounds.".to_owned()),
        (
            "k.safetensors",
            replaced(&supernet, r#""k":"4""#, r#""k":"0""#),
            "setting 'k': expected 1 to 290 (from its tensors), found 0".into(),
        ),
        // Keeps the length by shortening the name of an unused setting.
        (
            "cells.safetensors",
            replaced(
                &supernet,
                r#""cells_per_stage":"1","max_nodes""#,
                r#""cells_per_stage":"4444","max_ns""#,
            ),
            "setting 'cells_per_stage': expected 1 to 290 (from its tensors), found 4444".into(),
        ),
        (
            "eval_counts.json",
            replaced(&golden("eval_counts.json"), "cifar-36-20-PC_DARTS_cifar", huge),
            format!("'{huge}' is not SPACE-CHANNELS-CELLS-GENOTYPE"),
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, what) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let output = drnas(&["verify", path.to_str().unwrap()]);
        assert_eq!(text(&output.stderr), format!("error: golden file {}: {what}\n", path.display()));
        assert_eq!(output.status.code(), Some(1));
    }
}
