//! `doctor`: what this program runs on: libraries and where they come from, ranks, threads, devices, and what is missing.

use crate::console;
use crate::cuda::{self, Driver, LibtorchCuda};
use crate::error::Result;
use crate::world::World;
use libloading::Library;
use std::ffi::c_int;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Bytes of the line that each rank contributes.
const LINE: usize = 1024;
const FOR_GPU: &str = "needed for GPU ranks only";
const SETUP: &str = "run launch/setup.sh again on a machine with an NVIDIA driver";

/// Prints the report. Under mpirun rank 0 prints and every rank contributes a line; alone, it is a world of one. Called
/// before the first tensor. Errors: the ranks cannot be joined; what is known of the libraries is printed before.
pub fn run(limit: Duration, threads: Option<usize>) -> Result<()> {
    let libtorch_cuda = cuda::load();
    let started = World::start(limit, threads);
    // What could not be printed shows at the end: the other ranks are waiting.
    let mut printed = Ok(());
    if started.as_ref().map_or(0, World::rank) == 0 {
        let lines =
            libraries(&libtorch_cuda).into_iter().map(|(name, found)| format!("{name:<14} {found}\n"));
        printed = console::print_result(&lines.collect::<String>());
    }
    let world = started?;
    let told = world.communicator().all_gather(&own_line(&world));
    let rank = world.rank();
    let level = world.threading();
    let hosts = world.num_hosts();
    let advice = advice(&world);
    let told = world.end(told)?;
    printed?;
    if rank != 0 {
        return Ok(());
    }
    let level = match level {
        Some(level) => format!("{level:?}"),
        None => "not started: this is one process (mpirun starts more)".into(),
    };
    let mut text = format!("{:<14} {level}\n", "MPI threads");
    text += &format!("{:<14} {} on {hosts} host{}\n", "ranks", told.len(), plural(hosts));
    for line in &told {
        text += &format!("  {}\n", String::from_utf8_lossy(line).trim_end());
    }
    advice.iter().for_each(|line| text += &format!("note: {line}\n"));
    Ok(console::print_result(&text)?)
}

/// (name, version and path or what to do) of everything that is loaded or could be.
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

/// The driver's version and path.
fn driver_text() -> String {
    match Driver::open().map(Driver::version) {
        Ok(version) => {
            let version =
                version.map_or_else(|why| why.to_string(), |version| format!("CUDA {}", thousands(version)));
            found(Some(version), cuda::mapped_library("libcuda.so").as_deref())
        }
        Err(why) => format!("not found ({FOR_GPU}): {why}; install the NVIDIA driver"),
    }
}

/// "GPU 0 NVIDIA H100 (80 GiB) at 0000:81:00.0" of every card that this process may see.
fn cards() -> Vec<String> {
    let Ok(driver) = Driver::open() else {
        return Vec::new();
    };
    let text = |index| match driver.gpu(index) {
        Ok(card) => format!("GPU {index} {} ({} GiB) at {}", card.name, card.memory_bytes >> 30, card.bus_id),
        Err(why) => format!("GPU {index}: {why}"),
    };
    (0..driver.num_gpus()).map(text).collect()
}

/// What this rank says of itself, padded: all ranks give the same length.
fn own_line(world: &World) -> Vec<u8> {
    let cards = cards();
    let devices = match cards.is_empty() {
        true => "no GPU".to_string(),
        false => cards.join(", "),
    };
    let mut line = format!(
        "rank {} of {} on {}: local rank {} of {}, {} thread{}, {} of {} cores, {devices}",
        world.rank(),
        world.size(),
        world.host(),
        world.local_rank(),
        world.local_size(),
        world.threads(),
        plural(world.threads()),
        usable_cores(),
        machine_cores(),
    )
    .into_bytes();
    line.resize(LINE, b' ');
    line
}

/// What makes runs slow without being wrong.
fn advice(world: &World) -> Vec<String> {
    let mut lines = Vec::new();
    let (usable, cores) = (usable_cores(), machine_cores());
    if world.size() > 1 && usable * world.local_size() < cores {
        lines.push(format!(
            "a rank may use {usable} of {cores} cores only; `mpirun --bind-to none` lets it use its share"
        ));
    }
    if world.local_size() > cores {
        lines.push(format!("{} ranks share {cores} cores of this machine", world.local_size()));
    }
    lines
}

fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

fn machine_cores() -> usize {
    // SAFETY: asks for a number.
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(cores).unwrap_or(1)
}

/// The version and path of a library: the one in use, else the first that can be opened.
fn version_in(stem: &str, names: &[&str], version: fn(&Library) -> Result<String, String>) -> String {
    let mut why = String::new();
    for path in cuda::library_candidates(stem, names) {
        // SAFETY: a library of the vendor, opened as libtorch opens it; it stays open.
        match unsafe { Library::new(&path) } {
            Ok(library) => {
                let text = version(&library);
                std::mem::forget(library);
                let path = cuda::mapped_library(stem).unwrap_or(path);
                return found(Some(text.unwrap_or_else(|why| why)), Some(&path));
            }
            // The first is the one that was meant to be used.
            Err(error) if why.is_empty() && path.is_absolute() => why = format!(" ({error})"),
            Err(_) => {}
        }
    }
    format!("not found{why} ({FOR_GPU}); {SETUP}")
}

/// The version and path of NCCL, as ranks on cards would open it.
fn nccl() -> String {
    match crate::comm::nccl_library() {
        Ok((version, path)) => found(Some(version), Some(path)),
        Err(why) => format!("{why} ({FOR_GPU})"),
    }
}

/// Calls `int name(int *)`, the way all three libraries tell a number.
fn number(library: &Library, name: &[u8]) -> Result<c_int, String> {
    type Ask = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut number = 0;
    // SAFETY: the type is that of the vendor's header for the names that are asked for here.
    let code = unsafe { library.get::<Ask>(name).map_err(|error| error.to_string())?(&mut number) };
    match code {
        0 => Ok(number),
        code => Err(format!("error {code}")),
    }
}

fn cuda_runtime(library: &Library) -> Result<String, String> {
    number(library, b"cudaRuntimeGetVersion\0").map(thousands)
}

/// 13020 is 13.2.
fn thousands(number: c_int) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// 91900 is 9.19.0.
fn cudnn(library: &Library) -> Result<String, String> {
    type Version = unsafe extern "C" fn() -> usize;
    // SAFETY: size_t cudnnGetVersion(void).
    let number =
        unsafe { library.get::<Version>(b"cudnnGetVersion\0").map_err(|error| error.to_string())?() };
    Ok(format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100))
}

/// The version that libtorch says of itself in the files beside it: the wheel's version.py or the archive's build-version.
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

/// "Open MPI v5.0.11" of the long text a library gives.
fn first_words(text: &str) -> String {
    let line = text.split([',', '\n']).next().unwrap_or_default();
    line.trim_end_matches('\0').trim().to_string()
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
