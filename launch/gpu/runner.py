"""Runs checks, some in parallel, within a time limit and each with its log; keeps the results on disk up to date."""

import datetime
import io
import json
import os
import re
import signal
import subprocess
import tarfile
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Callable

# Files of the work folder that go into the archive, and how much of each.
KEPT = (".log", ".json", ".jsonl", ".toml", ".txt", ".case")
KEPT_BYTES = 2 << 20
# How long checks may exceed the time limit before they are killed.
GRACE_S = 20


class Failed(Exception):
    """A check failed; the text says why."""


class Differs(Exception):
    """An error is above its tolerance; `error` is relative. report.settle decides what it means."""

    def __init__(self, error, text):
        super().__init__(text)
        self.error = error


class Skipped(Exception):
    """A check cannot run; the text says why."""


class Interrupted(BaseException):
    """A signal requests the end of all checks."""


@dataclass
class Check:
    """One check. `work` returns a description of the result, or raises Failed, Differs or Skipped."""

    name: str
    planned_s: float  # on a GPU
    work: Callable[["Job"], str]
    processes: int = 1
    limit_s: float = 90  # for each of its commands


@dataclass
class Group:
    """Checks that may run in parallel, up to `width` processes."""

    name: str
    width: int
    checks: list


@dataclass
class Outcome:
    """Result of a check. `state`: ok, failed, skipped, interrupted or differs (report.settle: rounding or failed)."""

    name: str
    state: str
    processes: int
    planned_s: float
    began_s: float
    seconds: float = 0.0
    text: str = ""
    error: float | None = None
    log: list = field(default_factory=list)


def planned_total_s(groups):
    """Returns the planned seconds of all groups, with the scheduling of `Runner.run`."""
    total = 0.0
    for group in groups:
        now, running = 0.0, []
        for check in group.checks:
            while running and sum(processes for _, processes in running) + check.processes > group.width:
                running.sort()
                now = max(now, running.pop(0)[0])
            running.append((now + check.planned_s, check.processes))
        total += max((end for end, _ in running), default=0.0)
    return total


# Fields of /proc/PID/stat after the name, which may contain any character.
STATE, PARENT, SESSION = 0, 1, 3


def processes(field_index, value):
    """Returns the processes whose field `field_index` (PARENT or SESSION) is `value`, without zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[field_index] == str(value) and fields[STATE] not in "ZX":
                found.append(int(entry.name))
    return found


def end_session(session, grace_s=3.0):
    """Terminates all processes of a session: by SIGTERM, and after `grace_s` by SIGKILL."""
    for number, wait_s in (signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0):
        for pid in processes(SESSION, session):
            try:
                os.kill(pid, number)
                # A stopped process does not handle SIGTERM before SIGCONT.
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + wait_s
        while processes(SESSION, session) and time.monotonic() < deadline:
            time.sleep(0.05)


def describe_exit(code):
    """Describes an exit code of subprocess."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


class Job:
    """The log and the commands of a running check."""

    def __init__(self, runner, check):
        self.runner, self.check = runner, check
        self.log = runner.work / f"{check.name}.log"
        self.began = time.monotonic()
        self.notes = []

    def start(self, command, environment=None):
        """Starts a command in its own session; its output goes to the log."""
        self.runner.raise_if_stopping()
        with open(self.log, "ab") as log:
            log.write(f"$ {' '.join(map(str, command))}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.runner.work,
                env=dict(environment if environment is not None else self.runner.environment),
                start_new_session=True,
            )
        self.runner.sessions.add(process.pid)
        if self.runner.stopping:
            # `interrupt` may have missed this process.
            end_session(process.pid)
            self.runner.raise_if_stopping()
        return process

    def limit_s(self, max_s=None):
        """Returns the seconds that the next command may run, at most `max_s`. Raises Failed if none are left."""
        left_s = self.runner.budget_s + GRACE_S - self.runner.elapsed_s()
        if left_s <= 0:
            raise Failed("the time limit is reached")
        return min(max_s or self.check.limit_s, left_s)

    def wait(self, process, limit_s=None):
        """Waits for a command and returns its exit code. Raises Failed, and ends the command, after its time limit."""
        try:
            limit_s = self.limit_s(limit_s)
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"timed out after {limit_s:.0f} s") from None
        finally:
            self.end(process)

    def end(self, process):
        """Ends a command and all processes of its session."""
        end_session(process.pid)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            # Blocked in the driver, where SIGKILL has no effect.
            self.notes.append(f"process {process.pid} cannot be killed")
        self.runner.sessions.discard(process.pid)

    def run(self, command, environment=None, done=None, may_fail=False, limit_s=None):
        """Runs a command to its end. Raises Failed if its exit code is not 0 and `done()` is false: libraries may crash
        when a process that has finished releases the GPU. `may_fail`: do not raise; the caller checks the outcome."""
        try:
            code = self.wait(self.start(command, environment), limit_s)
            if code != 0 and done and done():
                self.notes.append(f"{describe_exit(code)} after completion")
            elif code != 0:
                raise Failed(f"{describe_exit(code)}: {self.last_line()}")
        except Failed:
            self.runner.raise_if_stopping()
            if not may_fail:
                raise

    def lines(self):
        """Returns the lines of the log so far, without empty ones."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return [line for line in text.splitlines() if line.strip()]

    def last_line(self):
        """Returns the last informative line of the log, preferably a message of the program rather than of mpirun."""
        lines = [line.strip() for line in self.lines() if line.strip("-= ")]
        own = [line for line in lines if re.match(r"error: |rank \d+ on ", line)]
        return (own or lines)[-1][:300] if lines else "no output"


class Runner:
    """Runs checks and keeps `out`/result.json and `out`/gpu-check.tar.gz up to date."""

    def __init__(self, work, out, environment, budget_s, began):
        self.work, self.out, self.environment, self.budget_s, self.began = work, out, environment, budget_s, began
        self.facts = {}
        self.started = set()
        self.outcomes = []
        self.sessions = set()
        self.stopping = ""
        self.state = "running"
        # Maps the outcomes so far to a reason to skip all further checks, or "".
        self.gate = lambda outcomes: ""
        # Completes the result: adds measurements and settles open states.
        self.finish = lambda result: result
        self._busy = 0
        self._changed = threading.Condition()
        self._writing = threading.Lock()

    def elapsed_s(self):
        """Returns the seconds since the start of gpu-check.sh."""
        return time.monotonic() - self.began

    def state_of(self, name):
        """Returns the state of check `name`; None until it has ended."""
        with self._changed:
            return next((outcome.state for outcome in self.outcomes if outcome.name == name), None)

    def raise_if_stopping(self):
        """Raises Failed if all checks are being stopped."""
        if self.stopping:
            raise Failed(self.stopping)

    def run(self, group):
        """Runs the checks of a group in order, in parallel up to its width."""
        for check in group.checks:
            with self._changed:
                while self._busy and self._busy + check.processes > group.width:
                    self._changed.wait()
                self._busy += check.processes
            self.started.add(check.name)
            threading.Thread(target=self._run_check, args=(check, self.elapsed_s()), daemon=True).start()
        self.wait()

    def wait(self):
        """Waits for the running checks."""
        with self._changed:
            while self._busy:
                self._changed.wait()

    def _run_check(self, check, began_s):
        outcome = Outcome(check.name, "ok", check.processes, check.planned_s, round(began_s, 2))
        try:
            self._determine_outcome(check, outcome)
            outcome.seconds = round(self.elapsed_s() - began_s, 2)
            with self._changed:
                self.outcomes.append(outcome)
            self.write()
            took = f"{outcome.seconds:6.1f} s (planned {check.planned_s:3.0f})"
            print(f"{outcome.state:8} {check.name:36} {took}  {outcome.text}", flush=True)
        except Exception:
            # For example a full disk or a closed output: must not block `wait`.
            traceback.print_exc()
        finally:
            with self._changed:
                self._busy -= check.processes
                self._changed.notify_all()

    def _determine_outcome(self, check, outcome):
        """Runs the work of a check and fills in its outcome."""
        job = Job(self, check)
        try:
            self._raise_if_skipped(check)
            outcome.text = "; ".join([check.work(job), *job.notes])
        except Skipped as why:
            outcome.state, outcome.text = "skipped", str(why)
        except Differs as why:
            # JSON has no infinity.
            outcome.state, outcome.text, outcome.error = "differs", str(why), min(why.error, 1e300)
        except Failed as why:
            outcome.state, outcome.text = "interrupted" if self.stopping else "failed", str(why)
        except Exception as why:  # a bug in one check must not stop the others
            outcome.state, outcome.text = "failed", f"bug in the check: {why!r}"
        if outcome.state in ("failed", "differs"):
            outcome.log = [line[:500] for line in job.lines()[-12:]]

    def _raise_if_skipped(self, check):
        self.raise_if_stopping()
        reason = self.gate(self.outcomes)
        if reason:
            raise Skipped(reason)
        end_s = self.elapsed_s() + check.planned_s
        if end_s > self.budget_s:
            raise Skipped(f"would end after {end_s:.0f} s (planned), limit {self.budget_s:.0f} s")

    def result(self):
        """Returns the result so far."""
        with self._changed:
            outcomes = [asdict(outcome) for outcome in self.outcomes]
        return self.finish(
            {
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "state": self.state,
                "seconds": round(self.elapsed_s(), 1),
                "budget_s": self.budget_s,
                **self.facts,
                "checks": outcomes,
            }
        )

    def write(self):
        """Writes result.json and the archive, each atomically."""
        with self._writing:
            result = json.dumps(self.result(), indent=1) + "\n"
            part = self.out / "result.json.part"
            part.write_text(result)
            os.replace(part, self.out / "result.json")
            part = self.out / "gpu-check.tar.gz.part"
            with tarfile.open(part, "w:gz", compresslevel=6) as archive:
                for path in sorted(self.kept()):
                    try:
                        with open(path, "rb") as file:
                            # Keep the end of a large file.
                            file.seek(max(0, os.fstat(file.fileno()).st_size - KEPT_BYTES))
                            content = file.read(KEPT_BYTES)
                    except FileNotFoundError:
                        continue  # deleted by a running program
                    member = tarfile.TarInfo(f"gpu-check/{path.relative_to(self.work)}")
                    member.size, member.mtime = len(content), int(time.time())
                    archive.addfile(member, io.BytesIO(content))
                archive.add(self.out / "result.json", "gpu-check/result.json")
            os.replace(part, self.out / "gpu-check.tar.gz")

    def kept(self):
        """Yields the files of the work folder for the archive, without the bundle and checkpoints."""
        for folder, folders, files in os.walk(self.work):
            folders[:] = [name for name in folders if name not in ("gpu-bundle", "tmp", "checkpoints")]
            yield from (Path(folder) / name for name in files if name.endswith(KEPT))

    def interrupt(self, why):
        """Stops the running checks and records the reason."""
        self.stopping = why
        for session in list(self.sessions):
            end_session(session, grace_s=1.0)
        deadline = time.monotonic() + 10
        with self._changed:
            while self._busy and time.monotonic() < deadline:
                self._changed.wait(0.2)
        self.state = why
