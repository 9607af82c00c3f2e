//! GPUs: the CUDA half of libtorch, which the binary is not linked with (one binary serves machines with and without
//! GPUs), the driver, and the order of work on a GPU.

mod driver;
pub(crate) mod error;
pub(crate) mod library;
mod stream;

pub use driver::{Gpu, DRIVER_FILE, Driver, DriverUnavailable, gpu_is_present};
pub use error::{Error, Result};
pub use stream::{Context, Event, Stream};

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What came of opening libtorch_cuda.
#[derive(Debug)]
pub enum LibtorchCuda {
    /// CUDA tensors can be made, if there is a device.
    Loaded(PathBuf),
    /// This libtorch has no CUDA half (a CPU build).
    Absent,
    /// The file is there but cannot be opened: its CUDA libraries are not.
    Unusable(String),
}

/// Opens libtorch_cuda from the folder of the libtorch_cpu in use, so that the two fit. To be called before the first
/// tensor is made; says nothing and changes nothing where there is no such file. Ranks: local.
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

/// The path from which this process has mapped the library whose file name begins with `name`.
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

/// Where a library of CUDA may be, best first: the file in use (its name begins with `stem`), one of `names` beside libtorch or
/// in the wheels beside it, one of `names` where the system looks.
pub fn library_candidates(stem: &str, names: &[&str]) -> Vec<PathBuf> {
    let folders = wheel_folders(mapped_library("libtorch_cpu.so").as_deref());
    let nearby = (folders.iter())
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .filter(|path| path.exists());
    mapped_library(stem).into_iter().chain(nearby).chain(names.iter().map(PathBuf::from)).collect()
}

/// Where wheels put the CUDA libraries: beside libtorch, and in ../nvidia/*/lib of the folder torch.
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

/// Opens `path` for good and makes its symbols visible to libraries opened later: libtorch registers its backend so.
fn open_global(path: &Path) -> Result<(), String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: runs the constructors of a library that came with the libtorch in use; nothing of it is ever unloaded.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: the text of the failure just made, or null.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return Err("unknown reason".into());
    }
    // SAFETY: not null, so a C string that lives until the next dl call of this thread.
    let text = unsafe { std::ffi::CStr::from_ptr(text) };
    Err(text.to_string_lossy().into_owned())
}
