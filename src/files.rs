//! Atomic file writes, and the error that names the path.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file or folder could not be read, written, renamed or removed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub struct IoError {
    /// The attempted action: "read", "write", "create folder" ...
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The error of the operating system.
    pub source: std::io::Error,
}

/// A file that must not be replaced or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum NewFileError {
    /// The file already exists with different content.
    #[error("{} already exists with different content; use --overwrite or another path", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Returns a closure for `map_err` that wraps an I/O error about `path` in an [`IoError`].
pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> IoError {
    let path = path.into();
    move |source| IoError { action, path, source }
}

/// Atomically replaces `path` by `bytes`: writes a temporary file beside it, fsyncs, renames, fsyncs the folder. Local.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), IoError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let attempt = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    };
    attempt().map_err(|error| {
        // Free the space: the disk may be full.
        let _ = fs::remove_file(&temporary);
        io("write", path)(error)
    })
}

/// Like [`write()`], for a path given by the user: identical content leaves the file unchanged, different content is
/// replaced only if `overwrite` is set. Local.
pub fn write_new(path: &Path, bytes: &[u8], overwrite: bool) -> Result<(), NewFileError> {
    match check_new(path, bytes, overwrite)? {
        true => Ok(()),
        false => Ok(write(path, bytes)?),
    }
}

/// Returns whether `path` already holds `bytes`. Errors: it holds different content and `overwrite` is not set.
pub fn check_new(path: &Path, bytes: &[u8], overwrite: bool) -> Result<bool, NewFileError> {
    match fs::read(path) {
        Ok(old) if old == bytes => Ok(true),
        Ok(_) if !overwrite => Err(NewFileError::Exists { path: path.into() }),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_atomically() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v1.txt");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        // A folder cannot be replaced by a file.
        let taken = folder.path().join("taken");
        fs::create_dir_all(taken.join("below")).unwrap();
        let error = write(&taken, b"new").unwrap_err().to_string();
        assert!(error.starts_with(&format!("write {}: ", taken.display())), "{error}");
        let mut left: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["taken", "v1.txt"], "no temporary file is left");
    }
}
