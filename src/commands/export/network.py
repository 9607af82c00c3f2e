"""A network of drnas-dist in PyTorch: `load(folder)` builds it and loads its weights.

    from network import load
    net = load("folder").eval()
    logits = net((images - net.mean) / net.std)     # images: [N, 3, px, px] in 0..1
    net.classes[logits[0].argmax()]                 # name of the class of the first image

The folder contains weights.safetensors (names of the published DrNAS code), genotype.json, network.json and this file, which
requires only PyTorch. Sources: quark0/darts, xiangning-chen/DrNAS (DARTS-space/model.py, operations.py).
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn


def conv(c_in, c_out, kernel, **options):
    return nn.Conv2d(c_in, c_out, kernel, bias=False, **options)


class Operation(nn.Module):
    """Operation of an edge; its layers are in `op`."""

    def __init__(self, *layers):
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x):
        return self.op(x)


class FactorizedReduce(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv_1 = conv(c_in, c_out // 2, 1, stride=2)
        self.conv_2 = conv(c_in, c_out // 2, 1, stride=2)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x):
        x = torch.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


def separable(c, kernel, stride=1, dilation=1):
    padding = dilation * (kernel // 2)
    depthwise = conv(c, c, kernel, stride=stride, padding=padding, dilation=dilation, groups=c)
    return [nn.ReLU(), depthwise, conv(c, c, 1), nn.BatchNorm2d(c)]


def operation(name, c, stride):
    kernel = int(name[-1]) if name[-1].isdigit() else 0
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c)
    if name == "max_pool_3x3":
        return Operation(nn.MaxPool2d(3, stride, padding=1), nn.BatchNorm2d(c, affine=False))
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        return Operation(pool, nn.BatchNorm2d(c, affine=False))
    if name.startswith("sep_conv"):
        return Operation(*separable(c, kernel, stride), *separable(c, kernel))
    if name.startswith("dil_conv"):
        return Operation(*separable(c, kernel, stride, dilation=2))
    raise ValueError(f"unknown operation {name}")


def drop_path(x, probability):
    """Drops x for some images of the batch."""
    kept = torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype) >= probability
    return x * kept / (1 - probability)


class Cell(nn.Module):
    def __init__(self, edges, concat, c_prev_prev, c_prev, c, reduction, reduction_prev):
        super().__init__()
        relu_conv = lambda c_in: Operation(nn.ReLU(), conv(c_in, c, 1), nn.BatchNorm2d(c))
        self.preprocess0 = FactorizedReduce(c_prev_prev, c) if reduction_prev else relu_conv(c_prev_prev)
        self.preprocess1 = relu_conv(c_prev)
        stride = lambda state: 2 if reduction and state < 2 else 1
        self._ops = nn.ModuleList(operation(name, c, stride(state)) for name, state in edges)
        self.inputs = [state for _, state in edges]
        self.concat = concat

    def forward(self, s0, s1, probability):
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in range(0, len(self._ops), 2):
            edges = []
            for op, state in zip(self._ops[node : node + 2], self.inputs[node : node + 2]):
                y = op(states[state])
                if self.training and probability > 0 and not isinstance(op, nn.Identity):
                    y = drop_path(y, probability)
                edges.append(y)
            states.append(edges[0] + edges[1])
        return torch.cat([states[state] for state in self.concat], dim=1)


class AuxiliaryHead(nn.Module):
    def __init__(self, c, num_classes, imagenet):
        super().__init__()
        pool = nn.AvgPool2d(5, stride=2 if imagenet else 3)
        layers = [nn.Identity(), pool, conv(c, 128, 1), nn.BatchNorm2d(128), nn.ReLU(), conv(128, 768, 2)]
        # The published ImageNet network has no batch norm here.
        layers += [nn.ReLU()] if imagenet else [nn.BatchNorm2d(768), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Network(nn.Module):
    """Maps images to logits in evaluation mode, to (logits, auxiliary logits or None) in training mode."""

    def __init__(self, genotype, space, init_channels, layers, num_classes, auxiliary):
        super().__init__()
        self.drop_path_prob = 0.0
        imagenet, c = space == "darts-imagenet", init_channels
        c_stem = c if imagenet else 3 * c
        if imagenet:
            first = [conv(3, c // 2, 3, stride=2, padding=1), nn.BatchNorm2d(c // 2), nn.ReLU()]
            self.stem0 = nn.Sequential(*first, conv(c // 2, c, 3, stride=2, padding=1), nn.BatchNorm2d(c))
            self.stem1 = nn.Sequential(nn.ReLU(), conv(c, c, 3, stride=2, padding=1), nn.BatchNorm2d(c))
        else:
            self.stem = nn.Sequential(conv(3, c_stem, 3, padding=1), nn.BatchNorm2d(c_stem))
        self.imagenet, self.auxiliary_cell = imagenet, 2 * layers // 3
        self.cells = nn.ModuleList()
        c_prev_prev, c_prev, reduction_prev = c_stem, c_stem, imagenet
        for number in range(layers):
            reduction = number in (layers // 3, 2 * layers // 3)
            c *= 2 if reduction else 1
            kind = "reduce" if reduction else "normal"
            edges, concat = genotype[kind], genotype[f"{kind}_concat"]
            self.cells.append(Cell(edges, concat, c_prev_prev, c_prev, c, reduction, reduction_prev))
            c_prev_prev, c_prev, reduction_prev = c_prev, len(concat) * c, reduction
            if auxiliary and number == self.auxiliary_cell:
                self.auxiliary_head = AuxiliaryHead(c_prev, num_classes, imagenet)
        self.classifier = nn.Linear(c_prev, num_classes)

    def forward(self, x):
        auxiliary = None
        if self.imagenet:
            s0 = self.stem0(x)
            s1 = self.stem1(s0)
        else:
            s0 = s1 = self.stem(x)
        for number, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if self.training and number == self.auxiliary_cell and hasattr(self, "auxiliary_head"):
                s1 = torch.relu(s1)  # as published: the in-place ReLU also affects the next cell
                auxiliary = self.auxiliary_head(s1)
        logits = self.classifier(s1.mean((2, 3)))
        return (logits, auxiliary) if self.training else logits


def read_safetensors(path):
    data = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    kinds = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}

    def tensor(entry):
        begin, end = entry["data_offsets"]
        kind = kinds[entry["dtype"]]
        return torch.frombuffer(data[start + begin : start + end], dtype=kind).reshape(entry["shape"])

    return {name: tensor(entry) for name, entry in header.items()}


def load(folder):
    """Returns the network of `folder` with its weights, on the CPU."""
    folder = Path(folder)
    about = json.loads((folder / "network.json").read_text())
    genotype = json.loads((folder / "genotype.json").read_text())
    weights = read_safetensors(folder / "weights.safetensors")
    sizes = {key: about[key] for key in ("space", "init_channels", "layers", "num_classes")}
    auxiliary = any(name.startswith("auxiliary_head.") for name in weights)
    net = Network(genotype, auxiliary=auxiliary, **sizes).to(weights["classifier.weight"].dtype)
    net.load_state_dict(weights)
    for name in ("mean", "std"):
        values = torch.tensor(about[name], dtype=weights["classifier.weight"].dtype)
        net.register_buffer(name, values.view(1, 3, 1, 1), persistent=False)
    net.classes = about.get("classes")  # in the order of the outputs; None for runs of older versions
    return net


if __name__ == "__main__":
    loaded = load(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
    counted = (p.numel() for name, p in loaded.named_parameters() if "auxiliary" not in name)
    print(f"{sum(counted)} parameters, without the auxiliary head")
