//! Real data of `../shared` (or `DRNAS_SHARED`), where that folder is there: it is not ours to ship.

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What is called `name` there; `None`, with a line, when it is not.
pub fn path(name: &str) -> Option<PathBuf> {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let path = std::env::var_os("DRNAS_SHARED").map_or_else(here, PathBuf::from).join(name);
    if !path.exists() {
        eprintln!("skipped: ../shared/{name} is not there");
        return None;
    }
    Some(path)
}

/// A folder with what is in the archive `name`; `None`, with a line, when it is not there.
pub fn unpacked(name: &str) -> Option<TempDir> {
    let dir = tempfile::tempdir().unwrap();
    unpack(&path(name)?, dir.path(), &[]);
    Some(dir)
}

/// Unpacks an archive into `dir`, or the members `names` of it alone.
pub fn unpack(archive: &Path, dir: &Path, names: &[String]) {
    let status = Command::new("tar").arg("xf").arg(archive).arg("-C").arg(dir).args(names).status();
    assert!(status.unwrap().success(), "tar xf {}", archive.display());
}
