#!/usr/bin/env python3
"""What gpu-check.sh found: compares runs, and makes one JSON and one table of everything. In its folder:

    gpu-report.py agree RUN RUN...       whether the losses of the runs agree, in float64
    gpu-report.py report [--dry] --wall-s N
"""

import datetime
import json
import os
import subprocess
import sys

# Sums of float64 in another order, and what some steps of training make of that.
AGREEMENT = 1e-6


def lines(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def losses(run):
    steps = [line for line in lines(f"{run}/metrics.jsonl") if line["event"] == "step"]
    if not steps:
        sys.exit(f"{run} has no steps")
    return [(step["loss"], step["architecture_loss"] or 0.0) for step in steps]


def agree(runs):
    first = losses(runs[0])
    for run in runs[1:]:
        other = losses(run)
        if len(other) != len(first):
            sys.exit(f"{run} has {len(other)} steps, {runs[0]} {len(first)}")
        pairs = [(a, b) for one, two in zip(first, other) for a, b in zip(one, two)]
        worst = max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)
        print(f"{run}: {len(first)} steps, largest relative difference of a loss {worst:.1e}")
        if not worst <= AGREEMENT:
            sys.exit(f"{run} and {runs[0]} differ by more than {AGREEMENT}")


def overlap(measured):
    """Of each rank-0 trace: groups of reductions, and how many began before the backward pass of their step had ended."""
    found = []
    for line in measured:
        trace = line.get("trace")
        if not trace:
            continue
        ends = trace["backward_ends_ms"]
        per_step = {}
        for reduction in trace["reductions"]:
            if reduction["step"] < len(ends):
                per_step.setdefault(reduction["step"], []).append(reduction)
        for step, reductions in sorted(per_step.items()):
            early = sum(reduction["from_ms"] < ends[step] for reduction in reductions)
            lead = ends[step] - min(reduction["from_ms"] for reduction in reductions)
            found.append({"step": step, "groups": len(reductions), "before_backward_ended": early, "lead_ms": lead})
    return found


def text(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()


def card():
    try:
        query = "--query-gpu=name,driver_version,memory.total"
        words = ["nvidia-smi", query, "--format=csv,noheader"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def table(result):
    rows = [("", "precision", "layout", "images/s", "step ms", "card MiB")]
    for line in result["speed"]:
        name = line["what"] + (", cells again" if line["checkpoint_cells"] else "")
        memory = line["card_memory_mib"]
        rows.append((
            name,
            line["precision"],
            "last" if line["channels_last"] else "first",
            f"{line['images_per_s']:.1f}",
            f"{sorted(line['step_ms'])[len(line['step_ms']) // 2]:.1f}",
            f"{memory:.0f}" if memory else "-",
        ))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def report(arguments):
    dry = "--dry" in arguments
    wall_s = int(arguments[arguments.index("--wall-s") + 1])
    checks = lines("checks.jsonl")
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "card": card(),
        "dry": dry,
        "wall_s": wall_s,
        "checks": checks,
        "doctor": text("doctor.log"),
        "overlap": overlap(lines("overlap.jsonl")),
        "waits": [
            {key: line[key] for key in ("what", "precision", "calls_per_step")} for line in lines("waits.jsonl")
        ],
        "speed": lines("speed.jsonl"),
    }
    failed = [check["check"] for check in checks if check["code"] != 0]
    for check in checks:
        if check["code"] != 0:
            check["log"] = text(check["check"] + ".log")[-12:]
    if not dry:
        # A trace is needed, and all but the last group of a step's reductions have to begin early.
        late = [step for step in result["overlap"] if step["before_backward_ended"] + 1 < step["groups"]]
        if not result["overlap"] or late:
            failed.append("overlap: no trace" if not result["overlap"] else f"overlap: {late}")
    result["failed"] = failed
    with open("result.json", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    print()
    print(table(result))
    for step in result["overlap"]:
        print(
            f"reductions: {step['before_backward_ended']} of {step['groups']} groups began before the backward pass ended,"
            f" the first one {step['lead_ms']:.1f} ms before"
        )
    for waits in result["waits"]:
        calls = {name: count for name, count in (waits["calls_per_step"] or {}).items() if count}
        print(f"calls per step, {waits['precision']}: {calls or 'none counted'}")
    print(f"\n{len(checks) - len([c for c in checks if c['code']])} of {len(checks)} checks passed in {wall_s} s"
          f"{' (dry: on the CPU)' if dry else ''}; {os.path.abspath('result.json')}")
    if failed:
        sys.exit("failed: " + ", ".join(failed))


def main():
    if len(sys.argv) > 3 and sys.argv[1] == "agree":
        agree(sys.argv[2:])
    elif len(sys.argv) > 2 and sys.argv[1] == "report":
        report(sys.argv[2:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
