//! The PyTorch of native/ as a command, for tests that compare with PyTorch or run our Python scripts.

use std::path::Path;
use std::process::{Command, Output};

/// Runs tests/python/torch.sh with `arguments`; `None`, with the reason printed, if PyTorch does not start.
pub fn torch(arguments: &[&Path]) -> Option<Output> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let output = Command::new(here.join("torch.sh")).args(arguments).output().expect("bash is installed");
    if output.status.code() == Some(77) {
        println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(output)
}
