//! Files: one that is written whole or not at all, whoever is killed meanwhile, and the error that names its path.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file or folder could not be read, written, renamed or removed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub struct IoError {
    /// What was tried: "read", "write", "create folder" ...
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: std::io::Error,
}

/// A file that may not be replaced, or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum NewFileError {
    /// It holds something else.
    #[error("{} is there already with another content; give --overwrite or another place", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// An [`IoError`] about `path`, for `map_err`.
pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> IoError {
    let path = path.into();
    move |source| IoError { action, path, source }
}

/// Writes `bytes` to `path`, replacing what is there: a temporary file beside it, fsync, rename, fsync of the folder. Local.
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
        // Of a full disk it would keep some more.
        let _ = fs::remove_file(&temporary);
        io("write", path)(error)
    })
}

/// [`write()`] for what a user has named: the same content again changes nothing, another one is replaced only if `overwrite`
/// says so. Local.
pub fn write_new(path: &Path, bytes: &[u8], overwrite: bool) -> Result<(), NewFileError> {
    match check_new(path, bytes, overwrite)? {
        true => Ok(()),
        false => Ok(write(path, bytes)?),
    }
}

/// Whether `path` holds `bytes` already. Errors: it holds others, and may not be replaced.
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
    fn a_file_is_replaced_whole_or_not_at_all() {
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
        assert_eq!(left, ["taken", "v1.txt"], "no temporary file stays");
    }
}
