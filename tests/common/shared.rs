//! Real data from `../shared` (or `DRNAS_SHARED`), which is not part of the repository and may be missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Returns the path of `name` in the shared folder; `None`, with a message printed, if it does not exist.
pub fn path(name: &str) -> Option<PathBuf> {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let path = std::env::var_os("DRNAS_SHARED").map_or_else(here, PathBuf::from).join(name);
    if !path.exists() {
        eprintln!("skipped: ../shared/{name} does not exist");
        return None;
    }
    Some(path)
}

/// Unpacks the archive `name` into a temporary folder; `None`, with a message printed, if it does not exist.
pub fn unpacked(name: &str) -> Option<TempDir> {
    let dir = tempfile::tempdir().unwrap();
    unpack(&path(name)?, dir.path(), &[]);
    Some(dir)
}

/// Unpacks the members `names` of an archive into `dir`; all members if `names` is empty.
pub fn unpack(archive: &Path, dir: &Path, names: &[String]) {
    let status = Command::new("tar").arg("xf").arg(archive).arg("-C").arg(dir).args(names).status();
    assert!(status.unwrap().success(), "tar xf {}", archive.display());
}
