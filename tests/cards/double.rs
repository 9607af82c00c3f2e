//! The test double of CUDA and NCCL: compiles it, runs this test program on it, and gives access to its stream 0.

use crate::bench::mpirun::{Outcome, run_with};
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use tch::Tensor;

/// Stream 0 of the double.
pub struct Double {
    enqueue: unsafe extern "C" fn(*mut c_void, extern "C" fn(*mut c_void), *mut c_void),
    synchronize: unsafe extern "C" fn(*mut c_void),
}

impl Double {
    pub fn open() -> Double {
        // SAFETY: the library is already loaded; the types match double.h.
        unsafe {
            let library = libloading::Library::new("libcuda.so.1").unwrap();
            let double = Double {
                enqueue: *library.get(b"double_enqueue\0").expect("libcuda.so.1 is the double"),
                synchronize: *library.get(b"double_synchronize\0").unwrap(),
            };
            std::mem::forget(library);
            double
        }
    }

    /// Enqueues `work` on stream 0, as libtorch would; it runs late and in order.
    pub fn enqueue(&self, work: impl FnOnce() + 'static) {
        extern "C" fn run(argument: *mut c_void) {
            // SAFETY: the pointer comes from `Box::into_raw` below and is used once.
            let work = unsafe { Box::from_raw(argument.cast::<Box<dyn FnOnce()>>()) };
            work();
        }
        let boxed: Box<Box<dyn FnOnce()>> = Box::new(Box::new(work));
        // SAFETY: `run` is called once, with this argument.
        unsafe { (self.enqueue)(std::ptr::null_mut(), run, Box::into_raw(boxed).cast()) }
    }

    /// Enqueues a copy on stream 0, which keeps both tensors alive until it runs, since a scenario may end early.
    pub fn copy(&self, to: &Tensor, from: &Tensor) {
        let bytes = from.numel() * from.kind().elt_size_in_bytes();
        let (to, from) = (to.shallow_clone(), from.shallow_clone());
        // SAFETY: both tensors have `bytes` bytes.
        self.enqueue(move || unsafe {
            std::ptr::copy_nonoverlapping(from.data_ptr() as *const u8, to.data_ptr() as *mut u8, bytes);
        });
    }

    /// The host waits for stream 0, as in `.item()`.
    pub fn synchronize(&self) {
        // SAFETY: null is the legacy stream.
        unsafe { (self.synchronize)(std::ptr::null_mut()) }
    }
}

/// Returns the folder of the double compiled with `options`; it is kept for later runs of the tests.
pub fn compiled(options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/double");
    let mut text: Vec<u8> = options.concat().into_bytes();
    for file in ["double.h", "cuda.c", "nccl.c"] {
        text.extend(std::fs::read(source.join(file)).unwrap());
    }
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = all.join(format!("double-{:016x}", xxhash_rust::xxh3::xxh3_64(&text)));
    if folder.exists() {
        return folder;
    }
    let fresh = tempfile::tempdir_in(all).unwrap();
    let compile = |file: &str, library: &str, more: &[&str]| {
        let status = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
            .current_dir(fresh.path())
            .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"])
            .arg(format!("-Wl,-soname,{library}"))
            .args(["-o", library])
            .arg(source.join(file))
            .args(options)
            .args(more)
            .status();
        assert!(status.expect("the double needs a C compiler").success(), "{file} does not compile");
    };
    compile("cuda.c", "libcuda.so.1", &["-lpthread"]);
    compile("nccl.c", "libnccl.so.2", &["./libcuda.so.1", "-Wl,-rpath,$ORIGIN"]);
    // Fails if another process has created the folder in the meantime.
    if std::fs::rename(fresh.path(), &folder).is_ok() {
        let _ = fresh.keep();
    }
    folder
}

/// The folder of the complete double.
pub fn double() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| compiled(&[]))
}

/// Runs `scenario` on the double in `folder`, under mpirun with `size` ranks, or without mpirun for 0.
pub fn run_on(folder: &Path, scenario: &str, size: usize, variables: &[(&str, &str)]) -> Outcome {
    let nccl = folder.join("libnccl.so.2");
    let double = [("LD_LIBRARY_PATH", folder.to_str().unwrap()), ("DRNAS_NCCL", nccl.to_str().unwrap())];
    run_with(scenario, size, &[&double, variables].concat())
}

pub fn succeeds(scenario: &str, size: usize, variables: &[(&str, &str)]) -> Outcome {
    run_on(double(), scenario, size, variables).expect_success(size)
}

/// Asserts that the scenario fails promptly with an error that contains `expected`.
pub fn fails_on(
    folder: &Path,
    scenario: &str,
    size: usize,
    variables: &[(&str, &str)],
    expected: &[&str],
) -> Outcome {
    let outcome = run_on(folder, scenario, size, variables).expect_failure(expected);
    let Outcome { what, output, wall, .. } = &outcome;
    assert!(!output.contains("panicked"), "{what}: {output}");
    assert!(*wall < Duration::from_secs(30), "{what} {wall:?}: {output}");
    outcome
}

pub fn fails(scenario: &str, size: usize, variables: &[(&str, &str)], expected: &[&str]) -> Outcome {
    fails_on(double(), scenario, size, variables, expected)
}
