//! launch/gpu-check.sh on the CPU (`--dry`): order of the checks, skipped checks, results after an interruption.

#[path = "common/torch.rs"]
mod torch;

use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Python with PyTorch.
fn python() -> PathBuf {
    root().join("tests/python/torch.sh")
}

/// The bundle of launch/gpu-bundle.sh for a dry run, created once; `None`, with the reason printed, if PyTorch does not
/// start.
fn bundle() -> Option<&'static Path> {
    static BUNDLE: OnceLock<Option<TempDir>> = OnceLock::new();
    let made = BUNDLE.get_or_init(|| {
        torch::torch(&[Path::new("-c"), Path::new("import torch")])?;
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new(root().join("launch/gpu-bundle.sh"))
            .arg("--dry")
            .arg(folder.path())
            .env("BINARY", env!("CARGO_BIN_EXE_drnas-dist"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Some(folder)
    });
    made.as_ref().map(TempDir::path)
}

/// The output folder and the temporary folder of one run of the script.
struct Workspace {
    out: TempDir,
    temporary: TempDir,
}

impl Workspace {
    fn new() -> Workspace {
        Workspace { out: tempfile::tempdir().unwrap(), temporary: tempfile::tempdir().unwrap() }
    }

    fn script(&self, bundle: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command
            .arg(root().join("launch/gpu-check.sh"))
            .arg(bundle)
            .arg("--dry")
            .args(arguments)
            .env("PYTHON", python())
            .env("OUT", self.out.path())
            .env("TMPDIR", self.temporary.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, bundle: &Path, arguments: &[&str]) -> Output {
        self.script(bundle, arguments).output().unwrap()
    }

    fn result(&self) -> Value {
        let text = std::fs::read_to_string(self.out.path().join("result.json")).unwrap();
        serde_json::from_str(&text).expect("result.json is complete at any time")
    }

    /// The check `name` of the result.
    fn check(&self, name: &str) -> Value {
        let result = self.result();
        let checks = result["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["name"] == name);
        found.unwrap_or_else(|| panic!("no check {name} in {result:#}")).clone()
    }

    fn archived(&self) -> Vec<String> {
        let archive = self.out.path().join("gpu-check.tar.gz");
        let output = Command::new("tar").arg("tzf").arg(archive).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
    }

    /// The names of files left in the temporary folder.
    fn left_behind(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.temporary.path()).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Processes whose working directory is in the temporary folder.
    fn processes(&self) -> Vec<i32> {
        let inside = |pid: i32| {
            let at = std::fs::read_link(format!("/proc/{pid}/cwd"));
            at.is_ok_and(|at| at.starts_with(self.temporary.path()))
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
        pids.filter(|&pid| inside(pid)).collect()
    }
}

fn state(check: &Value) -> &str {
    check["state"].as_str().unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// Waits until `condition` returns true, at most a minute.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn dry_run_runs_all_checks_in_order() {
    let Some(bundle) = bundle() else { return };
    let workspace = Workspace::new();
    std::fs::write(workspace.out.path().join("mine.txt"), "stays").unwrap();
    let output = workspace.run(bundle, &[]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let result = workspace.result();
    assert!(output.status.success() && result["state"] == "done", "{stdout}\n{result:#}");
    let planned = number(&result["planned_s"]);
    assert!(planned > 300.0 && planned < 400.0, "planned duration on a GPU: {planned} s");

    let checks = result["checks"].as_array().unwrap();
    assert!(checks.len() > 25, "{stdout}");
    for check in checks {
        assert_eq!(state(check), "ok", "{check:#}");
        let name = check["name"].as_str().unwrap();
        let line = stdout.lines().find(|line| line.split_whitespace().nth(1) == Some(name)).unwrap();
        assert!(line.contains(&format!("(planned {:3.0})", number(&check["planned_s"]))), "{line}");
    }
    // Start times and durations are rounded to hundredths of a second.
    let span = |check: &Value| {
        let from = number(&check["began_s"]);
        (from + 0.02, from + number(&check["seconds"]) - 0.02)
    };
    let overlap = |a: &Value, b: &Value| {
        let (a, b) = (span(a), span(b));
        a.0 < b.1 && b.0 < a.1
    };
    let exclusive = |check: &Value| {
        let name = check["name"].as_str().unwrap();
        ["doctor", "probe", "speed-", "plain-stage"].iter().any(|prefix| name.starts_with(prefix))
    };
    let mut pairs = 0;
    for one in checks {
        let mut processes = number(&one["processes"]);
        for other in checks.iter().filter(|other| other["name"] != one["name"]) {
            assert!(
                !(exclusive(one) && overlap(one, other)),
                "a speed check overlaps with another:\n{one:#}\n{other:#}"
            );
            // Checks that are running when this one starts.
            if span(other).0 <= span(one).0 && overlap(one, other) {
                processes += number(&other["processes"]);
                pairs += 1;
            }
        }
        assert!(processes <= 4.0, "{processes} processes at {one:#}");
    }
    assert!(pairs >= 4, "only {pairs} correctness checks run in parallel");
    let start = |name: &str| number(&workspace.check(name)["began_s"]);
    for (first, second) in [
        ("doctor", "golden-fp64"),
        ("golden-fp64", "golden-fp32"),
        ("golden-fp32", "speed-stage1-bf16-last"),
        ("speed-stage1-bf16-last", "ranks-4"),
        ("ranks-4", "rank-killed"),
        ("rank-killed", "probe"),
    ] {
        assert!(start(first) <= start(second), "{second} started before {first}");
    }
    let assert_text = |name: &str, text: &str| {
        let check = workspace.check(name);
        assert!(check["text"].as_str().unwrap().contains(text), "{check:#}");
    };
    assert_text("ranks-2", "equal those on one rank");
    assert_text("ranks-4", "equal those on one rank");
    assert_text("rank-killed", "lost rank 1");
    assert_text("rank-stopped", "lost rank 1");
    // The number of distinct convolutions in a step, counted by the recorder.
    assert!(workspace.check("count-stage1")["text"].as_str().unwrap().ends_with("distinct convolutions"));

    // Other files are unchanged and nothing else is left behind.
    let left: Vec<_> =
        std::fs::read_dir(workspace.out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert_eq!(std::fs::read_to_string(workspace.out.path().join("mine.txt")).unwrap(), "stays");
    assert_eq!(workspace.left_behind(), Vec::<String>::new());
    let archived = workspace.archived();
    for name in [
        "result.json",
        "doctor.log",
        "speed.jsonl",
        "golden-fp64.jsonl",
        "runs/ranks-2/metrics.jsonl",
        "probe.json",
    ] {
        assert!(archived.contains(&format!("gpu-check/{name}")), "no {name} in {archived:?}");
    }
    assert!(
        !archived.iter().any(|name| name.contains("checkpoints") || name.contains("shards")),
        "{archived:?}"
    );
    let measured = &result["measured"];
    assert!(
        measured["speed"].as_array().unwrap().len() >= 8 && measured["plain"].as_array().unwrap().len() == 2
    );
    assert!(stdout.contains("vs plain") && stdout.contains("planned"), "{stdout}");
}

#[test]
fn checks_that_exceed_the_time_are_skipped() {
    let Some(bundle) = bundle() else { return };
    let workspace = Workspace::new();
    let only = ["--only", "doctor,golden-tf32-channels-first,rank-stopped"];
    let output = workspace.script(bundle, &only).env("GPU_CHECK_SECONDS", "34").output().unwrap();
    // Their planned durations are 5, 25 and 35 s.
    let check = workspace.check("rank-stopped");
    assert!(
        state(&check) == "skipped" && check["text"].as_str().unwrap().starts_with("would end after"),
        "{check:#}"
    );
    assert_eq!(
        (state(&workspace.check("doctor")), state(&workspace.check("golden-tf32-channels-first"))),
        ("ok", "ok")
    );
    assert!(output.status.success(), "a skipped check is not a failure: {output:?}");
    assert_eq!(workspace.result()["checks"].as_array().unwrap().len(), 3);
}

/// Starts the script and waits until its second check, which takes seconds, is running.
fn start_second_check(workspace: &Workspace, bundle: &Path) -> Child {
    let child = workspace
        .script(bundle, &["--only", "doctor,plain-stage1-fp32"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("a process of the second check", || {
        let result = std::fs::read_to_string(workspace.out.path().join("result.json")).unwrap_or_default();
        result.contains("\"doctor\"") && !workspace.processes().is_empty()
    });
    child
}

#[test]
fn terminated_run_leaves_its_results_and_no_process() {
    let Some(bundle) = bundle() else { return };
    let workspace = Workspace::new();
    let mut child = start_second_check(&workspace, bundle);
    // SAFETY: our child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(workspace.result()["state"], "interrupted by SIGTERM");
    assert_eq!(
        (state(&workspace.check("doctor")), state(&workspace.check("plain-stage1-fp32"))),
        ("ok", "interrupted")
    );
    assert!(workspace.processes().is_empty());
    assert!(workspace.archived().contains(&"gpu-check/plain-stage1-fp32.log".to_string()));
    assert_eq!(workspace.left_behind(), Vec::<String>::new());
}

#[test]
fn killed_run_leaves_its_results() {
    let Some(bundle) = bundle() else { return };
    let workspace = Workspace::new();
    let mut child = start_second_check(&workspace, bundle);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    for pid in workspace.processes() {
        // SAFETY: signals a process of the script; no pointers are involved.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    assert_eq!(workspace.result()["state"], "running");
    assert_eq!(state(&workspace.check("doctor")), "ok");
    assert!(workspace.archived().contains(&"gpu-check/doctor.log".to_string()));
}

/// A copy of the bundle with one golden file changed.
fn with_changed_golden_file(bundle: &Path, change: impl FnOnce(&mut [u8], &Value, usize)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").args(["-a", "-T"]).arg(bundle).arg(folder.path()).status();
    assert!(copied.unwrap().success());
    let path = folder.path().join("golden/darts_imagenet_stage1.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let fields = serde_json::from_slice(&bytes[8..header]).unwrap();
    change(&mut bytes, &fields, header);
    std::fs::write(&path, bytes).unwrap();
    folder
}

#[test]
fn wrong_values_in_float64_fail_all_later_checks() {
    let Some(bundle) = bundle() else { return };
    let wrong = with_changed_golden_file(bundle, |bytes, fields, header| {
        let at = header + fields["logits.train"]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[at..at + 4].copy_from_slice(&9.0f32.to_le_bytes());
    });
    let workspace = Workspace::new();
    let output = workspace.run(wrong.path(), &["--only", "golden-fp64,golden-fp32,speed-stage1-bf16-last"]);
    assert_eq!(output.status.code(), Some(1));
    let exact = workspace.check("golden-fp64");
    assert!(
        state(&exact) == "failed" && exact["text"].as_str().unwrap().contains("logits, training: error"),
        "{exact:#}"
    );
    assert_eq!(
        state(&workspace.check("golden-fp32")),
        "failed",
        "not attributed to rounding if float64 fails too"
    );
    let speed = workspace.check("speed-stage1-bf16-last");
    assert_eq!((state(&speed), &speed["text"]), ("skipped", &"not run because golden-fp64 failed".into()));
}

#[test]
fn golden_files_that_fail_are_retried_in_the_other_layout() {
    let Some(bundle) = bundle() else { return };
    let wrong = with_changed_golden_file(bundle, |bytes, fields, header| {
        bytes[header + fields["target"]["data_offsets"][0].as_u64().unwrap() as usize] = 99;
    });
    let workspace = Workspace::new();
    let output = workspace.run(wrong.path(), &["--only", "golden-fp32"]);
    assert_eq!(output.status.code(), Some(1));
    let check = workspace.check("golden-fp32");
    let text = check["text"].as_str().unwrap();
    assert!(
        text.starts_with("also fails with channels first: darts_imagenet_stage1.safetensors")
            && text.contains("Target 99"),
        "{check:#}"
    );
    let measured = &workspace.result()["measured"]["golden"];
    // A file that fails does not stop the others.
    let last = measured["golden-fp32-retry"].as_array().unwrap().last().unwrap().clone();
    assert!(last["file"] != "darts_imagenet_stage1.safetensors" && last["pass"] == true, "{last:#}");
    assert!(workspace.archived().contains(&"gpu-check/record-golden-fp32.jsonl".to_string()));
}

/// Runs a Python script with the modules of launch/gpu; returns its output.
fn run_python(script: &str) -> String {
    let script = format!("import sys; sys.path.insert(0, sys.argv[1])\n{script}");
    let output =
        Command::new("python3").args(["-B", "-c", &script]).arg(root().join("launch/gpu")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn excess_errors_count_as_rounding_only_if_float64_passes() {
    let stdout = run_python(
        "import report
for exact in 'ok', 'failed', None:
    checks = [{'name': 'golden-fp64', 'state': exact}] if exact else []
    checks += [{'name': 'golden-bf16', 'state': 'differs', 'error': error} for error in (0.1, 0.9, 1e300)]
    print(*[check['state'] for check in report.settle(checks)])",
    );
    let expected = ["ok rounding failed failed", "failed failed failed failed", "failed failed failed"];
    assert_eq!(stdout.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn processes_that_ignore_sigterm_or_are_stopped_are_killed() {
    let stdout = run_python(
        "import os, runner, signal, subprocess, time
child = subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 50 & wait'], start_new_session=True)
while len(runner.processes(runner.SESSION, child.pid)) < 2:
    time.sleep(0.05)
os.kill(max(runner.processes(runner.SESSION, child.pid)), signal.SIGSTOP)
runner.end_session(child.pid, grace_s=0.5)
print(runner.processes(runner.SESSION, child.pid), child.wait())",
    );
    assert_eq!(stdout, "[] -9\n");
}

#[test]
fn small_excess_errors_do_not_hide_files_that_fail() {
    // A fake job that runs nothing: it acts as if `verify` had written `files` and exited with `code`.
    let stdout = run_python(
        "import check, json, pathlib, runner, tempfile
class Job:
    def __init__(self, code, files):
        self.code, self.files, self.notes = code, files, []
    def start(self, command, environment):
        pathlib.Path(command[command.index('--json') + 1]).write_text('\\n'.join(map(json.dumps, self.files)))
    def wait(self, process):
        return self.code
    def last_line(self):
        return 'the end'
def file(problem=None, error=None):
    findings = [] if error is None else [{'kind': 'logits', 'error': error, 'allowed': 0.01, 'pass': error <= 0.01}]
    return {'file': 'f', 'problem': problem, 'findings': findings}
plan = object.__new__(check.Plan)
folder = tempfile.TemporaryDirectory()
plan.work, plan.device, plan.golden = pathlib.Path(folder.name), 'cpu', ['f', 'g']
for code, *files in [
    (0, file(error=0.001), file(error=0.001)),
    (1, file(error=0.03), file(error=0.001)),
    (1, file(error=0.03), file('no engine')),
    (1, file(error=0.9), file('no engine')),
    (-11, file(error=0.03)),
    (-11, file(error=0.001), file(error=0.001)),
]:
    job = Job(code, files)
    try:
        print(plan.verified(job, 'golden', []), job.notes)
    except runner.Differs as why:
        print('differs', why.error)",
    );
    let expected = [
        "[] []",
        "differs 0.03",
        "['f: no engine'] []",
        "differs 0.9",
        "['killed by SIGSEGV: the end'] []",
        "[] ['killed by SIGSEGV after completion']",
    ];
    assert_eq!(stdout.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn failing_checks_and_vanished_files_do_not_stop_other_checks() {
    let stdout = run_python(
        "import json, pathlib, runner, sys, tarfile, tempfile, time
folders = tempfile.TemporaryDirectory(), tempfile.TemporaryDirectory()
work, out = [pathlib.Path(folder.name) for folder in folders]
sys.stderr = open('/dev/null', 'w')
made = runner.Runner(work, out, {}, 100, time.monotonic())
(work / 'a.log').write_text('a')
made.kept = lambda: [work / 'lock.json', work / 'a.log']
made.run(runner.Group('one', 4, [runner.Check('wrong', 1, lambda job: 1 / 0), runner.Check('right', 1, lambda job: 'yes')]))
print(sorted((check['name'], check['state']) for check in json.loads((out / 'result.json').read_text())['checks']))
print(tarfile.open(out / 'gpu-check.tar.gz').getnames())
def broken(result):
    raise OSError('no space left')
made.finish = broken
made.run(runner.Group('two', 4, [runner.Check('late', 1, lambda job: 'yes')]))
print('over')",
    );
    // Skips the lines printed for the checks.
    let lines: Vec<&str> = stdout.lines().skip(2).collect();
    let expected =
        ["[('right', 'ok'), ('wrong', 'failed')]", "['gpu-check/a.log', 'gpu-check/result.json']", "over"];
    assert_eq!(lines, expected, "{stdout}");
}

#[test]
fn overlap_and_agreement_are_computed() {
    let stdout = run_python(
        "import json, pathlib, report, tempfile
def trace(*begins):
    return {'trace': {'backward_ends_ms': [10.0], 'reductions': [{'step': 0, 'from_ms': begin} for begin in begins]}}
for begins in [(2, 5, 9, 11), (2, 12, 13, 14), (11, 12, 13), (1, 2, 3), (12,)]:
    (step,) = report.overlap([{'trace': None}, trace(*begins)])
    print(step['before_backward_ended'], step['groups'], round(step['fraction'], 2), step['lead_ms'])
folder = tempfile.TemporaryDirectory()
def run(name, *losses):
    path = pathlib.Path(folder.name) / name
    path.mkdir()
    lines = [{'event': 'step', 'loss': loss, 'architecture_loss': None} for loss in losses]
    (path / 'metrics.jsonl').write_text('\\n'.join(map(json.dumps, [{'event': 'stage'}, *lines])))
    return path
one = run('one', 2.0, 1.0)
print(report.agreement([one, run('equal', 2.0, 1.0)]), report.agreement([one, run('off', 2.0, 1.25)]))
print(report.agreement([one, run('nan', 2.0, float('nan'))]))
for short in run('short', 2.0), run('empty'):
    try:
        print(report.agreement([one, short]))
    except ValueError as why:
        print(why)",
    );
    let expected = [
        "3 4 1.0 8.0",
        "1 4 0.33 8.0",
        "0 3 0.0 -1.0",
        "3 3 1.0 9.0",
        "0 1 1.0 -2.0",
        "(0.0, 2) (0.25, 2)",
        "(inf, 2)",
        "steps of one, short: [2, 1]",
        "steps of one, empty: [2, 0]",
    ];
    assert_eq!(stdout.lines().collect::<Vec<_>>(), expected);
}
