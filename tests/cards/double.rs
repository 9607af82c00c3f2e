//! The double of CUDA and NCCL: how it is compiled, how this program runs on it, and stream 0 of it.

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tch::Tensor;

/// Tells this program, started again, what to do.
pub const SCENE: &str = "DRNAS_TEST_SCENE";

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

    /// A copy on stream 0. Both tensors live until `synchronize`.
    pub fn copy(&self, to: &Tensor, from: &Tensor) {
        let bytes = from.numel() * from.kind().elt_size_in_bytes();
        let (to, from) = (to.data_ptr() as usize, from.data_ptr() as usize);
        // SAFETY: two tensors of that size that the scene keeps.
        self.give(move || unsafe {
            std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
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

pub struct Ended {
    pub output: String,
    pub code: Option<i32>,
    pub wall: Duration,
}

/// This program in `scene` on the double in `folder`, under mpirun with `size` ranks, or alone for 0.
pub fn run_on(folder: &Path, scene: &str, size: usize, variables: &[(&str, &str)]) -> Ended {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("native/bin/mpirun");
    let mpirun = if local.exists() { local } else { "mpirun".into() };
    let tmp = tempfile::tempdir().unwrap();
    // Nothing here may hang: `timeout` ends what does.
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=5", "150"]);
    if size > 0 {
        command.arg(mpirun).args(["--bind-to", "none", "-n", &size.to_string()]);
    }
    for name in ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMI_RANK"] {
        command.env_remove(name);
    }
    command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "rank_program", "--ignored", "--nocapture", "--test-threads=1"])
        .env(SCENE, scene)
        .env("LD_LIBRARY_PATH", folder)
        .env("DRNAS_NCCL", folder.join("libnccl.so.2"))
        .env("TMPDIR", tmp.path())
        .env("OMPI_MCA_btl_sm_backing_directory", tmp.path())
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env_remove("NCCL_MULTI_RANK_GPU_ENABLE")
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    let started = Instant::now();
    let output = command.output().expect("mpirun is not there: launch/setup.sh installs it");
    let text = [output.stdout, output.stderr].concat();
    Ended {
        output: String::from_utf8_lossy(&text).into_owned(),
        code: output.status.code(),
        wall: started.elapsed(),
    }
}

pub fn good(scene: &str, size: usize, variables: &[(&str, &str)]) -> Ended {
    let ended = run_on(double(), scene, size, variables);
    assert_eq!(ended.code, Some(0), "{scene} on {size} {variables:?}: {}", ended.output);
    assert_eq!(ended.output.matches("good end").count(), size.max(1), "{}", ended.output);
    ended
}

/// Ends with an error, `expected` in its words, and not by giving up on time.
pub fn bad_on(
    folder: &Path,
    scene: &str,
    size: usize,
    variables: &[(&str, &str)],
    expected: &[&str],
) -> Ended {
    let ended = run_on(folder, scene, size, variables);
    let output = &ended.output;
    assert!(!matches!(ended.code, Some(0 | 124 | 137)), "{scene} {variables:?} {:?}: {output}", ended.code);
    for text in expected {
        assert!(output.contains(text), "{scene} {variables:?}: no {text:?} in: {output}");
    }
    assert!(!output.contains("panicked"), "{scene} {variables:?}: {output}");
    assert!(ended.wall < Duration::from_secs(30), "{scene} {variables:?} {:?}: {output}", ended.wall);
    ended
}

pub fn bad(scene: &str, size: usize, variables: &[(&str, &str)], expected: &[&str]) -> Ended {
    bad_on(double(), scene, size, variables, expected)
}
