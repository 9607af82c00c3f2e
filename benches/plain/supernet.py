"""The supernet of DrNAS in the DARTS space, in plain PyTorch: one module per operation, one operation at a time.

Speed baseline for drnas-dist. Written from the papers DrNAS (ICLR 2021), DARTS (ICLR 2019) and PC-DARTS (ICLR 2020), with
the parameter names of the published DrNAS code, so that its weights load. Nothing is batched across edges or operations.

Shapes: N batch, C channels, H W, E = 14 edges, O = 7 operations. Edges of a cell are numbered node by node: node i (of
4) takes states 0 to i + 1; states 0 and 1 are the outputs of the two previous cells.
"""

from functools import reduce

import torch
from torch import nn

OPERATIONS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
NODES = 4
EDGES = sum(2 + node for node in range(NODES))
STEM_MULTIPLIER = 3


def conv(c_in, c_out, kernel, **options):
    return nn.Conv2d(c_in, c_out, kernel, bias=False, **options)


def search_norm(c):
    """Batch norm inside cells: without scale and shift, which would rescale the mixing weights (DARTS, appendix A)."""
    return nn.BatchNorm2d(c, affine=False)


def add_up(terms):
    # Not the builtin sum, which starts with an addition to 0: one more kernel on the device.
    return reduce(torch.add, terms)


def channel_shuffle(x, groups):
    """Channel g * (C / groups) + i goes to i * groups + g (ShuffleNet, CVPR 2018)."""
    n, c, h, w = x.shape
    if x.is_contiguous():
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
    # The same on [N, H, W, C], which keeps channels last: the code above would copy to channels first.
    x = x.permute(0, 2, 3, 1).reshape(n, h, w, groups, c // groups)
    return x.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)


class Pool(nn.Module):
    """3x3 pooling, then batch norm."""

    def __init__(self, c, kind, stride):
        super().__init__()
        if kind == "max":
            pool = nn.MaxPool2d(3, stride, padding=1)
        else:
            pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        self.op = nn.Sequential(pool, search_norm(c))

    def forward(self, x):
        return self.op(x)


class FactorizedReduce(nn.Module):
    """Halves H and W with two 1x1 convolutions of stride 2, the second one shifted by one pixel in H and W."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = conv(c_in, c_out // 2, 1, stride=2)
        self.conv_2 = conv(c_in, c_out // 2, 1, stride=2)
        self.bn = search_norm(c_out)

    def forward(self, x):
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class ReLUConvBN(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.op = nn.Sequential(nn.ReLU(), conv(c_in, c_out, 1), search_norm(c_out))

    def forward(self, x):
        return self.op(x)


class SepConv(nn.Module):
    """Twice: ReLU, depthwise, pointwise, batch norm; only the first has a stride."""

    def __init__(self, c, kernel, stride):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            conv(c, c, kernel, stride=stride, padding=kernel // 2, groups=c),
            conv(c, c, 1),
            search_norm(c),
            nn.ReLU(),
            conv(c, c, kernel, padding=kernel // 2, groups=c),
            conv(c, c, 1),
            search_norm(c),
        )

    def forward(self, x):
        return self.op(x)


class DilConv(nn.Module):
    """ReLU, depthwise convolution with dilation 2, pointwise convolution, batch norm."""

    def __init__(self, c, kernel, stride):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            conv(c, c, kernel, stride=stride, padding=2 * (kernel // 2), dilation=2, groups=c),
            conv(c, c, 1),
            search_norm(c),
        )

    def forward(self, x):
        return self.op(x)


def operation(name, c, stride):
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c)
    kind, _, size = name.split("_")
    if size not in ("3x3", "5x5"):
        raise ValueError(f"unknown operation {name}")
    kernel = int(size[0])
    if kind in ("max", "avg"):
        return Pool(c, kind, stride)
    return {"sep": SepConv, "dil": DilConv}[kind](c, kernel, stride)


def mix(operations, x, weights, k, kept, bypass):
    """Returns the sum of an edge's operations, weighted by `weights` [O], on the first 1/k of the channels; the others go
    through `bypass` (partial channels: PC-DARTS, section 3.2). `x` [N, C, H, W].

    `kept[o]`: whether operation o is computed, known on the host. (The published code reads each weight back and compares
    it with 0, which on a GPU synchronises once per operation; this baseline does not.)
    """
    num_mixed = x.shape[1] // k
    head = x[:, :num_mixed]
    terms = [weight * op(head) for weight, op, keep in zip(weights.unbind(), operations, kept) if keep]
    if k == 1:
        return add_up(terms)
    return channel_shuffle(torch.cat([add_up(terms), bypass(x[:, num_mixed:])], dim=1), k)


class MixedOp(nn.Module):
    """An edge with one module per operation."""

    def __init__(self, c, stride, k, kept):
        super().__init__()
        self.k, self.kept = k, kept
        self._ops = nn.ModuleList(operation(name, c // k, stride) for name in OPERATIONS)
        self.bypass = nn.MaxPool2d(2, 2) if stride == 2 else nn.Identity()

    def forward(self, x, weights):
        return mix(self._ops, x, weights, self.k, self.kept, self.bypass)


class Cell(nn.Module):
    def __init__(self, c_prev_prev, c_prev, c, reduction, reduction_prev, k, mask):
        super().__init__()
        self.preprocess0 = (FactorizedReduce if reduction_prev else ReLUConvBN)(c_prev_prev, c)
        self.preprocess1 = ReLUConvBN(c_prev, c)
        self._ops = nn.ModuleList()
        for node in range(NODES):
            for state in range(2 + node):
                stride = 2 if reduction and state < 2 else 1
                self._ops.append(MixedOp(c, stride, k, mask[len(self._ops)]))

    def forward(self, s0, s1, theta):
        """`theta` [E, O]."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edge = 0
        for _ in range(NODES):
            terms = []
            for state in states:
                terms.append(self._ops[edge](state, theta[edge]))
                edge += 1
            states.append(add_up(terms))
        return torch.cat(states[2:], dim=1)


class Supernet(nn.Module):
    """Maps images to logits for given mixing weights.

    `space`: "imagenet" (its stem divides H and W by 8) or "cifar". `masks`: kept operations of normal and of reduction
    cells, bool [2][E][O]; None: all.
    """

    def __init__(self, space, init_channels, layers, num_classes, k, masks=None):
        super().__init__()
        normal, reduce_ = masks or [[[True] * len(OPERATIONS)] * EDGES] * 2
        c = init_channels
        c_stem = STEM_MULTIPLIER * c
        self.imagenet = space == "imagenet"
        if self.imagenet:
            self.stem0 = nn.Sequential(
                conv(3, c_stem // 2, 3, stride=2, padding=1),
                nn.BatchNorm2d(c_stem // 2),
                nn.ReLU(),
                conv(c_stem // 2, c_stem, 3, stride=2, padding=1),
                nn.BatchNorm2d(c_stem),
            )
            self.stem1 = nn.Sequential(nn.ReLU(), conv(c_stem, c_stem, 3, stride=2, padding=1), nn.BatchNorm2d(c_stem))
        else:
            self.stem = nn.Sequential(conv(3, c_stem, 3, padding=1), nn.BatchNorm2d(c_stem))

        self.cells = nn.ModuleList()
        self.reductions = []
        # The second ImageNet stem halves H and W like a reduction cell.
        c_prev_prev, c_prev, reduction_prev = c_stem, c_stem, self.imagenet
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            c *= 2 if reduction else 1
            mask = reduce_ if reduction else normal
            self.cells.append(Cell(c_prev_prev, c_prev, c, reduction, reduction_prev, k, mask))
            self.reductions.append(reduction)
            c_prev_prev, c_prev, reduction_prev = c_prev, NODES * c, reduction
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(c_prev, num_classes)

    def forward(self, images, theta_normal, theta_reduce):
        """Shapes: `images` [N, 3, H, W], each theta [E, O], result [N, classes]."""
        if self.imagenet:
            s0 = self.stem0(images)
            s1 = self.stem1(s0)
        else:
            s0 = s1 = self.stem(images)
        for cell, reduction in zip(self.cells, self.reductions):
            s0, s1 = s1, cell(s0, s1, theta_reduce if reduction else theta_normal)
        return self.classifier(self.global_pooling(s1).flatten(1))
