//! `doctor`: reports libraries and their paths, ranks, threads and devices, and what is missing.

use crate::comm::all_gather_values;
use crate::console;
use crate::cuda::{self, Driver, LibtorchCuda};
use crate::error::Result;
use crate::process::messages::counted;
use crate::world::World;
use libloading::Library;
use nix::unistd::{SysconfVar, sysconf};
use std::ffi::c_int;
use std::fs;
use std::path::Path;
use std::time::Duration;

const FOR_GPU: &str = "required for GPU ranks only";
const SETUP: &str = "run launch/setup.sh again on a machine with an NVIDIA driver";

/// Prints the report. Under mpirun, every rank contributes a line and rank 0 prints; otherwise the world has one rank.
/// Called before the first tensor. Errors: MPI does not start; the libraries have been printed by then.
pub fn run(limit: Duration, threads: Option<usize>) -> Result<()> {
    let libtorch_cuda = cuda::load();
    let started = World::start(limit, threads);
    // A printing error is returned at the end, because the other ranks are waiting.
    let mut printed = Ok(());
    if started.as_ref().map_or(0, World::rank) == 0 {
        let lines =
            libraries(&libtorch_cuda).into_iter().map(|(name, found)| format!("{name:<14} {found}\n"));
        printed = console::print_result(&lines.collect::<String>());
    }
    let world = started?;
    let lines = all_gather_values(world.communicator(), &own_line(&world));
    let rank = world.rank();
    let level = world.threading();
    let hosts = world.num_hosts();
    let advice = advice(&world);
    let lines = world.end(lines)?;
    printed?;
    if rank != 0 {
        return Ok(());
    }
    let level = match level {
        Some(level) => format!("{level:?}"),
        None => "not started: a single process (mpirun starts more)".into(),
    };
    let mut text = format!("{:<14} {level}\n", "MPI threads");
    text += &format!("{:<14} {} on {}\n", "ranks", lines.len(), counted(hosts as u64, "host"));
    for line in &lines {
        text += &format!("  {line}\n");
    }
    advice.iter().for_each(|line| text += &format!("note: {line}\n"));
    Ok(console::print_result(&text)?)
}

/// Returns name and version with path, or advice, of every library that is loaded or could be.
fn libraries(libtorch_cuda: &LibtorchCuda) -> Vec<(&'static str, String)> {
    let torch = cuda::mapped_library("libtorch_cpu.so");
    vec![
        ("drnas-dist", env!("CARGO_PKG_VERSION").to_string()),
        ("libtorch", found(torch.as_deref().and_then(torch_version), torch.as_deref())),
        (
            "MPI",
            found(
                mpi::environment::library_version().ok().map(|text| first_words(&text)),
                cuda::mapped_library("libmpi.so").as_deref(),
            ),
        ),
        (
            "libtorch_cuda",
            match libtorch_cuda {
                LibtorchCuda::Loaded(path) => path.display().to_string(),
                LibtorchCuda::Absent => {
                    format!("not found ({FOR_GPU}): this libtorch is a CPU build")
                }
                LibtorchCuda::Unusable(why) => {
                    format!("cannot be opened ({FOR_GPU}): {why}; {SETUP}")
                }
            },
        ),
        ("CUDA driver", driver_text()),
        ("CUDA runtime", version_in("libcudart.so", &["libcudart.so.13", "libcudart.so.12"], cuda_runtime)),
        ("cuDNN", version_in("libcudnn.so", &["libcudnn.so.9"], cudnn)),
        ("NCCL", nccl()),
    ]
}

/// Returns the version and path of the CUDA driver.
fn driver_text() -> String {
    match Driver::open().map(Driver::version) {
        Ok(version) => {
            let version = version
                .map_or_else(|why| why.to_string(), |version| format!("CUDA {}", cuda_version(version)));
            found(Some(version), cuda::mapped_library("libcuda.so").as_deref())
        }
        Err(why) => format!("not found ({FOR_GPU}): {why}; install the NVIDIA driver"),
    }
}

/// Describes every visible GPU: "GPU 0 NVIDIA H100 (80 GiB) at 0000:81:00.0".
fn gpu_texts() -> Vec<String> {
    let Ok(driver) = Driver::open() else {
        return Vec::new();
    };
    let text = |index| match driver.gpu(index) {
        Ok(gpu) => format!("GPU {index} {} ({} GiB) at {}", gpu.name, gpu.memory_bytes >> 30, gpu.bus_id),
        Err(why) => format!("GPU {index}: {why}"),
    };
    (0..driver.num_gpus()).map(text).collect()
}

/// Describes this rank.
fn own_line(world: &World) -> String {
    let gpus = gpu_texts();
    let devices = match gpus.is_empty() {
        true => "no GPU".to_string(),
        false => gpus.join(", "),
    };
    format!(
        "rank {} of {} on {}: local rank {} of {}, {}, {} of {} cores, {devices}",
        world.rank(),
        world.size(),
        world.host(),
        world.local_rank(),
        world.local_size(),
        counted(world.threads() as u64, "thread"),
        usable_cores(),
        machine_cores(),
    )
}

/// Lists settings that make runs slow.
fn advice(world: &World) -> Vec<String> {
    let mut lines = Vec::new();
    let (usable, cores) = (usable_cores(), machine_cores());
    if world.size() > 1 && usable * world.local_size() < cores {
        lines.push(format!(
            "a rank can use only {usable} of {cores} cores; `mpirun --bind-to none` removes the limit"
        ));
    }
    if world.local_size() > cores {
        lines.push(format!(
            "{} ranks share {} on this machine",
            world.local_size(),
            counted(cores as u64, "core")
        ));
    }
    lines
}

fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

fn machine_cores() -> usize {
    let cores = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    cores.and_then(|cores| usize::try_from(cores).ok()).unwrap_or(1)
}

/// Returns the version and path of a library: the loaded one, or the first that can be opened.
fn version_in(stem: &str, names: &[&str], version: fn(&Library) -> Result<String, String>) -> String {
    let mut why = String::new();
    for path in cuda::library_candidates(stem, names) {
        // SAFETY: a vendor library, opened as libtorch opens it; it stays open.
        match unsafe { Library::new(&path) } {
            Ok(library) => {
                let text = version(&library);
                std::mem::forget(library);
                let path = cuda::mapped_library(stem).unwrap_or(path);
                return found(Some(text.unwrap_or_else(|why| why)), Some(&path));
            }
            // Report the error of the first candidate, which takes precedence.
            Err(error) if why.is_empty() && path.is_absolute() => why = format!(" ({error})"),
            Err(_) => {}
        }
    }
    format!("not found{why} ({FOR_GPU}); {SETUP}")
}

/// Returns the version and path of NCCL, as GPU ranks would open it.
fn nccl() -> String {
    match crate::comm::nccl_library() {
        Ok((version, path)) => found(Some(version), Some(path)),
        Err(why) => format!("{why} ({FOR_GPU})"),
    }
}

/// Calls `int name(int *)`, which returns a number through the pointer.
fn number(library: &Library, name: &[u8]) -> Result<c_int, String> {
    type Getter = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut number = 0;
    // SAFETY: the functions called by these names have this type in the vendor's headers.
    let code = unsafe { library.get::<Getter>(name).map_err(|error| error.to_string())?(&mut number) };
    match code {
        0 => Ok(number),
        code => Err(format!("error {code}")),
    }
}

fn cuda_runtime(library: &Library) -> Result<String, String> {
    number(library, b"cudaRuntimeGetVersion\0").map(cuda_version)
}

/// Formats a CUDA version: 13020 is 13.2.
fn cuda_version(number: c_int) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// Returns the cuDNN version: 91900 is 9.19.0.
fn cudnn(library: &Library) -> Result<String, String> {
    type Version = unsafe extern "C" fn() -> usize;
    // SAFETY: size_t cudnnGetVersion(void).
    let number =
        unsafe { library.get::<Version>(b"cudnnGetVersion\0").map_err(|error| error.to_string())?() };
    Ok(format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100))
}

/// Returns the libtorch version from the files beside it: version.py of the wheel or build-version of the archive.
fn torch_version(library: &Path) -> Option<String> {
    let folder = library.parent()?.parent()?;
    if let Ok(text) = fs::read_to_string(folder.join("version.py")) {
        let line = text.lines().find(|line| line.starts_with("__version__"))?;
        return line.split(['\'', '"']).nth(1).map(str::to_string);
    }
    let text = fs::read_to_string(folder.join("build-version")).ok()?;
    Some(text.trim().to_string())
}

fn found(version: Option<String>, path: Option<&Path>) -> String {
    let version = version.unwrap_or_else(|| "version unknown".into());
    match path {
        Some(path) => format!("{version}  {}", path.display()),
        None => version,
    }
}

/// Returns the first words of a long version text: "Open MPI v5.0.11".
fn first_words(text: &str) -> String {
    let line = text.split([',', '\n']).next().unwrap_or_default();
    line.trim_end_matches('\0').trim().to_string()
}
