//! mpirun with the settings that tests need, and `rank_program`: the current test program, run again as the ranks of a
//! scenario.

use drnas_dist::comm::Communicator;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tch::Tensor;

/// Names the scenario that `rank_program` runs.
pub const SCENARIO: &str = "DRNAS_TEST_SCENE";

/// Arguments that make a test program run its `rank_program`.
pub const RANK_PROGRAM: [&str; 5] =
    ["--exact", "rank_program", "--ignored", "--nocapture", "--test-threads=1"];

/// mpirun from native/ if it is installed there, otherwise from PATH.
pub fn mpirun() -> PathBuf {
    let native = Path::new(env!("CARGO_MANIFEST_DIR")).join("native/bin/mpirun");
    if native.exists() { native } else { "mpirun".into() }
}

/// Allows any number of ranks on this machine, and keeps leftovers of killed ranks, such as shared memory, in `folder`.
pub fn configure_mpi<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command
        .env("TMPDIR", folder)
        .env("OMPI_MCA_btl_sm_backing_directory", folder)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        .stdin(Stdio::null())
}

/// `rank_program` running `scenario` under mpirun with `size` ranks, or without mpirun for 0. `folder` is its TMPDIR.
pub fn rank_program(scenario: &str, size: usize, folder: &Path) -> Command {
    // `timeout` ends a scenario that hangs.
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=5", "150"]);
    if size > 0 {
        command.arg(mpirun()).args(["--bind-to", "none", "-n", &size.to_string()]);
    }
    command.arg(std::env::current_exe().unwrap()).args(RANK_PROGRAM).env(SCENARIO, scenario);
    configure_mpi(&mut command, folder);
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

/// Asserts that `comm` refuses tensors that it cannot send, immediately and on each rank by itself.
pub fn assert_refuses_unsuitable_tensors(comm: &dyn Communicator) {
    let transposed = Tensor::zeros([3, 4], tch::kind::FLOAT_CPU).tr();
    let message = |outcome: drnas_dist::comm::Result<()>| outcome.unwrap_err().to_string();
    assert!(message(comm.start_mean(&transposed)).contains("expected a contiguous tensor"));
    assert!(message(comm.broadcast(&transposed, 0)).contains("expected a contiguous tensor"));
    let integers = Tensor::zeros([3], tch::kind::INT64_CPU);
    assert!(
        message(comm.start_mean(&integers))
            .contains("expected a tensor of kind Float or Double, found Int64")
    );
    assert!(message(comm.broadcast(&integers, 9)).contains("root below"));
}

/// How the ranks of a scenario ended.
pub struct Outcome {
    /// Scenario, number of ranks and variables.
    pub what: String,
    /// Standard output and standard error.
    pub output: String,
    pub code: Option<i32>,
    pub wall: Duration,
}

/// Runs `rank_program` with `variables` in its environment to completion.
pub fn run_with(scenario: &str, size: usize, variables: &[(&str, &str)]) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let output = rank_program(scenario, size, folder.path())
        .envs(variables.iter().copied())
        .output()
        .expect("`timeout` is installed");
    let text = [output.stdout, output.stderr].concat();
    Outcome {
        what: format!("{scenario} on {size} {variables:?}"),
        output: String::from_utf8_lossy(&text).into_owned(),
        code: output.status.code(),
        wall: started.elapsed(),
    }
}

impl Outcome {
    /// Asserts that all `size` ranks (0: one without mpirun) finished without error.
    pub fn expect_success(self, size: usize) -> Outcome {
        assert_eq!(self.code, Some(0), "{}: {}", self.what, self.output);
        assert_eq!(self.output.matches("rank done").count(), size.max(1), "{}: {}", self.what, self.output);
        self
    }

    /// Asserts that the ranks failed, did not time out, and printed all `expected` texts.
    pub fn expect_failure(self, expected: &[&str]) -> Outcome {
        let Outcome { what, output, code, .. } = &self;
        assert!(!matches!(code, Some(0 | 124 | 137)), "{what} {code:?}: {output}");
        for text in expected {
            assert!(output.contains(text), "{what}: no {text:?} in: {output}");
        }
        self
    }
}

/// Returns whether process `pid` is running; a zombie is not.
pub fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
