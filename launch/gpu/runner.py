"""Runs checks: some side by side, within a limit of time, each with its log. What is known is always on disk."""

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

# What of the work folder is kept, and how much of one file.
KEPT = (".log", ".json", ".jsonl", ".toml", ".txt", ".case")
KEPT_BYTES = 2 << 20
# Between the end by plan and the end by force.
GRACE_S = 20


class Failed(Exception):
    """A check did not find what it should; the text says what it found."""


class Differs(Exception):
    """A check is off by more than is allowed: by `error`, relative. What that means, report.settle knows."""

    def __init__(self, error, text):
        super().__init__(text)
        self.error = error


class Skipped(Exception):
    """A check cannot be made; the text says why."""


class Interrupted(BaseException):
    """A signal asks the whole to end."""


@dataclass
class Check:
    """One check. `work` does it: returns a text, or raises Failed or Skipped."""

    name: str
    planned_s: float  # on a card
    work: Callable[["Job"], str]
    processes: int = 1
    limit_s: float = 90  # for each of its commands


@dataclass
class Group:
    """Checks that may run side by side, up to `width` processes."""

    name: str
    width: int
    checks: list


@dataclass
class Outcome:
    """What came of a check: ok, failed, skipped, interrupted; or differs: report.settle makes it rounding or failed."""

    name: str
    state: str
    processes: int
    planned_s: float
    began_s: float
    seconds: float = 0.0
    text: str = ""
    error: float | None = None
    log: list = field(default_factory=list)


def planned_wall(groups):
    """Seconds that the groups take if each check takes what is planned: as `Runner.run` starts them."""
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


# What /proc/PID/stat has behind the name, which may hold anything.
STATE, PARENT, SESSION = 0, 1, 3


def processes(which, value):
    """Processes whose PARENT or SESSION is `value` and which still run, zombies apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[which] == str(value) and fields[STATE] not in "ZX":
                found.append(int(entry.name))
    return found


def end_session(session, grace_s=3.0):
    """Ends every process of a session: by SIGTERM, and after a while by SIGKILL."""
    for number, wait_s in (signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0):
        for pid in processes(SESSION, session):
            try:
                os.kill(pid, number)
                # One that is stopped would not hear of it.
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + wait_s
        while processes(SESSION, session) and time.monotonic() < deadline:
            time.sleep(0.05)


def ending(code):
    """How a process ended, in words."""
    return f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


class Job:
    """What a check works with: its log, and commands that end with it."""

    def __init__(self, runner, check):
        self.runner, self.check = runner, check
        self.log = runner.work / f"{check.name}.log"
        self.began = time.monotonic()
        self.remarks = []

    def start(self, command, environment=None):
        """Starts a command in a session of its own; its output goes to the log."""
        self.runner.stop_if_asked()
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
            # Asked in between: `interrupt` may not have seen this one.
            end_session(process.pid)
            self.runner.stop_if_asked()
        return process

    def limit_s(self, most_s=None):
        """Seconds that one more command may run, `most_s` at most. Raises Failed when there are none."""
        left_s = self.runner.budget_s + GRACE_S - self.runner.elapsed_s()
        if left_s <= 0:
            raise Failed("the time is up")
        return min(most_s or self.check.limit_s, left_s)

    def wait(self, process, limit_s=None):
        """The exit code. Raises Failed, and ends the command, when it takes too long."""
        try:
            limit_s = self.limit_s(limit_s)
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {limit_s:.0f} s") from None
        finally:
            self.end(process)

    def end(self, process):
        """Ends a command and all that it left running."""
        end_session(process.pid)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            # In the driver, from which not even SIGKILL brings it back.
            self.remarks.append(f"process {process.pid} cannot be ended")
        self.runner.sessions.discard(process.pid)

    def run(self, command, environment=None, done=None, may_fail=False, limit_s=None):
        """Runs a command to its end. Raises Failed unless it ends with 0, or is `done()` all the same: libraries may
        crash when a process lets go of a card. `may_fail`: the caller looks at what came of it."""
        try:
            code = self.wait(self.start(command, environment), limit_s)
            if code != 0 and done and done():
                self.remarks.append(f"{ending(code)} after all was done")
            elif code != 0:
                raise Failed(f"{ending(code)}: {self.last_line()}")
        except Failed:
            self.runner.stop_if_asked()
            if not may_fail:
                raise

    def lines(self):
        """The log so far, without empty lines."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return [line for line in text.splitlines() if line.strip()]

    def last_line(self):
        """The last line of the log that tells something: the program's own goes before mpirun's banners."""
        lines = [line.strip() for line in self.lines() if line.strip("-= ")]
        own = [line for line in lines if re.match(r"error: |rank \d+ on ", line)]
        return (own or lines)[-1][:300] if lines else "it said nothing"


class Runner:
    """Makes checks and keeps `out`/result.json and `out`/gpu-check.tar.gz true."""

    def __init__(self, work, out, environment, budget_s, began):
        self.work, self.out, self.environment, self.budget_s, self.began = work, out, environment, budget_s, began
        self.facts = {}
        self.begun = set()
        self.outcomes = []
        self.sessions = set()
        self.stopping = ""
        self.state = "running"
        # Given the outcomes: why no further check makes sense, or "".
        self.gate = lambda outcomes: ""
        # Given the result without its figures: adds them, and settles what is open.
        self.finish = lambda result: result
        self._busy = 0
        self._changed = threading.Condition()
        self._writing = threading.Lock()

    def elapsed_s(self):
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def state_of(self, name):
        """What came of the check `name`; None until it has ended."""
        with self._changed:
            return next((outcome.state for outcome in self.outcomes if outcome.name == name), None)

    def stop_if_asked(self):
        """Raises Failed when everything is to end."""
        if self.stopping:
            raise Failed(self.stopping)

    def run(self, group):
        """Makes the checks of a group, in order, as many at a time as its width allows."""
        for check in group.checks:
            with self._changed:
                while self._busy and self._busy + check.processes > group.width:
                    self._changed.wait()
                self._busy += check.processes
            self.begun.add(check.name)
            threading.Thread(target=self._make, args=(check, self.elapsed_s()), daemon=True).start()
        self.wait()

    def wait(self):
        """Waits for the checks that run."""
        with self._changed:
            while self._busy:
                self._changed.wait()

    def _make(self, check, began_s):
        outcome = Outcome(check.name, "ok", check.processes, check.planned_s, round(began_s, 2))
        try:
            self._judge(check, outcome)
            outcome.seconds = round(self.elapsed_s() - began_s, 2)
            with self._changed:
                self.outcomes.append(outcome)
            self.write()
            took = f"{outcome.seconds:6.1f} s (planned {check.planned_s:3.0f})"
            print(f"{outcome.state:8} {check.name:36} {took}  {outcome.text}", flush=True)
        except Exception:
            # A full disk, a closed output: no reason to wait for this check for ever.
            traceback.print_exc()
        finally:
            with self._changed:
                self._busy -= check.processes
                self._changed.notify_all()

    def _judge(self, check, outcome):
        """Does the work of a check and notes what came of it."""
        job = Job(self, check)
        try:
            self._may_begin(check)
            outcome.text = "; ".join([check.work(job), *job.remarks])
        except Skipped as why:
            outcome.state, outcome.text = "skipped", str(why)
        except Differs as why:
            # JSON has no infinity.
            outcome.state, outcome.text, outcome.error = "differs", str(why), min(why.error, 1e300)
        except Failed as why:
            outcome.state, outcome.text = "interrupted" if self.stopping else "failed", str(why)
        except Exception as why:  # a mistake in a check is no reason to lose the others
            outcome.state, outcome.text = "failed", f"in the check itself: {why!r}"
        if outcome.state in ("failed", "differs"):
            outcome.log = [line[:500] for line in job.lines()[-12:]]

    def _may_begin(self, check):
        self.stop_if_asked()
        closed = self.gate(self.outcomes)
        if closed:
            raise Skipped(closed)
        end_s = self.elapsed_s() + check.planned_s
        if end_s > self.budget_s:
            raise Skipped(f"would end after {end_s:.0f} s by plan, the limit is {self.budget_s:.0f} s")

    def result(self):
        """All that is known."""
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
        """Writes result.json and the archive, each whole or not at all."""
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
                            # The end of a file tells more than its beginning.
                            file.seek(max(0, os.fstat(file.fileno()).st_size - KEPT_BYTES))
                            content = file.read(KEPT_BYTES)
                    except FileNotFoundError:
                        continue  # programs are at work
                    member = tarfile.TarInfo(f"gpu-check/{path.relative_to(self.work)}")
                    member.size, member.mtime = len(content), int(time.time())
                    archive.addfile(member, io.BytesIO(content))
                archive.add(self.out / "result.json", "gpu-check/result.json")
            os.replace(part, self.out / "gpu-check.tar.gz")

    def kept(self):
        """Files of the work folder that belong into the archive: not the bundle, not checkpoints."""
        for folder, folders, files in os.walk(self.work):
            folders[:] = [name for name in folders if name not in ("gpu-bundle", "tmp", "checkpoints")]
            yield from (Path(folder) / name for name in files if name.endswith(KEPT))

    def interrupt(self, why):
        """Ends what runs and notes it."""
        self.stopping = why
        for session in list(self.sessions):
            end_session(session, grace_s=1.0)
        deadline = time.monotonic() + 10
        with self._changed:
            while self._busy and time.monotonic() < deadline:
                self._changed.wait(0.2)
        self.state = why
