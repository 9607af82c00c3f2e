//! launch/gpu-check.sh on the CPU (`--dry`): the order of its checks, what it skips, and what it leaves when it is ended.

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

/// The Python that has torch.
fn python() -> PathBuf {
    root().join("tests/python/torch.sh")
}

/// What launch/gpu-bundle.sh makes for a dry run, made once; `None`, with the reason printed, where PyTorch does not start.
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

/// A place for one run of the script: what it leaves, and its temporary folder.
struct Place {
    out: TempDir,
    temporary: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { out: tempfile::tempdir().unwrap(), temporary: tempfile::tempdir().unwrap() }
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
        serde_json::from_str(&text).expect("result.json is whole at every moment")
    }

    /// The check `name` of the result.
    fn check(&self, name: &str) -> Value {
        let result = self.result();
        let checks = result["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not in {result:#}")).clone()
    }

    fn archived(&self) -> Vec<String> {
        let archive = self.out.path().join("gpu-check.tar.gz");
        let output = Command::new("tar").arg("tzf").arg(archive).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
    }

    /// What is in the temporary folder.
    fn left_behind(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.temporary.path()).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Processes that work in the temporary folder.
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

/// Waits for `happened`, for a minute at most.
fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_dry_run_makes_every_check_in_order() {
    let Some(bundle) = bundle() else { return };
    let place = Place::new();
    std::fs::write(place.out.path().join("mine.txt"), "stays").unwrap();
    let output = place.run(bundle, &[]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let result = place.result();
    assert!(output.status.success() && result["state"] == "done", "{stdout}\n{result:#}");
    let planned = number(&result["planned_s"]);
    assert!(planned > 300.0 && planned < 400.0, "the plan for a card: {planned} s");

    let checks = result["checks"].as_array().unwrap();
    assert!(checks.len() > 25, "{stdout}");
    for check in checks {
        assert_eq!(state(check), "ok", "{check:#}");
        let name = check["name"].as_str().unwrap();
        let line = stdout.lines().find(|line| line.split_whitespace().nth(1) == Some(name)).unwrap();
        assert!(line.contains(&format!("(planned {:3.0})", number(&check["planned_s"]))), "{line}");
    }
    // Beginnings and ends are rounded to hundredths of a second.
    let span = |check: &Value| {
        let from = number(&check["began_s"]);
        (from + 0.02, from + number(&check["seconds"]) - 0.02)
    };
    let beside = |a: &Value, b: &Value| {
        let (a, b) = (span(a), span(b));
        a.0 < b.1 && b.0 < a.1
    };
    let alone = |check: &Value| {
        let name = check["name"].as_str().unwrap();
        ["doctor", "probe", "speed-", "plain-stage"].iter().any(|begin| name.starts_with(begin))
    };
    let mut pairs = 0;
    for one in checks {
        let mut processes = number(&one["processes"]);
        for other in checks.iter().filter(|other| other["name"] != one["name"]) {
            assert!(!(alone(one) && beside(one, other)), "speed is measured alone:\n{one:#}\n{other:#}");
            // Those that run when this one begins.
            if span(other).0 <= span(one).0 && beside(one, other) {
                processes += number(&other["processes"]);
                pairs += 1;
            }
        }
        assert!(processes <= 4.0, "{processes} processes at {one:#}");
    }
    assert!(pairs >= 4, "correctness is checked side by side");
    let began = |name: &str| number(&place.check(name)["began_s"]);
    for (first, second) in [
        ("doctor", "golden-fp64"),
        ("golden-fp64", "golden-fp32"),
        ("golden-fp32", "speed-stage1-bf16-last"),
        ("speed-stage1-bf16-last", "ranks-4"),
        ("ranks-4", "rank-killed"),
        ("rank-killed", "probe"),
    ] {
        assert!(began(first) <= began(second), "{first} and then {second}");
    }
    let says = |name: &str, text: &str| {
        let check = place.check(name);
        assert!(check["text"].as_str().unwrap().contains(text), "{check:#}");
    };
    says("ranks-2", "equal one rank's");
    says("ranks-4", "equal one rank's");
    says("rank-killed", "lost rank 1");
    says("rank-stopped", "lost rank 1");
    // Kinds of convolutions that one step has, counted by the recorder.
    assert!(place.check("count-stage1")["text"].as_str().unwrap().ends_with("kinds of convolutions"));

    // Nothing else is touched or left behind.
    let left: Vec<_> =
        std::fs::read_dir(place.out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert_eq!(std::fs::read_to_string(place.out.path().join("mine.txt")).unwrap(), "stays");
    assert_eq!(place.left_behind(), Vec::<String>::new());
    let archived = place.archived();
    for name in [
        "result.json",
        "doctor.log",
        "speed.jsonl",
        "golden-fp64.jsonl",
        "runs/ranks-2/metrics.jsonl",
        "probe.json",
    ] {
        assert!(archived.contains(&format!("gpu-check/{name}")), "{name} is not in {archived:?}");
    }
    assert!(
        !archived.iter().any(|name| name.contains("checkpoints") || name.contains("shards")),
        "{archived:?}"
    );
    let measured = &result["measured"];
    assert!(
        measured["speed"].as_array().unwrap().len() >= 8 && measured["plain"].as_array().unwrap().len() == 2
    );
    assert!(stdout.contains("to plain") && stdout.contains("planned"), "{stdout}");
}

#[test]
fn what_does_not_fit_into_the_time_is_skipped() {
    let Some(bundle) = bundle() else { return };
    let place = Place::new();
    let only = ["--only", "doctor,golden-tf32-channels-first,rank-stopped"];
    let output = place.script(bundle, &only).env("GPU_CHECK_SECONDS", "34").output().unwrap();
    // By plan they take 5, 25 and 35 s.
    let check = place.check("rank-stopped");
    assert!(
        state(&check) == "skipped" && check["text"].as_str().unwrap().starts_with("would end after"),
        "{check:#}"
    );
    assert_eq!(
        (state(&place.check("doctor")), state(&place.check("golden-tf32-channels-first"))),
        ("ok", "ok")
    );
    assert!(output.status.success(), "a skipped check has not failed: {output:?}");
    assert_eq!(place.result()["checks"].as_array().unwrap().len(), 3);
}

/// The script, in the middle of its second check, which takes seconds.
fn in_the_second_check(place: &Place, bundle: &Path) -> Child {
    let child =
        place.script(bundle, &["--only", "doctor,plain-stage1-fp32"]).stdout(Stdio::null()).spawn().unwrap();
    wait_for("a process of the second check", || {
        let known = std::fs::read_to_string(place.out.path().join("result.json")).unwrap_or_default();
        known.contains("\"doctor\"") && !place.processes().is_empty()
    });
    child
}

#[test]
fn a_run_that_is_ended_leaves_what_it_knows_and_no_process() {
    let Some(bundle) = bundle() else { return };
    let place = Place::new();
    let mut child = in_the_second_check(&place, bundle);
    // SAFETY: a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(place.result()["state"], "interrupted by SIGTERM");
    assert_eq!(
        (state(&place.check("doctor")), state(&place.check("plain-stage1-fp32"))),
        ("ok", "interrupted")
    );
    assert!(place.processes().is_empty());
    assert!(place.archived().contains(&"gpu-check/plain-stage1-fp32.log".to_string()));
    assert_eq!(place.left_behind(), Vec::<String>::new());
}

#[test]
fn a_run_that_is_killed_leaves_what_it_knew() {
    let Some(bundle) = bundle() else { return };
    let place = Place::new();
    let mut child = in_the_second_check(&place, bundle);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    for pid in place.processes() {
        // SAFETY: a process of the script's, in its temporary folder.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    assert_eq!(place.result()["state"], "running");
    assert_eq!(state(&place.check("doctor")), "ok");
    assert!(place.archived().contains(&"gpu-check/doctor.log".to_string()));
}

/// The bundle with one golden file changed.
fn changed(bundle: &Path, change: impl FnOnce(&mut [u8], &Value, usize)) -> TempDir {
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
fn wrong_numbers_in_float64_are_the_end() {
    let Some(bundle) = bundle() else { return };
    let wrong = changed(bundle, |bytes, fields, header| {
        let at = header + fields["logits.train"]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[at..at + 4].copy_from_slice(&9.0f32.to_le_bytes());
    });
    let place = Place::new();
    let output = place.run(wrong.path(), &["--only", "golden-fp64,golden-fp32,speed-stage1-bf16-last"]);
    assert_eq!(output.status.code(), Some(1));
    let exact = place.check("golden-fp64");
    assert!(
        state(&exact) == "failed" && exact["text"].as_str().unwrap().contains("logits, training off by"),
        "{exact:#}"
    );
    assert_eq!(state(&place.check("golden-fp32")), "failed", "no rounding, where float64 is wrong too");
    let speed = place.check("speed-stage1-bf16-last");
    assert_eq!(
        (state(&speed), &speed["text"]),
        ("skipped", &"not tried: golden-fp64 failed, which comes first".into())
    );
}

#[test]
fn golden_files_that_cannot_be_computed_are_tried_in_the_other_layout() {
    let Some(bundle) = bundle() else { return };
    let wrong = changed(bundle, |bytes, fields, header| {
        bytes[header + fields["target"]["data_offsets"][0].as_u64().unwrap() as usize] = 99;
    });
    let place = Place::new();
    let output = place.run(wrong.path(), &["--only", "golden-fp32"]);
    assert_eq!(output.status.code(), Some(1));
    let check = place.check("golden-fp32");
    let text = check["text"].as_str().unwrap();
    assert!(
        text.starts_with("not with channels first either: darts_imagenet_stage1.safetensors")
            && text.contains("Target 99"),
        "{check:#}"
    );
    let measured = &place.result()["measured"]["golden"];
    // The file that cannot be computed is no obstacle to the others.
    let last = measured["golden-fp32-again"].as_array().unwrap().last().unwrap().clone();
    assert!(last["file"] != "darts_imagenet_stage1.safetensors" && last["pass"] == true, "{last:#}");
    assert!(place.archived().contains(&"gpu-check/record-golden-fp32.jsonl".to_string()));
}

/// What a Python script with the modules of launch/gpu prints.
fn printed(script: &str) -> String {
    let script = format!("import sys; sys.path.insert(0, sys.argv[1])\n{script}");
    let output =
        Command::new("python3").args(["-B", "-c", &script]).arg(root().join("launch/gpu")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_excess_is_rounding_only_where_float64_is_right() {
    let stdout = printed(
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
fn processes_that_are_deaf_or_stopped_are_ended_too() {
    let stdout = printed(
        "import os, runner, signal, subprocess, time
deaf = subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 50 & wait'], start_new_session=True)
while len(runner.processes(runner.SESSION, deaf.pid)) < 2:
    time.sleep(0.05)
os.kill(max(runner.processes(runner.SESSION, deaf.pid)), signal.SIGSTOP)
runner.end_session(deaf.pid, grace_s=0.5)
print(runner.processes(runner.SESSION, deaf.pid), deaf.wait())",
    );
    assert_eq!(stdout, "[] -9\n");
}

#[test]
fn small_excesses_do_not_hide_what_cannot_be_computed() {
    // A stand-in for the job, which runs nothing: `verify` is stdout to have written `files` and to have ended with `code`.
    let stdout = printed(
        "import check, json, pathlib, runner, tempfile
class Job:
    def __init__(self, code, files):
        self.code, self.files, self.remarks = code, files, []
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
        print(plan.verified(job, 'golden', []), job.remarks)
    except runner.Differs as why:
        print('differs', why.error)",
    );
    let expected = [
        "[] []",
        "differs 0.03",
        "['f: no engine'] []",
        "differs 0.9",
        "['ended by SIGSEGV: the end'] []",
        "[] ['ended by SIGSEGV after all was done']",
    ];
    assert_eq!(stdout.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn no_mistake_of_a_check_and_no_file_that_vanishes_stops_the_others() {
    let stdout = printed(
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
    // The lines of the checks come first.
    let told: Vec<&str> = stdout.lines().skip(2).collect();
    let expected =
        ["[('right', 'ok'), ('wrong', 'failed')]", "['gpu-check/a.log', 'gpu-check/result.json']", "over"];
    assert_eq!(told, expected, "{stdout}");
}

#[test]
fn overlap_and_agreement_are_judged() {
    let stdout = printed(
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
