"""The checks of launch/gpu-check.sh, their order and their planned times.

Order: correctness in float64, without which nothing else is meaningful; then speed, with nothing else on the GPU; then
several ranks. Correctness checks run in parallel: most of their time is CUDA initialisation.
"""

import argparse
import fnmatch
import importlib.util
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import machine
import report
from runner import (
    PARENT,
    Check,
    Differs,
    Failed,
    Group,
    Interrupted,
    Runner,
    Skipped,
    describe_exit,
    planned_total_s,
    processes,
)

BUNDLE = Path(__file__).resolve().parent
PROGRAM = BUNDLE / "drnas-dist"
PLAIN = BUNDLE / "plain"
# Number of processes that may share the GPU.
WIDTH = 4
# Fault checks: heartbeat timeout, and how long the other ranks may take to exit.
HEARTBEAT_S = 10
SURVIVORS_S = 60
# NCCL settings to try if ranks that share the GPU cannot communicate by default: device memory (cudaIpc), host memory,
# files, loopback interface.
TRANSPORTS = [
    {"NCCL_CUMEM_ENABLE": "0"},
    {"NCCL_P2P_DISABLE": "1"},
    {"NCCL_P2P_DISABLE": "1", "NCCL_CUMEM_HOST_ENABLE": "0"},
    {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"},
]
# Unpacking and inspection of the machine.
PREPARE_S = 10
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Images per step when calls are counted. The counts do not depend on it; a small batch can run beside other checks.
COUNTED_BATCH = 8
# Steps of `bench`: one warm-up, one measured, two traced.
COUNTED_STEPS = 4
MAX_PROBE_S = 120
# The check that tries the TRANSPORTS, and the time limit of each.
FIRST_MULTI_RANK = "ranks-2"
TRANSPORT_S = 30


class Plan:
    """The checks, on a GPU or (dry) on the CPU."""

    def __init__(self, work, dry, torch, batch):
        self.work, self.dry = work, dry
        self.batch = 4 if dry else batch
        self.device = "cpu" if dry else "cuda"
        self.read_bytes = [0]
        self.reading = threading.Thread(target=machine.read_ahead, args=(torch, self.read_bytes), daemon=True)
        # Why several ranks cannot be started, or "".
        self.obstacle = machine.bring_up_loopback() or machine.create_dev_shm() or self.architecture_mismatch()
        # Environment of torch's own Python: nothing from the bundle.
        self.python = {**os.environ, "TMPDIR": str(work / "tmp")}
        self.program = machine.environment(BUNDLE, work, torch, dry)
        # An empty configuration is the published evaluation.
        (work / "network.toml").touch()
        names = ["darts_imagenet_stage1", "eval_cifar"] if dry else ["*"]
        self.golden = [path for name in names for path in sorted((BUNDLE / "golden").glob(f"{name}.safetensors"))]
        tiny = ["model.init_channels=12", "model.layers=3", "model.num_classes=4", "data.px=32", "run.threads=1"]
        self.tiny = tiny if dry else []

    def architecture_mismatch(self):
        """Returns an error message if the bundle's NCCL has no code for this GPU, or ""."""
        built, found = (BUNDLE / "architecture").read_text().strip(), machine.query_gpu("compute_cap").replace(".", "")
        if self.dry or not found or built in found.splitlines():
            return ""
        return f"NCCL of the bundle: expected architecture {found}, found {built}; rebuild with ARCHITECTURE={found}"

    def preloading(self, *libraries, **variables):
        """Returns the program's environment with libraries of the bundle preloaded."""
        loaded = [str(BUNDLE / "lib" / library) for library in libraries]
        before = self.program.get("LD_PRELOAD")
        return {**self.program, **variables, "LD_PRELOAD": ":".join([before] * bool(before) + loaded)}

    def groups(self):
        """Returns all checks, in order."""
        setup = [
            Check("libraries", 5, self.libraries),
            # The first process to load all libraries.
            Check("doctor", 5, self.doctor, limit_s=240),
        ]
        numbers = [
            # First: only float64 distinguishes wrong code from rounding.
            self.verify("golden-fp64", "--precision", "fp64", planned_s=10),
            self.verify("golden-fp32", "--precision", "fp32", planned_s=30),
            # With channels last the first steps are slow.
            self.verify("golden-bf16-checkpoint-cells", "--precision", "bf16", "--checkpoint-cells", planned_s=65),
            self.verify("golden-tf32-channels-first", "--precision", "tf32", "--channels-first"),
            self.search("ranks-1", 1, "fp64", planned_s=5),
            self.search("ranks-2", 2, "fp64", planned_s=6),
            self.search("ranks-2-bf16", 2, "bf16", planned_s=20),
            self.count(1),
            self.count(2),
            Check("search-nb201-kl", 5, self.search_kl),
            Check("evaluation", 10, self.evaluation),
            Check("plain-golden", 15, self.plain_golden),
        ]
        speed = [
            self.supernet(1, "bf16", "last"),
            self.supernet(1, "fp32", "first"),
            self.plain("bf16", "last"),
            self.plain("fp32", "first"),
            self.supernet(1, "bf16", "first"),
            self.supernet(1, "fp32", "last"),
            self.supernet(2, "bf16", "last"),
            Check("speed-network-bf16", 10, self.network),
            self.supernet(1, "tf32", "first"),
        ]
        ranks = [self.search("ranks-4", 4, "fp64", planned_s=6), Check("overlap", 8, self.overlap, processes=2)]
        faults = [
            Check("rank-killed", 15, lambda job: self.fault(job, signal.SIGKILL), processes=2),
            Check("rank-stopped", 35, lambda job: self.fault(job, signal.SIGSTOP), processes=2),
        ]
        more = [
            self.supernet(1, "bf16", "first", checkpoint_cells=True),
            # Uses the remaining time.
            Check("probe", 75, self.probe, limit_s=MAX_PROBE_S + 30),
        ]
        return [
            Group("setup", 1, setup),
            Group("numbers", WIDTH, numbers),
            Group("speed", 1, speed),
            Group("ranks", WIDTH, ranks),
            Group("faults", WIDTH, faults),
            Group("more", 1, more),
        ]

    # -- setup -----------------------------------------------------------------------------------------------------

    def libraries(self, job):
        """Waits for `read_ahead`, at most 60 s: the disk may be slow."""
        deadline = time.monotonic() + 60
        while self.reading.is_alive() and time.monotonic() < deadline:
            job.runner.raise_if_stopping()
            time.sleep(0.1)
        return f"{self.read_bytes[0] >> 20} MiB read{' so far' if self.reading.is_alive() else ''}"

    def doctor(self, job):
        def line_starting(start):
            return next((line.strip() for line in job.lines() if line.strip().startswith(start)), "")

        job.run([PROGRAM, "doctor"], done=lambda: line_starting("rank 0 of"))
        rank, libtorch, nccl = (line_starting(start) for start in ("rank 0 of", "libtorch_cuda", "NCCL"))
        if not self.dry:
            if "GPU 0" not in rank or "not found" in libtorch or "cannot be opened" in libtorch:
                raise Failed(f"no usable GPU: {rank}; {libtorch}")
            if "not found" in nccl:
                self.obstacle = nccl
        # Memory of the process that holds the context, which every `card_memory_mib` includes.
        job.runner.facts["held_mib"] = machine.query_gpu("memory.used")
        return rank

    # -- correctness -----------------------------------------------------------------------------------------------

    def verify(self, name, *options, planned_s=25):
        """Compares golden files on the device. If some cannot be computed, all are retried in the other layout, or in
        float64, which cuDNN always computes channels first, without cuDNN."""
        first = "--channels-first" in options
        retry = ["--no-cudnn"] if "fp64" in options else [] if first else ["--channels-first"]
        how = "without cuDNN" if "fp64" in options else "with channels last" if first else "with channels first"

        def work(job):
            problems = self.verified(job, name, options)
            if not problems:
                return report.golden(self.work / f"{name}.jsonl")[2]
            others = [word for word in options if word != "--channels-first"]
            still = self.verified(job, f"{name}-retry", [*others, *retry], record=f"record-{name}.jsonl")
            text = f"also fails {how}: {still[0]}" if still else f"works only {how}: {problems[0]}"
            if still or name != report.EXACT:
                raise Failed(text)
            # In float64 only the values matter, not the kernels.
            return text

        return Check(name, planned_s, work, limit_s=120)

    def verified(self, job, name, options, record=None):
        """Returns the files that cannot be computed. Raises Differs if an error is above its tolerance."""
        found = self.work / f"{name}.jsonl"
        # If a convolution fails, it is the last line of the record.
        environment = self.preloading("librecord.so", DRNAS_RECORD=str(self.work / record)) if record else None
        command = [PROGRAM, "verify", "--device", self.device, *options, "--json", found, *self.golden]
        code = job.wait(job.start(command, environment))
        problems, excesses, _ = report.golden(found)
        complete = len(report.lines(found)) == len(self.golden)
        if not complete:
            problems.append(f"{describe_exit(code)}: {job.last_line()}")
        elif code not in (0, 1):
            job.notes.append(f"{describe_exit(code)} after completion")
        # A small error must not hide files that cannot be computed.
        if excesses and (not problems or excesses[0][0] >= report.ROUNDING):
            raise Differs(*excesses[0])
        return problems

    def gate(self, outcomes):
        """Returns a reason to skip all further checks, or "". Reasons: no usable GPU, or wrong values in float64, which
        mean wrong code. (A kernel missing from the libraries is no reason.)"""
        for outcome in outcomes:
            if (outcome.name, outcome.state) in (("doctor", "failed"), (report.EXACT, "differs")):
                return f"not run because {outcome.name} failed"
        return ""

    def run(self, command, config, out, second, *options):
        """Returns the command of a run on the bundle's shards; `second`: the option for the second shard set."""
        shards = ["--train", BUNDLE / "shards/train", second, BUNDLE / "shards/valid"]
        own = ["--config", BUNDLE / "configs" / config, "--out", f"runs/{out}", *sets(f"device={self.device}")]
        return [PROGRAM, command, *own, *shards, *options]

    def mpirun(self, count, command):
        """Returns `command` on `count` ranks that share the GPU. Raises Skipped if ranks cannot communicate."""
        if count == 1:
            return command
        if self.obstacle:
            raise Skipped(self.obstacle)
        share = [] if self.dry else ["--share-gpu"]
        return [BUNDLE / "openmpi/bin/mpirun", "--bind-to", "none", "-n", count, *command, *share]

    def small_search(self, count, precision, out, *options):
        """Returns the command of a small search on `count` ranks."""
        own = sets(f"precision={precision}", *options)
        return self.mpirun(count, self.run("search-imagenet", "ranks.toml", out, "--valid", *own))

    def search(self, name, count, precision, planned_s):
        """Runs a small search with four replicas on `count` ranks; in float64 compares it with one rank."""

        def work(job):
            if name == FIRST_MULTI_RANK and not self.dry:
                run, how = self.first_multi_rank_search(job, count, precision, name)
            else:
                run, how = name, ""
                job.run(self.small_search(count, precision, name), done=self.completion(name).exists)
            if precision != "fp64" or count == 1:
                return f"{len(report.steps(self.work / 'runs' / run))} steps"
            return self.compare_with_one_rank(job, run) + how

        return Check(name, planned_s, work, processes=count)

    def first_multi_rank_search(self, job, count, precision, name):
        """Runs the first search on several ranks. If NCCL fails on the GPU, tries other transports and keeps the first
        one that works. Returns the run's name and a text about the transport."""
        job.run(self.small_search(count, precision, name), done=self.completion(name).exists, may_fail=True)
        if self.completion(name).exists():
            return name, ""
        problem = job.last_line()
        if self.one_rank_state(job) == "failed":
            raise Failed(f"also fails on one rank: {problem}")
        for number, transport in enumerate(TRANSPORTS, 1):
            run = f"{name}-{number}"
            command = self.small_search(count, precision, run, f"run.time_limit_s={TRANSPORT_S}")
            environment = {**self.program, **transport}
            done = self.completion(run).exists
            job.run(command, environment, done=done, may_fail=True, limit_s=TRANSPORT_S + 15)
            if self.completion(run).exists():
                self.program = {**self.program, **transport}
                job.runner.environment = self.program
                words = " ".join(f"{key}={value}" for key, value in transport.items())
                return run, f"; works only with {words}, otherwise: {problem}"
        self.obstacle = f"ranks cannot communicate: {problem}"
        raise Failed(f"with no NCCL transport: {problem}")

    def one_rank_state(self, job):
        """Waits for the search on one rank, which starts earlier; returns its state, None if it does not run."""
        deadline = time.monotonic() + job.limit_s()
        while "ranks-1" in job.runner.started and not job.runner.state_of("ranks-1"):
            job.runner.raise_if_stopping()
            if time.monotonic() > deadline:
                raise Failed("ranks-1, the run to compare with, does not end")
            time.sleep(0.1)
        return job.runner.state_of("ranks-1")

    def completion(self, run):
        """Returns the path of the file that marks a finished run."""
        return self.work / "runs" / run / "finished.json"

    def measured(self, job, command, file, environment=None):
        """Runs a command that appends its measurement to `file`; returns the last line of its output."""
        path = self.work / file
        before = len(report.lines(path))
        job.run([*command, "--json", path], environment, done=lambda: len(report.lines(path)) > before)
        return job.last_line()

    def compare_with_one_rank(self, job, name):
        """Compares the losses of a run with those on one rank."""
        one, state = self.work / "runs/ranks-1", self.one_rank_state(job)
        if state != "ok":
            raise Skipped(f"the run is done, but ranks-1, the run to compare with, is {state or 'not run'}")
        try:
            worst, steps = report.agreement([one, self.work / "runs" / name])
        except ValueError as why:
            raise Failed(str(why)) from None
        if worst > report.AGREEMENT:
            text = f"losses of {steps} steps differ from those on one rank by {worst:.1e}"
            raise Failed(f"{text}, tolerance {report.AGREEMENT}")
        return f"losses of {steps} steps equal those on one rank to {worst:.1e}"

    def search_kl(self, job):
        # The gradient of the KL regulariser is compiled for the GPU at first use.
        own = ["--dataset", "cifar10", *sets("model.num_classes=4", "data.px=16", "data.pad=0")]
        job.run(self.run("search-nb201", "kl.toml", "kl", "--valid", *own), done=self.completion("kl").exists)
        return f"{len(report.steps(self.work / 'runs/kl'))} steps, two stages"

    def evaluation(self, job):
        command = self.run(
            "evaluate-imagenet", "evaluation.toml", "evaluation", "--test", "--genotype", "DrNAS_imagenet"
        )
        job.run(command, done=self.completion("evaluation").exists)
        return f"{len(report.steps(self.work / 'runs/evaluation'))} steps, two tests"

    def count(self, stage):
        """Counts CUDA and libtorch calls per step, and records the convolutions that the probe times."""
        record = self.work / f"record-stage{stage}.jsonl"

        def counted(job, *libraries, **variables):
            batch = self.batch if self.dry else COUNTED_BATCH
            command = [*self.bench(stage, "bf16", "last", batch), *blocks(1, 1, 1)]
            environment = self.preloading(*libraries, "librecord.so", DRNAS_RECORD=str(record), **variables)
            self.measured(job, command, f"calls-stage{stage}.jsonl", environment)
            return f"{sum('convolution' in line for line in report.lines(record))} distinct convolutions"

        def work(job):
            try:
                return counted(job, "libcount.so", DRNAS_COUNT_DRIVER="1")
            except Failed as why:
                # The record must not be lost if counting fails.
                record.unlink(missing_ok=True)
                return f"{counted(job)}; calls not counted: {why}"

        return Check(f"count-stage{stage}", 30, work)

    def plain_golden(self, job):
        files = [path for path in self.golden if path.name.startswith("darts_")]
        job.run([sys.executable, PLAIN / "check.py", "--device", self.device, "--float64", *files], self.python)
        return f"{len(files)} files"

    # -- speed -----------------------------------------------------------------------------------------------------

    def bench(self, stage, precision, layout, batch, replicas=1):
        """Returns the command that times steps of the published supernet."""
        own = [f"device={self.device}", f"precision={precision}", f"channels_last={str(layout == 'last').lower()}"]
        own += [f"search.global_batch={batch}", f"search.replicas={replicas}"]
        own += ["run.time_limit_s=60", "run.start_limit_s=60", *self.tiny]
        return [PROGRAM, "bench", "--config", BUNDLE / "configs/search-imagenet.toml", "--stage", stage, *sets(*own)]

    def times(self):
        """Returns the options of a timing. Three warm-up steps, since kernels are loaded at first use."""
        return blocks(1, 1, 1) if self.dry else blocks(3, 3, 2)

    def supernet(self, stage, precision, layout, checkpoint_cells=False):
        def work(job):
            more = sets("checkpoint_cells=true") if checkpoint_cells else []
            command = [*self.bench(stage, precision, layout, self.batch), *more, *self.times()]
            return self.measured(job, command, "speed.jsonl")

        # With channels last the first steps are slow.
        planned_s = 6 if layout == "first" else 38 if precision == "bf16" else 19
        name = f"speed-stage{stage}-{precision}-{layout}" + ("-checkpoint-cells" if checkpoint_cells else "")
        return Check(name, planned_s, work)

    def network(self, job):
        own = [f"device={self.device}", "precision=bf16", "evaluate.replicas=1", f"evaluate.global_batch={self.batch}"]
        if self.dry:
            own += [*self.tiny, "evaluate.auxiliary_weight=0"]
        command = [PROGRAM, "bench", "--config", "network.toml", "--genotype", "DrNAS_imagenet", *sets(*own)]
        return self.measured(job, [*command, *self.times()], "speed.jsonl")

    def plain(self, precision, layout):
        """Times the same steps in plain PyTorch, edge by edge, as a baseline."""

        def work(job):
            command = [sys.executable, PLAIN / "time_steps.py", "--device", self.device, "--precision", precision]
            command += ["--stage", 1, "--batch", self.batch, *(["--channels-last"] if layout == "last" else [])]
            # cuDNN's algorithm search would take longer than the steps.
            command += ["--no-cudnn-benchmark"]
            if self.dry:
                command += "--px 32 --channels 12 --layers 3 --classes 4 --threads 1".split()
            times = blocks(1, 1, 1) if self.dry else blocks(2, 2, 1)
            return self.measured(job, [*command, *times], "plain.jsonl", self.python)

        return Check(f"plain-stage1-{precision}", 20, work)

    def probe(self, job):
        """Times every distinct convolution of both stages in both layouts and precisions."""
        records = sorted(self.work.glob("record-stage?.jsonl"))
        if not records:
            raise Skipped("no convolutions were recorded (count-stage1, count-stage2)")
        scale = 1 if self.dry else self.batch // COUNTED_BATCH
        left_s = job.runner.budget_s - job.runner.elapsed_s() - 10
        seconds = 5 if self.dry else round(min(MAX_PROBE_S, left_s))
        options = ["--seconds", seconds, "--scale", scale, "--steps", COUNTED_STEPS]
        command = [sys.executable, BUNDLE / "probe.py", "--device", self.device, *options, "--json", "probe.json"]
        try:
            job.run([*command, *records], self.python)
        except Failed as why:
            # Exists while a convolution runs, and names it.
            case = self.work / "probe.json.case"
            raise Failed(f"{why}; in {case.read_text().strip()}" if case.exists() else str(why)) from None
        return report.figures(self.work)["probe"][0]

    # -- several ranks on the GPU --------------------------------------------------------------------------------------

    def overlap(self, job):
        command = [*self.bench(1, "fp32", "first", self.batch, replicas=2), "--weights-only"]
        times = blocks(1 if self.dry else 3, 2, 1)
        self.measured(job, self.mpirun(2, [*command, *times]), "overlap.jsonl")
        steps = report.overlap(report.lines(self.work / "overlap.jsonl"))
        if self.dry:
            return "no trace on the CPU"
        if not steps:
            raise Failed("no reduction was traced")
        fraction = min(step["fraction"] for step in steps)
        text = f"{fraction:.2f} of the groups of reductions started before the end of the backward pass"
        # Two processes take turns on the GPU, so not every group can start early.
        if fraction < 0.5:
            raise Failed(text)
        return text

    # -- faults --------------------------------------------------------------------------------------------------------

    def fault(self, job, number):
        """Kills or stops one of two ranks during training: the other must name it and exit, and so must mpirun."""
        name = job.check.name
        # Channels first: this check does not depend on the layout.
        endless = ["search.steps_per_epoch=0", "search.stage.1.epochs=100000", "channels_last=false"]
        limits = ["run.time_limit_s=45", f"run.heartbeat_s={HEARTBEAT_S}"]
        launcher = job.start(self.small_search(2, "fp32", name, *endless, *limits))
        try:
            deadline = time.monotonic() + job.limit_s()
            while not report.steps(self.work / "runs" / name):
                job.runner.raise_if_stopping()
                if launcher.poll() is not None:
                    raise Failed(f"no training step, {describe_exit(launcher.returncode)}: {job.last_line()}")
                if time.monotonic() > deadline:
                    raise Failed("timed out: no training step")
                time.sleep(0.2)
            # Past the first steps, and heartbeats have been exchanged.
            time.sleep(HEARTBEAT_S / 2)
            # The ranks are children of mpirun; the last one is not rank 0, which reports the loss.
            victim = max(processes(PARENT, launcher.pid))
            sent = time.monotonic()
            os.kill(victim, number)
            code = job.wait(launcher, SURVIVORS_S)
            took = time.monotonic() - sent
        finally:
            job.end(launcher)
        named = [line for line in job.lines() if "lost rank" in line]
        if code == 0 or not named:
            raise Failed(f"after {took:.0f} s {describe_exit(code)}, and no rank named the lost one: {job.last_line()}")
        return f"exited {took:.0f} s after {number.name}: {named[0].strip()}"


def sets(*pairs):
    """Returns --set for each KEY=VALUE."""
    return [word for pair in pairs for word in ("--set", pair)]


def blocks(warmup, steps, count):
    """Returns the timing options of `bench`."""
    return ["--warmup", str(warmup), "--steps", str(steps), "--blocks", str(count)]


def matches(name, patterns):
    """Whether `name` matches one of the comma-separated patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(","))


def main():
    parser = argparse.ArgumentParser(prog="gpu-check.sh BUNDLE", description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on the CPU, at tiny sizes")
    only = "checks to run, separated by commas; * and ? are wildcards"
    parser.add_argument("--only", default="*", metavar="NAMES", help=only)
    # Set by gpu-check.sh.
    parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--spent", type=int, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        code = run(options, time.monotonic() - options.spent)
    finally:
        if not options.keep:
            shutil.rmtree(options.work, ignore_errors=True)
    sys.stdout.flush()
    # Exit at once: a normal exit would wait for the thread that reads the libraries.
    os._exit(code)


def run(options, began):
    """Runs the checks; returns the exit code."""
    found = importlib.util.find_spec("torch")  # not imported, which takes seconds
    if found is None:
        sys.exit(f"gpu-check: {sys.executable} has no torch; set PYTHON to a Python with torch")
    torch = Path(found.submodule_search_locations[0])
    plan = Plan(options.work, options.dry, torch, options.batch)
    groups = plan.groups()
    for group in groups:
        group.checks = [check for check in group.checks if matches(check.name, options.only)]
    if not any(group.checks for group in groups):
        sys.exit(f"gpu-check: no check matches {options.only}; launch/gpu/check.py lists the checks")
    runner = Runner(options.work, options.out, plan.program, options.seconds, began)
    runner.facts = {"dry": options.dry, "planned_s": round(PREPARE_S + planned_total_s(groups))}
    runner.gate = plan.gate
    runner.finish = lambda result: {
        **result,
        "checks": report.settle(result["checks"]),
        "measured": report.figures(options.work),
    }

    def interrupted(number, _):
        ignore_signals()
        raise Interrupted(f"interrupted by {signal.Signals(number).name}")

    for number in STOP_SIGNALS:
        signal.signal(number, interrupted)
    holder = None
    try:
        if not options.dry:
            holder = machine.hold_context()
            plan.reading.start()
        gpu = machine.query_gpu("name,driver_version,memory.total,compute_cap,clocks.sm,clocks.max.sm")
        runner.facts |= {"card": gpu or "none", "machine": machine.facts()}
        runner.write()
        for group in groups:
            runner.run(group)
        ignore_signals()
        runner.state = "done"
    except Interrupted as why:
        runner.interrupt(str(why))
    finally:
        if holder:
            holder.kill()
        runner.write()
    result = runner.result()
    print(f"\n{report.summary(result)}\n{options.out / 'result.json'}")
    if runner.state != "done":
        return 130
    return int(any(check["state"] == "failed" for check in result["checks"]))


def ignore_signals():
    """Ignores stop signals during the final steps."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
