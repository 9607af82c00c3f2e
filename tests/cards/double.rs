//! The double of CUDA and NCCL: how it is compiled, how this program runs on it, and stream 0 of it.

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
        // SAFETY: the double is open already; the types are those of double.h.
        unsafe {
            let library = libloading::Library::new("libcuda.so.1").unwrap();
            let double = Double {
                enqueue: *library.get(b"double_enqueue\0").expect("this is no double"),
                synchronize: *library.get(b"double_synchronize\0").unwrap(),
            };
            std::mem::forget(library);
            double
        }
    }

    /// Work of libtorch: `work` runs late, in order.
    pub fn give(&self, work: impl FnOnce() + 'static) {
        extern "C" fn run(argument: *mut c_void) {
            // SAFETY: what `give` made below, once.
            let work = unsafe { Box::from_raw(argument.cast::<Box<dyn FnOnce()>>()) };
            work();
        }
        let boxed: Box<Box<dyn FnOnce()>> = Box::new(Box::new(work));
        // SAFETY: a function and its argument, which runs once.
        unsafe { (self.enqueue)(std::ptr::null_mut(), run, Box::into_raw(boxed).cast()) }
    }

    /// A copy on stream 0, which keeps both tensors until then: a scenario may end early.
    pub fn copy(&self, to: &Tensor, from: &Tensor) {
        let bytes = from.numel() * from.kind().elt_size_in_bytes();
        let (to, from) = (to.shallow_clone(), from.shallow_clone());
        // SAFETY: two tensors of that size.
        self.give(move || unsafe {
            std::ptr::copy_nonoverlapping(from.data_ptr() as *const u8, to.data_ptr() as *mut u8, bytes);
        });
    }

    /// What `.item()` does: the host waits for stream 0.
    pub fn synchronize(&self) {
        // SAFETY: the legacy stream.
        unsafe { (self.synchronize)(std::ptr::null_mut()) }
    }
}

/// The folder of the double, compiled with `options`: once for all runs of the tests.
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
    // Another run of the tests may have been faster.
    if std::fs::rename(fresh.path(), &folder).is_ok() {
        let _ = fresh.keep();
    }
    folder
}

/// The folder of the whole double.
pub fn double() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| compiled(&[]))
}

/// This program in `scenario` on the double in `folder`, under mpirun with `size` ranks, or alone for 0.
pub fn run_on(folder: &Path, scenario: &str, size: usize, variables: &[(&str, &str)]) -> Outcome {
    let nccl = folder.join("libnccl.so.2");
    let double = [("LD_LIBRARY_PATH", folder.to_str().unwrap()), ("DRNAS_NCCL", nccl.to_str().unwrap())];
    run_with(scenario, size, &[&double, variables].concat())
}

pub fn succeeds(scenario: &str, size: usize, variables: &[(&str, &str)]) -> Outcome {
    run_on(double(), scenario, size, variables).expect_success(size)
}

/// Ends soon, with an error and `expected` in its words.
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
