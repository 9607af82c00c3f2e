//! mpirun as tests need it, and this very test program again as what its ranks run: `rank_program`, in a scene.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Tells this program, started again, what to do.
pub const SCENE: &str = "DRNAS_TEST_SCENE";

/// The arguments with which a test program does what the ranks of its tests do.
pub const RANK_PROGRAM: [&str; 5] =
    ["--exact", "rank_program", "--ignored", "--nocapture", "--test-threads=1"];

/// mpirun of the native parts, or of the path.
pub fn mpirun() -> PathBuf {
    let native = Path::new(env!("CARGO_MANIFEST_DIR")).join("native/bin/mpirun");
    if native.exists() { native } else { "mpirun".into() }
}

/// Any number of ranks may run here, and what killed ones leave behind, shared memory for one, lies in `folder`.
pub fn at_home<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command
        .env("TMPDIR", folder)
        .env("OMPI_MCA_btl_sm_backing_directory", folder)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        .stdin(Stdio::null())
}

/// `rank_program` in `scene`, under mpirun with `size` ranks, or alone for 0. `folder` is its TMPDIR.
pub fn rank_program(scene: &str, size: usize, folder: &Path) -> Command {
    // Nothing here may hang: `timeout` ends what does.
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=5", "150"]);
    if size > 0 {
        command.arg(mpirun()).args(["--bind-to", "none", "-n", &size.to_string()]);
    }
    command.arg(std::env::current_exe().unwrap()).args(RANK_PROGRAM).env(SCENE, scene);
    at_home(&mut command, folder);
    for name in [
        "SLURM_NTASKS",
        "OMPI_COMM_WORLD_SIZE",
        "PMI_SIZE",
        "PMIX_RANK",
        "PMI_RANK",
        "CUDA_VISIBLE_DEVICES",
        "NCCL_MULTI_RANK_GPU_ENABLE",
    ] {
        command.env_remove(name);
    }
    command
}

/// How ranks ended.
pub struct Ended {
    /// What was run.
    pub what: String,
    /// Both streams.
    pub output: String,
    pub code: Option<i32>,
    pub wall: Duration,
}

/// Runs `rank_program` with `variables` to its end.
pub fn run_with(scene: &str, size: usize, variables: &[(&str, &str)]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let output = rank_program(scene, size, folder.path())
        .envs(variables.iter().copied())
        .output()
        .expect("`timeout` is not there");
    let text = [output.stdout, output.stderr].concat();
    Ended {
        what: format!("{scene} on {size} {variables:?}"),
        output: String::from_utf8_lossy(&text).into_owned(),
        code: output.status.code(),
        wall: started.elapsed(),
    }
}

impl Ended {
    /// All of `size` ranks (0: one alone) came to their good end.
    pub fn good(self, size: usize) -> Ended {
        assert_eq!(self.code, Some(0), "{}: {}", self.what, self.output);
        assert_eq!(self.output.matches("good end").count(), size.max(1), "{}: {}", self.what, self.output);
        self
    }

    /// An error, `expected` in its words, and not by giving up on time.
    pub fn bad(self, expected: &[&str]) -> Ended {
        let Ended { what, output, code, .. } = &self;
        assert!(!matches!(code, Some(0 | 124 | 137)), "{what} {code:?}: {output}");
        for text in expected {
            assert!(output.contains(text), "{what}: no {text:?} in: {output}");
        }
        self
    }
}

/// Whether process `pid` runs: a zombie whose parent has not asked about it does not.
pub fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
