#!/usr/bin/env python3
"""Times recorded convolutions one by one in each precision and layout, and finds those that fail.

    probe.py [--seconds 60] [--steps 1] [--scale 1] [--device cuda] [--json probe.json] RECORD...

RECORD: output of launch/gpu/record.cpp, one file per network. --steps: number of training steps of that run (`bench`:
warmup + steps * blocks + 2), so that totals are per step. --scale: factor of the batch, since a record made with a
small batch has the same calls. Needs only PyTorch.

Convolutions run in float32 (without TF32) and bfloat16, channels last and channels first, as a convolution and, if
they are grouped 1x1 ones, also as a batched matrix product; forward, and backward for input and weight. In float64,
after all others, they are run but not timed. The most expensive come first; those that do not fit into --seconds are
listed. On the CPU everything runs once, which only shows that it runs.

If the process crashes, JSON.case names the case that was running.

Weights are contiguous in both layouts, as in drnas-dist, where they are rows of a flat buffer.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time

import torch

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUTS = {"last": torch.channels_last, "first": torch.contiguous_format}
WARMUPS, REPETITIONS = 2, 3
# The GPU sleeps about 1 ms before each measurement so that the host gets ahead: kernels are timed, not launches.
SLEEP_CYCLES = 2_000_000


def read(path, steps, scale):
    """Reads a record: maps the shape of each convolution, with `scale` times its batch, to its forward calls per step;
    1 if there are no totals, as after a crash."""
    lines = {}
    with open(path, encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # truncated
            lines.setdefault(line["process"], []).append(line)
    calls = {}
    for process in lines.values():
        seen = [line for line in process if "convolution" in line]
        totals = [line["convolutions"] for line in process if "convolutions" in line]
        if not totals:
            print(f"{path}: a process did not exit normally; its counts are unknown", file=sys.stderr)
        for line in seen:
            if line["backward"] or "input" not in line or line["transposed"]:
                continue
            keys = ("input", "weight", "stride", "padding", "dilation")
            (n, *image), *rest = (tuple(line[key]) for key in keys)
            shape = ((n * scale, *image), *rest, line["groups"])
            count = totals[0][line["convolution"]] / steps if totals else 1
            calls[shape] = calls.get(shape, 0) + count
    return calls


def output_size(shape):
    (_, _, *image), (_, _, *kernel), stride, padding, dilation, _ = shape
    sizes = zip(image, kernel, stride, padding, dilation)
    return [(size + 2 * pad - gap * (width - 1) - 1) // step + 1 for size, width, step, pad, gap in sizes]


def elements(shape):
    """Returns the elements of input and output: few channels per group make a convolution memory-bound."""
    (n, channels, h, w), (rows, *_), *_ = shape
    out_h, out_w = output_size(shape)
    return n * (channels * h * w + rows * out_h * out_w)


def convolution(shape, layout):
    _, _, stride, padding, dilation, groups = shape
    return lambda x, weight: torch.conv2d(x, weight, None, stride, padding, dilation, groups)


def matrix_product(shape, layout):
    """Like `pointwise` in src/net/ops.rs."""
    (n, _, h, w), (rows, c, *_), *_, groups = shape

    def forward(x, weight):
        pixels = x.permute(0, 2, 3, 1).reshape(n * h * w, groups, c).transpose(0, 1)
        products = pixels.bmm(weight.view(groups, rows // groups, c).transpose(1, 2))
        y = products.transpose(0, 1).reshape(n, h, w, rows).permute(0, 3, 1, 2)
        return y.contiguous(memory_format=layout)

    return forward


def methods(shape):
    _, (_, _, *kernel), stride, padding, _, groups = shape
    found = {"convolution": convolution}
    if kernel == [1, 1] and stride == (1, 1) and padding == (0, 0) and groups > 1:
        found["bmm"] = matrix_product
    return found


def tensors(shape, kind, layout, device):
    """Returns input, weight and gradient of the output. Small values keep long sums finite."""
    generator = torch.Generator(device).manual_seed(1)
    (n, *_), (rows, *_), *_ = shape
    made = [
        torch.randn(size, generator=generator, device=device, dtype=torch.float32).mul_(0.1).to(kind)
        for size in (shape[0], shape[1], (n, rows, *output_size(shape)))
    ]
    x, weight, gradient = made
    x, gradient = (tensor.contiguous(memory_format=layout) for tensor in (x, gradient))
    return x.requires_grad_(), weight.requires_grad_(), gradient


def once(forward, x, weight, gradient, marks):
    """Runs one forward and one backward pass; `marks` are called before, between and after."""
    before, between, after = marks
    before()
    y = forward(x, weight)
    between()
    torch.autograd.grad(y, (x, weight), gradient)
    after()


def timed(forward, x, weight, gradient):
    """Returns the milliseconds of the forward and of the backward pass."""
    if x.device.type == "cpu":
        times = []
        once(forward, x, weight, gradient, [lambda: times.append(time.perf_counter())] * 3)
        return (times[1] - times[0]) * 1e3, (times[2] - times[1]) * 1e3
    found = []
    for _ in range(WARMUPS + REPETITIONS):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        torch.cuda._sleep(SLEEP_CYCLES)
        once(forward, x, weight, gradient, [event.record for event in events])
        torch.cuda.synchronize()
        found.append((events[0].elapsed_time(events[1]), events[1].elapsed_time(events[2])))
    forward_ms, backward_ms = zip(*found[WARMUPS:])
    return statistics.median(forward_ms), statistics.median(backward_ms)


def run_case(case, shape, compare, device):
    """Fills in `case`: times, or the error. `compare`: also the difference from the convolution."""
    kind, layout = PRECISIONS.get(case["precision"], torch.float64), LAYOUTS[case["layout"]]
    try:
        x, weight, gradient = tensors(shape, kind, layout, device)
        forward = methods(shape)[case["method"]](shape, layout)
        if kind == torch.float64:
            once(forward, x, weight, gradient, [lambda: None] * 3)
            if device == "cuda":
                torch.cuda.synchronize()
        else:
            case["forward_ms"], case["backward_ms"] = timed(forward, x, weight, gradient)
        if compare:
            ours, reference = (made(x, weight).detach().float() for made in (forward, convolution(shape, layout)))
            case["difference"] = ((ours - reference).abs().max() / reference.abs().max().clamp_min(1e-30)).item()
    except Exception as error:  # any kind: GPUs fail in many ways
        case["error"] = (str(error).splitlines() or [type(error).__name__])[0]


def is_lost(device):
    """Whether the device is unusable: after an illegal access every later call fails."""
    if device == "cpu":
        return False
    try:
        torch.cuda.synchronize()
        return not (torch.ones(8, device=device) + 1).sum().item() == 16
    except Exception as error:
        print(f"the GPU fails from here on: {str(error).splitlines()[0]}", file=sys.stderr)
        return True


def jobs(shapes):
    """Yields the jobs in order: pairs of an entry of `shapes` and a case."""
    for entry in shapes:
        for precision in PRECISIONS:
            for layout in LAYOUTS:
                for method in methods(entry["shape"]):
                    yield entry, {"precision": precision, "layout": layout, "method": method}
    for entry in shapes:
        for layout in LAYOUTS:
            yield entry, {"precision": "fp64", "layout": layout, "method": "convolution"}


def probe(shapes, arguments, save):
    """Runs all jobs. Returns None, or why it stopped: time limit, or loss of the GPU. `save` writes the results."""
    end = time.monotonic() + arguments.seconds
    todo = list(jobs(shapes))
    for entry, _ in todo:
        entry["missing"] += 1
    current = stopped = None
    with open(arguments.json + ".case", "w", encoding="utf-8") as journal:
        for entry, case in todo:
            if time.monotonic() > end:
                stopped = "time limit reached"
                break
            if entry is not current:
                current = entry
                save("unfinished")
                if arguments.device == "cuda":
                    torch.cuda.empty_cache()
            where = f"{words(entry['shape'])}: {name(case)}"
            journal.seek(0)
            journal.truncate()
            journal.write(where + "\n")
            journal.flush()
            ran = [
                (other["precision"], other["layout"])
                for other in entry["cases"]
                if other["method"] == "convolution" and "error" not in other
            ]
            compare = case["method"] == "bmm" and (case["precision"], case["layout"]) in ran
            run_case(case, entry["shape"], compare, arguments.device)
            entry["cases"].append(case)
            entry["missing"] -= 1
            if "error" in case:
                gc.collect()
                if is_lost(arguments.device):
                    stopped = f"GPU lost in {where}"
                    break
    os.remove(arguments.json + ".case")
    return stopped


def name(case):
    return f"{case['precision']} {case['layout']} {case['method']}"


def words(shape):
    x, weight, stride, padding, dilation, groups = shape
    by = "x".join
    text = f"{by(map(str, x))} * {by(map(str, weight))}"
    for key, value, usual in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if set(value) != {usual}:
            text += f" {key} {value[0] if len(set(value)) == 1 else list(value)}"
    return text + (f" groups {groups}" if groups > 1 else "")


def times(entry, method):
    """Maps (precision, layout) to the milliseconds of both passes, for cases that ran."""
    return {
        (case["precision"], case["layout"]): case["forward_ms"] + case["backward_ms"]
        for case in entry["cases"]
        if case["method"] == method and "forward_ms" in case
    }


def summary(shapes, records, stopped):
    """Returns the lines of the human-readable summary."""
    pairs = [(precision, layout) for precision in PRECISIONS for layout in LAYOUTS]
    complete = [entry for entry in shapes if len(times(entry, "convolution")) == len(pairs)]
    lines = [f"{len(complete)} of {len(shapes)} convolutions ran in both precisions and layouts; ms per step of those:"]
    columns = [f"{precision} {layout}" for precision, layout in pairs]
    width = max(len("record"), *(len(record) for record in records))
    lines.append("  ".join(["record".ljust(width), *(f"{column:>10}" for column in columns)]))
    for record in records:
        sums = [
            sum(entry["per_step"].get(record, 0) * times(entry, "convolution")[pair] for entry in complete)
            for pair in pairs
        ]
        lines.append("  ".join([record.ljust(width), *(f"{ms:10.2f}" for ms in sums)]))

    for pair, column in zip(pairs, columns):
        both = [
            (times(entry, "convolution")[pair], times(entry, "bmm")[pair], sum(entry["per_step"].values()))
            for entry in shapes
            if pair in times(entry, "convolution") and pair in times(entry, "bmm")
        ]
        gains = [(one - two) * count for one, two, count in both if two < one]
        lines.append(
            f"bmm, {column}: faster than convolution for {len(gains)} of {len(both)} grouped 1x1 shapes,"
            f" {sum(gains):.2f} ms of the steps of all records"
        )

    differences = []
    for entry in complete:
        ms = times(entry, "convolution")
        for precision in PRECISIONS:
            last, first = ms[precision, "last"], ms[precision, "first"]
            gain = abs(last - first) * sum(entry["per_step"].values())
            differences.append((gain, precision, last, first, entry))
    lines.append("largest differences between layouts (ms per call, forward and backward; calls per step):")
    for _, precision, last, first, entry in sorted(differences, key=lambda row: -row[0])[:10]:
        count = sum(entry["per_step"].values())
        lines.append(f"  {precision}  last {last:8.3f}  first {first:8.3f}  x {count:g}  {words(entry['shape'])}")

    failures = {}
    for entry in shapes:
        for case in entry["cases"]:
            if "error" in case:
                failures.setdefault((words(entry["shape"]), case["error"]), []).append(name(case))
    lines.append(f"failures: {sum(map(len, failures.values()))}")
    for (shape, error), failed in failures.items():
        lines.append(f"  {shape}: {error} ({'; '.join(failed)})")
    if stopped:
        missing = [entry for entry in shapes if entry["missing"]]
        # float64 runs after all others.
        untimed = [entry for entry in missing if entry["missing"] > len(LAYOUTS)]
        lines.append(
            f"stopped: {stopped}; {len(missing) - len(untimed)} convolutions not run in float64 only,"
            f" {len(untimed)} not run in all precisions:"
        )
        lines.extend(f"  {words(entry['shape'])}" for entry in untimed)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="time limit for starting a case")
    parser.add_argument("--steps", type=float, default=1, help="training steps of each record")
    parser.add_argument("--scale", type=int, default=1, help="factor of the batches of the records")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", default="probe.json")
    parser.add_argument("records", nargs="+", metavar="RECORD")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # small convolutions are faster in one thread
    elif not torch.cuda.is_available():
        sys.exit("no CUDA device found; --device cpu runs everything once on the CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False

    per_shape = {}
    for record in arguments.records:
        for shape, count in read(record, arguments.steps, arguments.scale).items():
            per_shape.setdefault(shape, {})[record] = count
    if not per_shape:
        sys.exit("no convolution in " + ", ".join(arguments.records))
    shapes = [
        {"shape": shape, "words": words(shape), "per_step": counts, "missing": 0, "cases": []}
        for shape, counts in per_shape.items()
    ]
    shapes.sort(key=lambda entry: -sum(entry["per_step"].values()) * elements(entry["shape"]))

    begin = time.monotonic()
    result = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if arguments.device == "cuda" else None,
        "steps": arguments.steps,
        "shapes": shapes,
    }

    def save(stopped):
        result.update(stopped=stopped, wall_s=round(time.monotonic() - begin, 1))
        with open(arguments.json + ".tmp", "w", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        os.replace(arguments.json + ".tmp", arguments.json)

    stopped = probe(shapes, arguments, save)
    result["summary"] = summary(shapes, arguments.records, stopped)
    save(stopped)
    print("\n".join(result["summary"]))
    sys.stdout.flush()
    # Skips the destruction of a context that may be lost.
    os._exit(1 if stopped and "GPU lost" in stopped else 0)


if __name__ == "__main__":
    main()
