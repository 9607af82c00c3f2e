//! CUDA: loads libtorch's CUDA library at run time (the same binary serves machines with and without GPUs), and binds
//! the driver, streams and events.

mod driver;
pub(crate) mod error;
pub(crate) mod library;
mod stream;

pub use driver::{DRIVER_FILE, Driver, DriverUnavailable, Gpu, gpu_is_present};
pub use error::{Error, Result};
pub use stream::{Context, Event, Stream};

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Result of loading libtorch_cuda.
#[derive(Debug)]
pub enum LibtorchCuda {
    /// Loaded: CUDA tensors can be created if there is a device.
    Loaded(PathBuf),
    /// This libtorch is a CPU build.
    Absent,
    /// The file exists but cannot be loaded, for example because its CUDA libraries are missing.
    Unusable(String),
}

/// Loads libtorch_cuda from the folder of the libtorch_cpu in use, so that the two match. Called before the first
/// tensor; has no effect if there is no such file. Local.
pub fn load() -> LibtorchCuda {
    let Some(cpu) = mapped_library("libtorch_cpu.so") else {
        return LibtorchCuda::Absent;
    };
    let path = cpu.with_file_name("libtorch_cuda.so");
    if !path.exists() {
        return LibtorchCuda::Absent;
    }
    match open_global(&path) {
        Ok(()) => LibtorchCuda::Loaded(path),
        Err(why) => LibtorchCuda::Unusable(why),
    }
}

/// Returns the path of the loaded library whose file name starts with `name`.
pub fn mapped_library(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])))
        .find(|path| {
            let file = path.file_name().and_then(|file| file.to_str());
            file.is_some_and(|file| file.starts_with(name))
        })
        .map(Path::to_path_buf)
}

/// Lists candidate paths of a CUDA library, best first: the loaded file (its name starts with `stem`), any of `names`
/// beside libtorch or in the wheels beside it, any of `names` on the system's search path.
pub fn library_candidates(stem: &str, names: &[&str]) -> Vec<PathBuf> {
    let folders = wheel_folders(mapped_library("libtorch_cpu.so").as_deref());
    let nearby = (folders.iter())
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .filter(|path| path.exists());
    mapped_library(stem).into_iter().chain(nearby).chain(names.iter().map(PathBuf::from)).collect()
}

/// Lists the folders of CUDA libraries in wheels: that of libtorch, and ../nvidia/*/lib relative to the torch package.
fn wheel_folders(torch: Option<&Path>) -> Vec<PathBuf> {
    let Some(lib) = torch.and_then(Path::parent) else {
        return Vec::new();
    };
    let mut folders = vec![lib.to_path_buf()];
    if let Some(packages) = lib.parent().and_then(Path::parent)
        && let Ok(entries) = std::fs::read_dir(packages.join("nvidia"))
    {
        folders.extend(entries.flatten().map(|entry| entry.path().join("lib")));
    }
    folders
}

/// Loads `path` permanently and makes its symbols visible to libraries loaded later, as libtorch's backend requires.
fn open_global(path: &Path) -> Result<(), String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: runs the constructors of a library that belongs to the libtorch in use; it is never unloaded.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: returns the message of the failed dlopen, or null.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return Err("unknown error".into());
    }
    // SAFETY: not null, so a C string that lives until the next dl call of this thread.
    let text = unsafe { std::ffi::CStr::from_ptr(text) };
    Err(text.to_string_lossy().into_owned())
}
