"""Evaluates golden files and runs, and summarises measurements."""

import json

# Tolerance of float64 losses: a different order of summation, amplified by some training steps.
AGREEMENT = 1e-6
# Larger errors of a golden file cannot be rounding; unrelated tensors have errors of 1 and more.
ROUNDING = 0.5
EXACT = "golden-fp64"


def lines(path):
    """Returns the objects of a JSON-lines file, none if it is missing. An incomplete line is skipped."""
    found = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                pass
    return found


def steps(run):
    """Returns the step records of a run folder."""
    return [line for line in lines(run / "metrics.jsonl") if line["event"] == "step"]


# -- golden files ----------------------------------------------------------------------------------------------------


def golden(path):
    """Summarises the output of `verify --json`. Returns (problems, excesses, text): files that could not be computed,
    errors above their tolerance (largest first), and a description of the worst error."""
    problems, excesses, worst = [], [], None
    for file in lines(path):
        if file["problem"]:
            problems.append(f"{file['file']}: {file['problem']}")
        for finding in file["findings"]:
            # A non-finite error is null.
            error = float("inf") if finding["error"] is None else finding["error"]
            if not finding["pass"]:
                excesses.append(
                    (error, f"{file['file']}: {finding['kind']}: error {error:.1e}, tolerance {finding['allowed']:.0e}")
                )
            ratio = error / finding["allowed"] if finding["allowed"] else 0.0
            if worst is None or ratio > worst[0]:
                worst = (
                    ratio,
                    f"worst: {finding['kind']}, error {error:.1e}, tolerance {finding['allowed']:.0e} ({file['file']})",
                )
    return problems, sorted(excesses, reverse=True), worst[1] if worst else "nothing compared"


def settle(checks):
    """Replaces state `differs` by `rounding` if float64 matches and the error is small, else by `failed`."""
    exact = any(check["name"].startswith(EXACT) and check["state"] == "ok" for check in checks)
    for check in checks:
        if check["state"] == "differs":
            check["state"] = "rounding" if exact and check["error"] < ROUNDING else "failed"
    return checks


# -- runs --------------------------------------------------------------------------------------------------------------


def agreement(runs):
    """Returns the largest relative difference of a loss from that of the first run, and the number of steps. Raises
    ValueError if the runs differ in length."""
    losses = [[(step["loss"], step["architecture_loss"] or 0.0) for step in steps(run)] for run in runs]
    if not losses[0] or any(len(other) != len(losses[0]) for other in losses):
        raise ValueError(f"steps of {', '.join(run.name for run in runs)}: {[len(one) for one in losses]}")
    worst = 0.0
    for other in losses[1:]:
        for one, two in zip(losses[0], other):
            for a, b in zip(one, two):
                difference = abs(a - b) / max(abs(a), 1e-12)
                # NaN never agrees.
                worst = max(worst, difference if difference == difference else float("inf"))
    return worst, len(losses[0])


def overlap(measured):
    """Returns, for each traced step, the groups of reductions and how many started before the end of the backward pass;
    `fraction`, 0..1: of those that can."""
    found = []
    for trace in (line["trace"] for line in measured if line.get("trace")):
        ends = trace["backward_ends_ms"]
        for step, end in enumerate(ends):
            begins = [reduction["from_ms"] for reduction in trace["reductions"] if reduction["step"] == step]
            if begins:
                early = sum(begin < end for begin in begins)
                found.append(
                    {
                        "step": step,
                        "groups": len(begins),
                        "before_backward_ended": early,
                        # The last group starts after the backward pass and cannot overlap it.
                        "fraction": min(1.0, early / (len(begins) - 1)) if len(begins) > 1 else 1.0,
                        "lead_ms": end - min(begins),
                    }
                )
    return found


# -- figures -----------------------------------------------------------------------------------------------------------


def median(values):
    """Returns the upper median."""
    return sorted(values)[len(values) // 2]


def figures(work):
    """Collects all measurements from the files of the work folder."""
    probe = work / "probe.json"
    counts = ("what", "precision", "channels_last", "global_batch", "calls_per_step")
    return {
        "golden": {path.stem: lines(path) for path in sorted(work.glob("golden-*.jsonl"))},
        "speed": lines(work / "speed.jsonl"),
        "plain": lines(work / "plain.jsonl"),
        "overlap": overlap(lines(work / "overlap.jsonl")),
        "calls": [
            {key: line[key] for key in counts} for path in sorted(work.glob("calls-*.jsonl")) for line in lines(path)
        ],
        "dispatched": {path.stem: recorded(path) for path in sorted(work.glob("record-*.jsonl"))},
        # The archive contains all its measurements.
        "probe": json.loads(probe.read_text()).get("summary") if probe.exists() else None,
    }


def recorded(path):
    """Returns the totals of a record, written when the program exits; None if there are none."""
    found = [line["operators"] for line in lines(path) if "operators" in line]
    return found[-1] if found else None


def table(rows):
    """Formats rows of strings as an aligned table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def speeds(measured, plain):
    """Returns the table of throughput, with the speed-up over plain PyTorch where both were measured."""
    key = lambda line: (line["what"], line["precision"], line["global_batch"])
    baselines = {key(line): line["images_per_s"] for line in plain}
    rows = [("", "precision", "layout", "images/s", "step ms", "GPU MiB", "vs plain")]
    for line in measured + plain:
        program = line.get("program")
        memory, baseline = line["card_memory_mib"], None if program else baselines.get(key(line))
        rows.append(
            (
                (f"{program}, " if program else "")
                + line["what"]
                + (", recomputed cells" if line["checkpoint_cells"] else ""),
                line["precision"],
                "last" if line["channels_last"] else "first",
                f"{line['images_per_s']:.1f}",
                f"{median(line['step_ms']):.1f}",
                f"{memory:.0f}" if memory else "-",
                f"{line['images_per_s'] / baseline:.2f}" if baseline else "-",
            )
        )
    return table(rows)


def summary(result):
    """Returns the human-readable summary."""
    out = []
    measured = result["measured"]
    if measured["speed"] or measured["plain"]:
        out.append(speeds(measured["speed"], measured["plain"]))
    for step in measured["overlap"]:
        out.append(
            f"reductions: {step['before_backward_ended']} of {step['groups']} groups started before the end of the"
            f" backward pass, the first one {step['lead_ms']:.1f} ms before it"
        )
    for calls in measured["calls"]:
        counted = {name: round(count, 1) for name, count in (calls["calls_per_step"] or {}).items() if count}
        out.append(f"calls per step, {calls['what']}, {calls['precision']}: {counted or 'not counted'}")
    states = [check["state"] for check in result["checks"]]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    out.append(f"{counted or 'no checks'}; {result['seconds']:.0f} s, planned {result['planned_s']:.0f} s on a GPU")
    for state in "failed", "rounding", "skipped":
        named = [check["name"] for check in result["checks"] if check["state"] == state]
        if named:
            out.append(f"{state}: {', '.join(named)}")
    return "\n".join(out)
