"""The checks of launch/gpu-check.sh: what is run on a card, in which order, for how long by plan.

Order: what decides whether anything else means something (numbers in float64), then speed, alone on the card, then what
several ranks do. Correctness checks run side by side: most of their time is the start of CUDA.
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
from runner import PARENT, Check, Differs, Failed, Group, Interrupted, Runner, Skipped, ending, planned_wall, processes

BUNDLE = Path(__file__).resolve().parent
PROGRAM = BUNDLE / "drnas-dist"
PLAIN = BUNDLE / "plain"
# Processes that share the card at a time.
WIDTH = 4
# In the checks of faults: when a rank that gives no sign of life is lost, and how long the others may take to end.
HEARTBEAT_S = 10
SURVIVORS_S = 60
# Ways between ranks that share a card: by memory of the card (cudaIpc), of the host, of files, by the loopback
# interface. What NCCL is told where its own choice fails.
WAYS = [
    {"NCCL_CUMEM_ENABLE": "0"},
    {"NCCL_P2P_DISABLE": "1"},
    {"NCCL_P2P_DISABLE": "1", "NCCL_CUMEM_HOST_ENABLE": "0"},
    {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"},
]
# Unpacking and looking around, on a card.
PREPARE_S = 10
ASKED_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Images of a step while calls are counted, which do not depend on them: that may run beside other checks.
COUNTED_BATCH = 8
# Of `bench`: one to warm up, one to measure, two that are traced.
COUNTED_STEPS = 4
MOST_PROBED_S = 120
# The check that tries the WAYS, and how long it tries each.
FIRST_TOGETHER = "ranks-2"
WAY_S = 30


class Plan:
    """The checks, for a card or (dry) for the CPU."""

    def __init__(self, work, dry, torch, batch):
        self.work, self.dry = work, dry
        self.batch = 4 if dry else batch
        self.device = "cpu" if dry else "cuda"
        self.read_bytes = [0]
        self.reading = threading.Thread(target=machine.read_ahead, args=(torch, self.read_bytes), daemon=True)
        # "", or why several ranks cannot be started.
        self.obstacle = machine.raise_loopback() or machine.make_shared_memory() or self.other_card()
        # What torch's own Python needs: nothing of the bundle.
        self.python = {**os.environ, "TMPDIR": str(work / "tmp")}
        self.program = machine.environment(BUNDLE, work, torch, dry)
        # The published evaluation.
        (work / "network.toml").touch()
        names = ["darts_imagenet_stage1", "eval_cifar"] if dry else ["*"]
        self.golden = [path for name in names for path in sorted((BUNDLE / "golden").glob(f"{name}.safetensors"))]
        tiny = ["model.init_channels=12", "model.layers=3", "model.num_classes=4", "data.px=32", "run.threads=1"]
        self.tiny = tiny if dry else []

    def other_card(self):
        """Empty, or why the bundle's NCCL has no code for this card."""
        built, found = (BUNDLE / "architecture").read_text().strip(), machine.ask_card("compute_cap").replace(".", "")
        if self.dry or not found or built in found.splitlines():
            return ""
        return f"the bundle's NCCL is for architecture {built}; make one for this card with ARCHITECTURE={found}"

    def preloading(self, *libraries, **variables):
        """The program's variables, with libraries of the bundle loaded before the others."""
        loaded = [str(BUNDLE / "lib" / library) for library in libraries]
        before = self.program.get("LD_PRELOAD")
        return {**self.program, **variables, "LD_PRELOAD": ":".join([before] * bool(before) + loaded)}

    def groups(self):
        """All checks, in order."""
        look = [
            Check("libraries", 5, self.libraries),
            # The first to load them all.
            Check("doctor", 5, self.doctor, limit_s=240),
        ]
        numbers = [
            # First: it alone tells wrong code from rounding.
            self.verify("golden-fp64", "--precision", "fp64", planned_s=10),
            self.verify("golden-fp32", "--precision", "fp32", planned_s=30),
            # Channels last: the first steps are slow.
            self.verify("golden-bf16-cells-again", "--precision", "bf16", "--checkpoint-cells", planned_s=65),
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
            self.supernet(1, "bf16", "first", cells_again=True),
            # Takes the time that is left.
            Check("probe", 75, self.probe, limit_s=MOST_PROBED_S + 30),
        ]
        return [
            Group("look", 1, look),
            Group("numbers", WIDTH, numbers),
            Group("speed", 1, speed),
            Group("ranks", WIDTH, ranks),
            Group("faults", WIDTH, faults),
            Group("more", 1, more),
        ]

    # -- what is there ---------------------------------------------------------------------------------------------

    def libraries(self, job):
        """Waits for `read_ahead`, but not for ever: the disk may be slow."""
        deadline = time.monotonic() + 60
        while self.reading.is_alive() and time.monotonic() < deadline:
            job.runner.stop_if_asked()
            time.sleep(0.1)
        return f"{self.read_bytes[0] >> 20} MiB read{' so far' if self.reading.is_alive() else ''}"

    def doctor(self, job):
        def line(start):
            return next((line.strip() for line in job.lines() if line.strip().startswith(start)), "")

        job.run([PROGRAM, "doctor"], done=lambda: line("rank 0 of"))
        rank, libtorch, nccl = line("rank 0 of"), line("libtorch_cuda"), line("NCCL")
        if not self.dry:
            if "GPU 0" not in rank or "not found" in libtorch or "cannot be opened" in libtorch:
                raise Failed(f"no card can be used: {rank}; {libtorch}")
            if "not found" in nccl:
                self.obstacle = nccl
        # What the process that holds the card takes: `card_memory_mib` of everything else counts it too.
        job.runner.facts["held_mib"] = machine.ask_card("memory.used")
        return rank

    # -- numbers ---------------------------------------------------------------------------------------------------

    def verify(self, name, *options, planned_s=25):
        """Golden files on the device. Where some cannot be computed, all are tried once more: in the other layout; in
        float64, which cuDNN computes channels first in any case, without cuDNN."""
        last = "--channels-first" in options
        retry = ["--no-cudnn"] if "fp64" in options else [] if last else ["--channels-first"]
        how = "without cuDNN" if "fp64" in options else "with channels last" if last else "with channels first"

        def work(job):
            problems = self.verified(job, name, options)
            if not problems:
                return report.golden(self.work / f"{name}.jsonl")[2]
            others = [word for word in options if word != "--channels-first"]
            again = self.verified(job, f"{name}-again", [*others, *retry], record=f"record-{name}.jsonl")
            text = f"not {how} either: {again[0]}" if again else f"only {how}: {problems[0]}"
            if again or name != report.EXACT:
                raise Failed(text)
            # Float64 is here for its numbers.
            return text

        return Check(name, planned_s, work, limit_s=120)

    def verified(self, job, name, options, record=None):
        """What cannot be computed. Raises Differs for numbers that are not those of the files."""
        found = self.work / f"{name}.jsonl"
        # Its last line is the convolution that failed, where one did.
        environment = self.preloading("librecord.so", DRNAS_RECORD=str(self.work / record)) if record else None
        command = [PROGRAM, "verify", "--device", self.device, *options, "--json", found, *self.golden]
        code = job.wait(job.start(command, environment))
        problems, excesses, _ = report.golden(found)
        whole = len(report.lines(found)) == len(self.golden)
        if not whole:
            problems.append(f"{ending(code)}: {job.last_line()}")
        elif code not in (0, 1):
            job.remarks.append(f"{ending(code)} after all was done")
        # A small one does not hide what cannot be computed.
        if excesses and (not problems or excesses[0][0] >= report.ROUNDING):
            raise Differs(*excesses[0])
        return problems

    def gate(self, outcomes):
        """Without a card nothing can be checked; and numbers that are wrong in float64 are wrong code: nothing else is
        worth the time of the card then. (A kernel that the libraries lack is no such reason.)"""
        for outcome in outcomes:
            if (outcome.name, outcome.state) in (("doctor", "failed"), (report.EXACT, "differs")):
                return f"not tried: {outcome.name} failed, which comes first"
        return ""

    def run(self, command, config, out, second, *options):
        """The command of a run, with the bundle's shards; `second`: the name of those that are not trained on."""
        shards = ["--train", BUNDLE / "shards/train", second, BUNDLE / "shards/valid"]
        own = ["--config", BUNDLE / "configs" / config, "--out", f"runs/{out}", *sets(f"device={self.device}")]
        return [PROGRAM, command, *own, *shards, *options]

    def mpirun(self, count, command):
        """`command` on `count` ranks, which may have to share the card. Raises Skipped if they cannot get through."""
        if count == 1:
            return command
        if self.obstacle:
            raise Skipped(self.obstacle)
        share = [] if self.dry else ["--share-gpu"]
        return [BUNDLE / "openmpi/bin/mpirun", "--bind-to", "none", "-n", count, *command, *share]

    def small_search(self, count, precision, out, *options):
        """The command of a small search on `count` ranks."""
        own = sets(f"precision={precision}", *options)
        return self.mpirun(count, self.run("search-imagenet", "ranks.toml", out, "--valid", *own))

    def search(self, name, count, precision, planned_s):
        """A small search of four replicas on `count` ranks; in float64 it is compared with that on one rank."""

        def work(job):
            if name == FIRST_TOGETHER and not self.dry:
                run, how = self.joined(job, count, precision, name)
            else:
                run, how = name, ""
                job.run(self.small_search(count, precision, name), done=self.completion(name).exists)
            if precision != "fp64" or count == 1:
                return f"{len(report.steps(self.work / 'runs' / run))} steps"
            return self.agree(job, run) + how

        return Check(name, planned_s, work, processes=count)

    def joined(self, job, count, precision, name):
        """Makes the first search on several ranks. Where they do not get through on a card, other ways of NCCL are
        tried; the first that works is taken from then on. The run's name, and which way it took."""
        job.run(self.small_search(count, precision, name), done=self.completion(name).exists, may_fail=True)
        if self.completion(name).exists():
            return name, ""
        problem = job.last_line()
        if self.alone(job) == "failed":
            raise Failed(f"as on one rank: {problem}")
        for number, way in enumerate(WAYS, 1):
            run = f"{name}-{number}"
            command = self.small_search(count, precision, run, f"run.time_limit_s={WAY_S}")
            job.run(
                command, {**self.program, **way}, done=self.completion(run).exists, may_fail=True, limit_s=WAY_S + 15
            )
            if self.completion(run).exists():
                self.program = {**self.program, **way}
                job.runner.environment = self.program
                words = " ".join(f"{key}={value}" for key, value in way.items())
                return run, f"; only with {words}, else: {problem}"
        self.obstacle = f"ranks do not get through to one another: {problem}"
        raise Failed(f"in no way of NCCL: {problem}")

    def alone(self, job):
        """Waits for the search on one rank, which begins earlier; what came of it, None where it is not made."""
        deadline = time.monotonic() + job.limit_s()
        while "ranks-1" in job.runner.begun and not job.runner.state_of("ranks-1"):
            job.runner.stop_if_asked()
            if time.monotonic() > deadline:
                raise Failed("ranks-1 does not end: nothing to compare with")
            time.sleep(0.1)
        return job.runner.state_of("ranks-1")

    def completion(self, run):
        """The file that is there when a run has finished."""
        return self.work / "runs" / run / "finished.json"

    def measured(self, job, command, file, environment=None):
        """Runs what appends what it measured to `file`; its last line."""
        path = self.work / file
        before = len(report.lines(path))
        job.run([*command, "--json", path], environment, done=lambda: len(report.lines(path)) > before)
        return job.last_line()

    def agree(self, job, name):
        """Compares a run with that of one rank."""
        one, state = self.work / "runs/ranks-1", self.alone(job)
        if state != "ok":
            raise Skipped(f"the run is done, but ranks-1, to compare it with, is {state or 'not made'}")
        try:
            worst, steps = report.agreement([one, self.work / "runs" / name])
        except ValueError as why:
            raise Failed(str(why)) from None
        if worst > report.AGREEMENT:
            raise Failed(f"losses of {steps} steps differ from one rank's by {worst:.1e}, {report.AGREEMENT} allowed")
        return f"losses of {steps} steps equal one rank's to {worst:.1e}"

    def search_kl(self, job):
        # The gradient of the KL regulariser is compiled for the card when it is first needed.
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
        """Counts calls of CUDA and of libtorch's dispatcher in a step; lists the convolutions that the probe times."""
        record = self.work / f"record-stage{stage}.jsonl"

        def counted(job, *libraries, **variables):
            batch = self.batch if self.dry else COUNTED_BATCH
            command = [*self.bench(stage, "bf16", "last", batch), *blocks(1, 1, 1)]
            environment = self.preloading(*libraries, "librecord.so", DRNAS_RECORD=str(record), **variables)
            self.measured(job, command, f"calls-stage{stage}.jsonl", environment)
            return f"{sum('convolution' in line for line in report.lines(record))} kinds of convolutions"

        def work(job):
            try:
                return counted(job, "libcount.so", DRNAS_COUNT_DRIVER="1")
            except Failed as why:
                # Counting must not cost the list.
                record.unlink(missing_ok=True)
                return f"{counted(job)}; no calls counted: {why}"

        return Check(f"count-stage{stage}", 30, work)

    def plain_golden(self, job):
        files = [path for path in self.golden if path.name.startswith("darts_")]
        job.run([sys.executable, PLAIN / "check.py", "--device", self.device, "--float64", *files], self.python)
        return f"{len(files)} files"

    # -- speed -----------------------------------------------------------------------------------------------------

    def bench(self, stage, precision, layout, batch, replicas=1):
        """The command that times steps of the published supernet."""
        own = [f"device={self.device}", f"precision={precision}", f"channels_last={str(layout == 'last').lower()}"]
        own += [f"search.global_batch={batch}", f"search.replicas={replicas}"]
        own += ["run.time_limit_s=60", "run.start_limit_s=60", *self.tiny]
        return [PROGRAM, "bench", "--config", BUNDLE / "configs/search-imagenet.toml", "--stage", stage, *sets(*own)]

    def times(self):
        """Kernels are loaded when they are first used: three steps go before those that count."""
        return blocks(1, 1, 1) if self.dry else blocks(3, 3, 2)

    def supernet(self, stage, precision, layout, cells_again=False):
        def work(job):
            more = sets("checkpoint_cells=true") if cells_again else []
            command = [*self.bench(stage, precision, layout, self.batch), *more, *self.times()]
            return self.measured(job, command, "speed.jsonl")

        # Channels last: the first steps are slow.
        planned_s = 6 if layout == "first" else 38 if precision == "bf16" else 19
        name = f"speed-stage{stage}-{precision}-{layout}" + ("-cells-again" if cells_again else "")
        return Check(name, planned_s, work)

    def network(self, job):
        own = [f"device={self.device}", "precision=bf16", "evaluate.replicas=1", f"evaluate.global_batch={self.batch}"]
        if self.dry:
            own += [*self.tiny, "evaluate.auxiliary_weight=0"]
        command = [PROGRAM, "bench", "--config", "network.toml", "--genotype", "DrNAS_imagenet", *sets(*own)]
        return self.measured(job, [*command, *self.times()], "speed.jsonl")

    def plain(self, precision, layout):
        """Plain PyTorch, edge by edge: what the same steps cost without this program."""

        def work(job):
            command = [sys.executable, PLAIN / "time_steps.py", "--device", self.device, "--precision", precision]
            command += ["--stage", 1, "--batch", self.batch, *(["--channels-last"] if layout == "last" else [])]
            # To try all algorithms would take longer than the steps.
            command += ["--no-cudnn-benchmark"]
            if self.dry:
                command += "--px 32 --channels 12 --layers 3 --classes 4 --threads 1".split()
            times = blocks(1, 1, 1) if self.dry else blocks(2, 2, 1)
            return self.measured(job, [*command, *times], "plain.jsonl", self.python)

        return Check(f"plain-stage1-{precision}", 20, work)

    def probe(self, job):
        """Every kind of convolution of both stages, in both layouts and precisions: which layout is faster where."""
        records = sorted(self.work.glob("record-stage?.jsonl"))
        if not records:
            raise Skipped("no convolutions were recorded (count-stage1, count-stage2)")
        scale = 1 if self.dry else self.batch // COUNTED_BATCH
        left_s = job.runner.budget_s - job.runner.elapsed_s() - 10
        seconds = 5 if self.dry else round(min(MOST_PROBED_S, left_s))
        options = ["--seconds", seconds, "--scale", scale, "--steps", COUNTED_STEPS]
        command = [sys.executable, BUNDLE / "probe.py", "--device", self.device, *options, "--json", "probe.json"]
        try:
            job.run([*command, *records], self.python)
        except Failed as why:
            # There while a convolution runs: the one in which it ended.
            case = self.work / "probe.json.case"
            raise Failed(f"{why}; in {case.read_text().strip()}" if case.exists() else str(why)) from None
        return report.figures(self.work)["probe"][0]

    # -- several ranks on the card -------------------------------------------------------------------------------------

    def overlap(self, job):
        command = [*self.bench(1, "fp32", "first", self.batch, replicas=2), "--weights-only"]
        times = blocks(1 if self.dry else 3, 2, 1)
        self.measured(job, self.mpirun(2, [*command, *times]), "overlap.jsonl")
        steps = report.overlap(report.lines(self.work / "overlap.jsonl"))
        if self.dry:
            return "not traced on the CPU"
        if not steps:
            raise Failed("no reduction was traced")
        fraction = min(step["fraction"] for step in steps)
        text = f"{fraction:.2f} of the groups of reductions began before the backward pass ended"
        # Two processes take turns on the card: less than all is no fault yet.
        if fraction < 0.5:
            raise Failed(text)
        return text

    # -- faults --------------------------------------------------------------------------------------------------------

    def fault(self, job, number):
        """Of two ranks one is killed, or stops, while it trains: the other names it and ends, and mpirun with it."""
        name = job.check.name
        # Channels first: what is checked is who notices, not what cuDNN can compute.
        endless = ["search.steps_per_epoch=0", "search.stage.1.epochs=100000", "channels_last=false"]
        limits = ["run.time_limit_s=45", f"run.heartbeat_s={HEARTBEAT_S}"]
        launcher = job.start(self.small_search(2, "fp32", name, *endless, *limits))
        try:
            deadline = time.monotonic() + job.limit_s()
            while not report.steps(self.work / "runs" / name):
                job.runner.stop_if_asked()
                if launcher.poll() is not None:
                    raise Failed(f"no step was made, {ending(launcher.returncode)}: {job.last_line()}")
                if time.monotonic() > deadline:
                    raise Failed("no step was made")
                time.sleep(0.2)
            # Not one of the first steps, and the ranks have told one another of them.
            time.sleep(HEARTBEAT_S / 2)
            # The ranks are children of mpirun; the last one is not rank 0, which tells of it.
            victim = max(processes(PARENT, launcher.pid))
            sent = time.monotonic()
            os.kill(victim, number)
            code = job.wait(launcher, SURVIVORS_S)
            took = time.monotonic() - sent
        finally:
            job.end(launcher)
        named = [line for line in job.lines() if "lost rank" in line]
        if code == 0 or not named:
            raise Failed(f"after {took:.0f} s {ending(code)}, and nobody named the lost rank: {job.last_line()}")
        return f"ended {took:.0f} s after {number.name}: {named[0].strip()}"


def sets(*pairs):
    """--set for each KEY=VALUE."""
    return [word for pair in pairs for word in ("--set", pair)]


def blocks(warmup, steps, count):
    """How `bench` measures."""
    return ["--warmup", str(warmup), "--steps", str(steps), "--blocks", str(count)]


def chosen(name, patterns):
    """Whether one of the patterns, separated by commas, fits."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(","))


def main():
    parser = argparse.ArgumentParser(prog="gpu-check.sh BUNDLE", description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on the CPU, at tiny sizes")
    only = "checks to make, separated by commas; * and ? match"
    parser.add_argument("--only", default="*", metavar="NAMES", help=only)
    # What gpu-check.sh adds.
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
    # At once: to exit would wait for the libraries to be read.
    os._exit(code)


def run(options, began):
    """Makes the checks; the exit code."""
    found = importlib.util.find_spec("torch")  # not imported: that alone takes seconds
    if found is None:
        sys.exit(f"gpu-check: {sys.executable} has no torch; set PYTHON to one that has")
    torch = Path(found.submodule_search_locations[0])
    plan = Plan(options.work, options.dry, torch, options.batch)
    groups = plan.groups()
    for group in groups:
        group.checks = [check for check in group.checks if chosen(check.name, options.only)]
    if not any(group.checks for group in groups):
        sys.exit(f"gpu-check: no check is called {options.only}; launch/gpu/check.py lists them")
    runner = Runner(options.work, options.out, plan.program, options.seconds, began)
    runner.facts = {"dry": options.dry, "planned_s": round(PREPARE_S + planned_wall(groups))}
    runner.gate = plan.gate
    runner.finish = lambda result: {
        **result,
        "checks": report.settle(result["checks"]),
        "measured": report.figures(options.work),
    }

    def interrupted(number, _):
        ignore_signals()
        raise Interrupted(f"interrupted by {signal.Signals(number).name}")

    for number in ASKED_TO_END:
        signal.signal(number, interrupted)
    holder = None
    try:
        if not options.dry:
            holder = machine.hold_context()
            plan.reading.start()
        card = machine.ask_card("name,driver_version,memory.total,compute_cap,clocks.sm,clocks.max.sm")
        runner.facts |= {"card": card or "none", "machine": machine.facts()}
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
    """From here on it is only a moment to the end."""
    for number in ASKED_TO_END:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
