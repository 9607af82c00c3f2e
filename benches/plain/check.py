"""Compares the networks of this folder with golden files of the published code: check.py [OPTIONS] GOLDEN...

Supernet: logits, loss, gradients of weights and theta, running statistics, logits in evaluation mode.
dirichlet.safetensors: theta for a given sample and the gradient of eta. Prints one line per file; the exit code is 1 if a
value is outside its tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import nb201
import search
import supernet

# Tolerances: relative error, Frobenius norm per tensor. In float64 only the rounding of the float32 files remains.
VALUES = {torch.float32: 1e-4, torch.float64: 2e-5}
GRADIENTS = {torch.float32: 1e-3, torch.float64: 2e-4}
# dirichlet.safetensors is float64 and is checked in float64.
DIRICHLET = 1e-10


def read_safetensors(path):
    """Returns the tensors by name, and the settings in the file's metadata."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    settings = header.pop("__metadata__", {})
    kinds = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "U8": torch.uint8}

    def tensor(entry):
        begin, end = entry["data_offsets"]
        values = torch.frombuffer(data[start + begin : start + end], dtype=kinds[entry["dtype"]])
        return values.reshape(entry["shape"])

    return {name: tensor(entry) for name, entry in header.items()}, settings


class Golden:
    """A golden file, and the largest error of each group of its tensors."""

    def __init__(self, path):
        self.name = path.name
        self.tensors, self.settings = read_safetensors(path)
        self.worst, self.problems = {}, []

    def group(self, prefix):
        return {name[len(prefix) :]: x for name, x in self.tensors.items() if name.startswith(prefix)}

    def compare(self, what, ours, theirs, tolerance, min_norm=1e-30):
        """`min_norm`: lower bound of the norm that the error is divided by."""
        ours, theirs = ours.detach().cpu().double(), theirs.double()
        error = float("inf")
        if ours.shape == theirs.shape:
            error = ((ours - theirs).norm() / theirs.norm().clamp(min=min_norm)).item()
        group = what.split("/")[0]
        # `not <`, so that NaN fails.
        if not error < tolerance:
            self.problems.append(f"{what}: error {error:.1e}, tolerance {tolerance:.0e}")
        if not error <= self.worst.setdefault(group, error):
            self.worst[group] = error

    def print_result(self, how):
        """Prints the errors; returns whether all are within tolerance."""
        errors = ", ".join(f"{group} {error:.1e}" for group, error in self.worst.items())
        print(f"{self.name} {how}: {'FAILED' if self.problems else 'ok'}: {errors}")
        for line in self.problems[:5]:
            print(f"  {line}")
        if len(self.problems) > 5:
            print(f"  and {len(self.problems) - 5} more")
        return not self.problems


def network(settings, masks):
    sizes = {name: int(settings[name]) for name in ("init_channels", "num_classes", "k")}
    if settings["space"] == "nas-bench-201":
        return nb201.Supernet(cells_per_group=int(settings["cells_per_stage"]), masks=masks, **sizes)
    space = settings["space"].removeprefix("darts-")
    return supernet.Supernet(space, layers=int(settings["layers"]), masks=masks, **sizes)


def check_supernet(golden, kind, device, layout):
    one_table = golden.settings["space"] == "nas-bench-201"
    tables = [""] if one_table else [".normal", ".reduce"]
    masks = None
    if f"mask{tables[0]}" in golden.tensors:
        masks = [golden.tensors[f"mask{table}"].bool().tolist() for table in tables]
    net = network(golden.settings, masks)
    try:
        net.load_state_dict(golden.group("weights/"))
    except RuntimeError as error:
        golden.problems.append(" ".join(str(error).split())[:400])
        return
    net.to(device, kind, memory_format=layout)
    images = golden.tensors["input"].to(device, kind, memory_format=layout)
    labels = golden.tensors["target"].to(device)
    theta = [golden.tensors[f"theta{table}"].to(device, kind).requires_grad_() for table in tables]

    # Running statistics of pruned operations are not updated; the golden files may differ there.
    pruned = []
    for name, module in net.named_modules():
        if isinstance(module, (supernet.MixedOp, nb201.Edge)):
            prefix = f"{name}._ops" if isinstance(module, supernet.MixedOp) else name
            pruned += [f"{prefix}.{op}." for op, kept in enumerate(module.kept) if not kept]

    values, gradients = VALUES[kind], GRADIENTS[kind]
    logits = net(images, *theta)
    golden.compare("logits", logits, golden.tensors["logits.train"], values)
    loss = F.cross_entropy(logits, labels)
    golden.compare("loss", loss, golden.tensors["loss"], values)
    loss.backward()

    # Some gradients are zero up to rounding (a scale before another batch norm): compared relative to the largest one.
    theirs = golden.group("grad/")
    parameters = dict(net.named_parameters())
    if theirs.keys() != parameters.keys():
        different = sorted(theirs.keys() ^ parameters.keys())[:3]
        golden.problems.append(f"the names of parameters and gradients differ: {different}")
    min_norm = 1e-5 * max(grad.double().norm().item() for grad in theirs.values())
    for name in [name for name in theirs if name in parameters]:
        grad = parameters[name].grad
        if grad is None and name.startswith(tuple(pruned)):
            grad = torch.zeros_like(parameters[name])
        if grad is None:
            golden.problems.append(f"no gradient of {name}")
        else:
            golden.compare(f"gradients/{name}", grad, theirs[name], gradients, min_norm)
    for table, weights in zip(tables, theta):
        name = f"grad.theta{table}"
        golden.compare(f"gradients of theta/{name}", weights.grad, golden.tensors[name], gradients)

    state = net.state_dict()
    for name, theirs in golden.group("after/").items():
        if not name.startswith(tuple(pruned)):
            golden.compare(f"running statistics/{name}", state[name], theirs, values)
    with torch.no_grad():
        logits = net.eval()(images, *theta)
    golden.compare("logits in evaluation", logits, golden.tensors["logits.eval"], values)


def check_dirichlet(golden):
    sample_dirichlet = torch._sample_dirichlet
    for prefix, drawn in [("", "theta"), ("masked.", "masked.sample_before_mask")]:
        tensors = golden.group(prefix)
        eta = tensors["eta"].clone().requires_grad_()
        mask = tensors["mask"].to(eta.dtype) if prefix else None
        # The sample comes from the file, everything else from PyTorch.
        torch._sample_dirichlet = lambda *_, **__: golden.tensors[drawn].clone()
        theta = search.draw_theta(eta, mask)
        torch._sample_dirichlet = sample_dirichlet
        golden.compare(f"{prefix}theta", theta, tensors["theta"], DIRICHLET)
        theta.backward(tensors["grad.theta"])
        golden.compare(f"{prefix}grad.eta", eta.grad, tensors["grad.eta"], DIRICHLET)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("golden", nargs="+", type=Path)
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    kind = torch.float64 if args.float64 else torch.float32
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    # With channels last, oneDNN kernels write out of bounds on some CPUs (an AMD EPYC with AVX2 and AVX-512, but not with
    # ONEDNN_MAX_CPU_ISA=SSE41), which ends in "free(): invalid next size".
    torch.backends.mkldnn.set_flags(_enabled=not args.channels_last)
    ok = True
    for path in args.golden:
        golden = Golden(path)
        if "space" in golden.settings:
            check_supernet(golden, kind, args.device, layout)
            suffix = ", channels last" if args.channels_last else ""
            ok &= golden.print_result(f"{str(kind).removeprefix('torch.')} on {args.device}{suffix}")
        else:
            check_dirichlet(golden)
            ok &= golden.print_result("float64 on cpu")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
