"""Trains an exported network in PyTorch and writes losses and logits: steps.py FOLDER [float64].

With float64, all computations are in float64, from the same values, whatever the precision of the export.

FOLDER/export is the output of `drnas-dist export`. FOLDER/batches.safetensors: `images` [B, N, 3, px, px], `labels`
[B, N], used in turn. FOLDER/settings.json: momentum, weight_decay, grad_clip, label_smoothing, auxiliary_weight, and
`lr`, one per step. Writes FOLDER/torch.safetensors: `logits.before` (evaluation mode, first batch), `losses`,
`logits.after`, and the state dict after the steps as `after/NAME`; FOLDER/torch.json: parameters and multiply-adds,
counted on the modules.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from tensors import write_safetensors

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder / "export"))
from network import load, read_safetensors  # noqa: E402

torch.set_num_threads(1)
settings = json.loads((folder / "settings.json").read_text())
batches = read_safetensors(folder / "batches.safetensors")
images, labels = batches["images"], batches["labels"]
net = load(folder / "export")
if sys.argv[2:] == ["float64"]:
    images, net = images.double(), net.double()

# Multiply-adds of each convolution and linear layer, from its actual output size.
adds = []


def count(module, inputs, output):
    adds.append(module.weight.numel() * (output.shape[2] * output.shape[3] if output.dim() == 4 else 1))


hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
found = {}
with torch.no_grad():
    found["logits.before"] = net.eval()(images[0])
for hook in hooks:
    hook.remove()
parameters = sum(p.numel() for name, p in net.named_parameters() if "auxiliary" not in name)
(folder / "torch.json").write_text(json.dumps({"parameters": parameters, "multiply_adds": sum(adds)}))

optimiser = torch.optim.SGD(
    net.parameters(), lr=1.0, momentum=settings["momentum"], weight_decay=settings["weight_decay"]
)
net.train()
losses = []
for step, lr in enumerate(settings["lr"]):
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad()
    logits, auxiliary = net(images[step % len(images)])
    smoothing = settings["label_smoothing"]
    loss = F.cross_entropy(logits, labels[step % len(images)], label_smoothing=smoothing)
    if auxiliary is not None:
        loss = loss + settings["auxiliary_weight"] * F.cross_entropy(
            auxiliary, labels[step % len(images)], label_smoothing=smoothing
        )
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), settings["grad_clip"])
    optimiser.step()
    losses.append(loss.detach())
found["losses"] = torch.stack(losses)
with torch.no_grad():
    found["logits.after"] = net.eval()(images[0])
for name, tensor in net.state_dict().items():
    if tensor.is_floating_point():
        found[f"after/{name}"] = tensor
write_safetensors(folder / "torch.safetensors", found)
