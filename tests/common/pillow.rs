//! A Python with Pillow, for tests that compare with Pillow or run our Python scripts.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the script that runs Python with Pillow; `None`, with the reason printed, if Pillow is not available.
pub fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/pillow.sh");
    let output = Command::new(&python).args(["-c", "import PIL"]).output().unwrap();
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        eprintln!("skipped: Pillow is not available: {}", text.trim().lines().last().unwrap_or_default());
        return None;
    }
    Some(python)
}
