"""The supernet of DrNAS in the NAS-Bench-201 space (ICLR 2020), in plain PyTorch: see supernet.py.

Shapes: N batch, C channels, H W, E = 6 edges, O = 5 operations. Edges are ordered 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2.
"""

from torch import nn

from supernet import add_up, conv, mix

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4
EDGES = [(node, state) for node in range(1, NODES) for state in range(node)]


class Zero(nn.Module):
    def forward(self, x):
        return x * 0.0


class ReLUConvBN(nn.Module):
    def __init__(self, c_in, c_out, kernel, stride=1, affine=False):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            conv(c_in, c_out, kernel, stride=stride, padding=kernel // 2),
            nn.BatchNorm2d(c_out, affine=affine),
        )

    def forward(self, x):
        return self.op(x)


def operation(name, c):
    return {
        "none": Zero,
        "skip_connect": nn.Identity,
        "nor_conv_1x1": lambda: ReLUConvBN(c, c, 1),
        "nor_conv_3x3": lambda: ReLUConvBN(c, c, 3),
        "avg_pool_3x3": lambda: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    }[name]()


class Edge(nn.ModuleList):
    """The operations of an edge. As in the published names, they are direct children of the edge: `edges.1<-0.2`."""

    def __init__(self, c, k, kept):
        super().__init__(operation(name, c // k) for name in OPERATIONS)
        self.k, self.kept = k, kept
        self.bypass = nn.Identity()

    def forward(self, x, weights):
        return mix(self, x, weights, self.k, self.kept, self.bypass)


class Cell(nn.Module):
    def __init__(self, c, k, mask):
        super().__init__()
        edges = zip(EDGES, mask)
        self.edges = nn.ModuleDict({f"{node}<-{state}": Edge(c, k, kept) for (node, state), kept in edges})

    def forward(self, x, theta):
        """`theta` [E, O]."""
        states = [x]
        for node in range(1, NODES):
            ends = [(state, EDGES.index((node, state))) for state in range(node)]
            states.append(add_up([self.edges[f"{node}<-{state}"](states[state], theta[edge]) for state, edge in ends]))
        return states[-1]


class ResidualBlock(nn.Module):
    """Residual block between the groups of cells; halves H and W."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv_a = ReLUConvBN(c_in, c_out, 3, stride=2, affine=True)
        self.conv_b = ReLUConvBN(c_out, c_out, 3, affine=True)
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), conv(c_in, c_out, 1))

    def forward(self, x, theta):
        return self.conv_b(self.conv_a(x)) + self.downsample(x)


class Supernet(nn.Module):
    """Maps images to logits for given mixing weights.

    `masks`: kept operations of the single table, bool [1][E][O]; None: all.
    """

    def __init__(self, init_channels, cells_per_group, num_classes, k, masks=None):
        super().__init__()
        (mask,) = masks or [[[True] * len(OPERATIONS)] * len(EDGES)]
        c = init_channels
        self.stem = nn.Sequential(conv(3, c, 3, padding=1), nn.BatchNorm2d(c))
        self.cells = nn.ModuleList()
        for group in range(3):
            if group > 0:
                self.cells.append(ResidualBlock(c, 2 * c))
                c *= 2
            self.cells.extend(Cell(c, k, mask) for _ in range(cells_per_group))
        self.lastact = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU())
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(c, num_classes)

    def forward(self, images, theta):
        """Shapes: `images` [N, 3, H, W], `theta` [E, O], result [N, classes]."""
        x = self.stem(images)
        for cell in self.cells:
            x = cell(x, theta)
        return self.classifier(self.global_pooling(self.lastact(x)).flatten(1))
