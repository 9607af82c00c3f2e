"""Times search steps of plain PyTorch on synthetic images, like `drnas-dist bench` and with the same JSON keys.

    time_steps.py --px 224 --batch 64 --stage 2 --precision tf32 --channels-last --device cuda --json results.jsonl

The images stay on the device and are the same in every step: reading, augmenting and copying are not measured.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch

import nb201
import supernet
from search import Search, initial_eta

# Channels, layers (NAS-Bench-201: cells per group), classes, px, and (k, operations kept) per stage of the published
# searches; for NAS-Bench-201 of the progressive one.
SPACES = {
    "imagenet": (48, 14, 1000, 224, [(6, 7), (3, 4)]),
    "cifar": (36, 20, 10, 32, [(6, 7), (4, 4)]),
    "nas-bench-201": (16, 5, 10, 32, [(4, 5), (2, 3)]),
}

# Learning rate of the weights. Small: with 0.1 the loss on two fixed images was exactly 0 after ten steps, which makes the
# gradients unlike those of a search.
LR = 1e-3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", choices=SPACES, default="imagenet")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1)
    for name in ("channels", "layers", "classes", "px"):
        parser.add_argument(f"--{name}", type=int, help="default: as in the published search")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's")
    parser.add_argument("--weights-only", action="store_true", help="no architecture steps")
    parser.add_argument(
        "--needed-gradients-only",
        action="store_true",
        help="skip the gradients that the published code computes and discards: of weights in the architecture step, "
        "of eta in the weight step",
    )
    parser.add_argument(
        "--no-cudnn-benchmark", action="store_true", help="disable cuDNN's algorithm search, as in drnas-dist"
    )
    parser.add_argument("--warmup", type=int, default=3, help="steps before the measurement")
    parser.add_argument("--steps", type=int, default=10, help="steps per block")
    parser.add_argument("--blocks", type=int, default=3, help="number of blocks; the median is reported")
    parser.add_argument("--json", type=Path, help="append the result to this file, one JSON object per line")
    args = parser.parse_args()
    if min(args.batch, args.warmup, args.steps, args.blocks) < 1:
        parser.error("--batch, --warmup, --steps and --blocks must be at least 1")
    *sizes, stages = SPACES[args.space]
    for name, size in zip(("channels", "layers", "classes", "px"), sizes):
        if getattr(args, name) is None:
            setattr(args, name, size)
    args.k, args.ops_kept = stages[args.stage - 1]
    return args


def build(args):
    """Returns a search at the start of a stage (new weights; in stage 2 masks as after pruning), and its batches."""
    if args.space == "nas-bench-201":
        tables, num_edges, num_operations = 1, len(nb201.EDGES), len(nb201.OPERATIONS)
    else:
        tables, num_edges, num_operations = 2, supernet.EDGES, len(supernet.OPERATIONS)
    masks = None
    if args.ops_kept < num_operations:
        # Keeps every operation on the same fraction of the edges, since the kept operations determine the time.
        kept = lambda edge, op: (op + edge) % num_operations < args.ops_kept
        mask = [[kept(edge, op) for op in range(num_operations)] for edge in range(num_edges)]
        masks = [mask] * tables
    torch.manual_seed(0)
    if args.space == "nas-bench-201":
        net = nb201.Supernet(args.channels, args.layers, args.classes, args.k, masks)
    else:
        net = supernet.Supernet(args.space, args.channels, args.layers, args.classes, args.k, masks)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    net.to(args.device, memory_format=layout)
    etas = [initial_eta(num_edges, num_operations) for _ in range(tables)]
    autocast = torch.bfloat16 if args.precision == "bf16" else None
    search = Search(net, etas, LR, masks, autocast, args.needed_gradients_only)

    def batch():
        images = torch.randn(args.batch, 3, args.px, args.px)
        labels = torch.randint(args.classes, (args.batch,))
        return images.to(args.device, memory_format=layout), labels.to(args.device)

    return search, batch(), None if args.weights_only else batch()


def main():
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
    # As in the published code: cuDNN tries its algorithms in the first steps, which are not timed.
    torch.backends.cudnn.benchmark = not args.no_cudnn_benchmark
    search, train, valid = build(args)
    search.net.train()

    def now_s():
        if args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def steps(count):
        for _ in range(count):
            loss = search.bilevel_step(train, valid)
        return loss.item()

    steps(args.warmup)
    step_ms = []
    for _ in range(args.blocks):
        start = now_s()
        loss = steps(args.steps)
        step_ms.append((now_s() - start) * 1e3 / args.steps)

    images_per_step = args.batch * (1 if args.weights_only else 2)
    images_per_s = images_per_step / sorted(step_ms)[len(step_ms) // 2] * 1e3
    threads = torch.get_num_threads()
    device, card_memory_mib = f"CPU, {threads} thread{'s' if threads != 1 else ''}", None
    if args.device == "cuda":
        device = torch.cuda.get_device_name()
        # Memory in use on the GPU by all processes, including unused memory held by PyTorch's allocator.
        free, total = torch.cuda.mem_get_info()
        card_memory_mib = (total - free) / 2**20
    program = f"plain PyTorch {torch.__version__}"
    program += ", needed gradients only" if args.needed_gradients_only else ""
    what = f"supernet, stage {args.stage}"
    measured = {
        "program": program,
        "what": what,
        "device": device,
        "ranks": 1,
        "replicas": 1,
        "global_batch": args.batch,
        "px": args.px,
        "precision": args.precision,
        "channels_last": args.channels_last,
        "checkpoint_cells": False,
        "images_per_step": images_per_step,
        "step_ms": step_ms,
        "images_per_s": images_per_s,
        "loss": loss,
        "card_memory_mib": card_memory_mib,
        "calls_per_step": None,
        "trace": None,
    }
    if not math.isfinite(loss):
        sys.exit(f"time_steps.py: the loss is {loss}, expected a finite one: these steps do not represent a search")
    layout = "channels last" if args.channels_last else "channels first"
    print(
        f"{program}, {what}: {args.precision}, {layout}, {device}: {images_per_s:.1f} images/s"
        f" (fastest block {min(step_ms):.1f} ms per step)"
    )
    if args.json:
        with args.json.open("a") as file:
            file.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
