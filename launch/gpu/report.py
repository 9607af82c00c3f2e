"""What the checks found: judges golden files and runs, and makes figures and tables of what was measured."""

import json

# Losses of runs in float64: another order of sums, and what some steps of training make of that.
AGREEMENT = 1e-6
# A golden file that is not met by less than this is not met by rounding; unrelated tensors are off by 1 and more.
ROUNDING = 0.5
EXACT = "golden-fp64"


def lines(path):
    """The objects of a file of JSON lines; none where there is no file. A line that is being written is left out."""
    found = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                pass
    return found


def steps(run):
    """Records of the steps of a run folder."""
    return [line for line in lines(run / "metrics.jsonl") if line["event"] == "step"]


# -- golden files ----------------------------------------------------------------------------------------------------


def golden(path):
    """(problems, excesses, text) of what `verify --json` wrote: files that could not be computed; findings beyond what
    is allowed; the worst of all in words."""
    problems, excesses, worst = [], [], None
    for file in lines(path):
        if file["problem"]:
            problems.append(f"{file['file']}: {file['problem']}")
        for finding in file["findings"]:
            # Not finite: worse than any number.
            error = float("inf") if finding["error"] is None else finding["error"]
            if not finding["pass"]:
                excesses.append(
                    (error, f"{file['file']}: {finding['kind']} off by {error:.1e}, {finding['allowed']:.0e} allowed")
                )
            share = error / finding["allowed"] if finding["allowed"] else 0.0
            if worst is None or share > worst[0]:
                worst = (
                    share,
                    f"worst: {finding['kind']} {error:.1e} of {finding['allowed']:.0e} allowed ({file['file']})",
                )
    return problems, sorted(excesses, reverse=True), worst[1] if worst else "nothing was compared"


def settle(checks):
    """Golden files that differ: rounding if float64 meets them and the difference is small, else failed."""
    exact = any(check["name"].startswith(EXACT) and check["state"] == "ok" for check in checks)
    for check in checks:
        if check["state"] == "differs":
            check["state"] = "rounding" if exact and check["error"] < ROUNDING else "failed"
    return checks


# -- runs --------------------------------------------------------------------------------------------------------------


def agreement(runs):
    """(largest relative difference of a loss from the first run's, number of steps). Raises ValueError when runs differ
    in length."""
    losses = [[(step["loss"], step["architecture_loss"] or 0.0) for step in steps(run)] for run in runs]
    if not losses[0] or any(len(other) != len(losses[0]) for other in losses):
        raise ValueError(f"steps of {', '.join(run.name for run in runs)}: {[len(one) for one in losses]}")
    worst = 0.0
    for other in losses[1:]:
        for one, two in zip(losses[0], other):
            for a, b in zip(one, two):
                difference = abs(a - b) / max(abs(a), 1e-12)
                # A NaN is no agreement.
                worst = max(worst, difference if difference == difference else float("inf"))
    return worst, len(losses[0])


def overlap(measured):
    """Of each step of a trace: groups of reductions, and how many began before the step's backward pass had ended;
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
                        # Nothing of the backward pass is left to hide the last one.
                        "fraction": min(1.0, early / (len(begins) - 1)) if len(begins) > 1 else 1.0,
                        "lead_ms": end - min(begins),
                    }
                )
    return found


# -- figures -----------------------------------------------------------------------------------------------------------


def median(values):
    """The upper median."""
    return sorted(values)[len(values) // 2]


def figures(work):
    """Everything that was measured, from the files of the work folder."""
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
        # All its figures are in the archive.
        "probe": json.loads(probe.read_text()).get("summary") if probe.exists() else None,
    }


def recorded(path):
    """The totals of a record: its last line, where the program came to its end."""
    found = [line["operators"] for line in lines(path) if "operators" in line]
    return found[-1] if found else None


def table(rows):
    """Rows of texts as columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def speeds(measured, plain):
    """The table of speeds; beside what plain PyTorch does too, how many times as fast."""
    key = lambda line: (line["what"], line["precision"], line["global_batch"])
    rivals = {key(line): line["images_per_s"] for line in plain}
    rows = [("", "precision", "layout", "images/s", "step ms", "card MiB", "to plain")]
    for line in measured + plain:
        program = line.get("program")
        memory, rival = line["card_memory_mib"], None if program else rivals.get(key(line))
        rows.append(
            (
                (f"{program}, " if program else "")
                + line["what"]
                + (", cells again" if line["checkpoint_cells"] else ""),
                line["precision"],
                "last" if line["channels_last"] else "first",
                f"{line['images_per_s']:.1f}",
                f"{median(line['step_ms']):.1f}",
                f"{memory:.0f}" if memory else "-",
                f"{line['images_per_s'] / rival:.2f}" if rival else "-",
            )
        )
    return table(rows)


def summary(result):
    """The end, for people."""
    out = []
    measured = result["measured"]
    if measured["speed"] or measured["plain"]:
        out.append(speeds(measured["speed"], measured["plain"]))
    for step in measured["overlap"]:
        out.append(
            f"reductions: {step['before_backward_ended']} of {step['groups']} groups began before the backward pass"
            f" ended, the first one {step['lead_ms']:.1f} ms before"
        )
    for calls in measured["calls"]:
        counted = {name: round(count, 1) for name, count in (calls["calls_per_step"] or {}).items() if count}
        out.append(f"calls per step, {calls['what']}, {calls['precision']}: {counted or 'none counted'}")
    states = [check["state"] for check in result["checks"]]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    out.append(f"{counted or 'no check'}; {result['seconds']:.0f} s, planned {result['planned_s']:.0f} s on a card")
    for state in "failed", "rounding", "skipped":
        named = [check["name"] for check in result["checks"] if check["state"] == state]
        if named:
            out.append(f"{state}: {', '.join(named)}")
    return "\n".join(out)
