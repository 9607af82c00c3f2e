"""The bilevel step of DrNAS (ICLR 2021), in plain PyTorch.

Shapes: `eta` [E, O] per table (normal and reduction cells), E edges, O operations.
"""

import torch
from torch import nn
from torch.distributions import Dirichlet
from torch.nn import functional as F


def initial_eta(num_edges, num_operations):
    return 1e-3 * torch.randn(num_edges, num_operations)


def draw_theta(eta, mask=None):
    """Draws theta ~ Dirichlet(ELU(eta) + 1) per edge, with the pathwise gradient with respect to eta (DrNAS, section 2).

    `mask` [E, O], 0 or 1: pruned operations get 0, and the rest of a row is renormalised to sum 1.
    """
    # Validation of arguments would synchronise with the device in every step.
    theta = Dirichlet(F.elu(eta) + 1, validate_args=False).rsample()
    if mask is None:
        return theta
    theta = theta * mask
    return theta / theta.sum(dim=-1, keepdim=True)


class Search:
    """A supernet, its eta, and the optimisers for both.

    `etas`: one per table. `lr`: learning rate of the weights. `masks`: those of the supernet, or None. `autocast`: dtype
    of activations, None for that of the weights.

    `needed_gradients_only`: the architecture step computes no gradients of weights, and the weight step none of eta. By
    default all gradients are computed and the unneeded ones discarded, like `loss.backward()` in the published code.
    """

    # Settings of the published ImageNet search.
    GRAD_CLIP = 5.0
    ETA = {"lr": 6e-3, "betas": (0.5, 0.999), "weight_decay": 1e-3}
    WEIGHTS = {"momentum": 0.9, "weight_decay": 3e-4}

    def __init__(self, net, etas, lr, masks=None, autocast=None, needed_gradients_only=False):
        self.net = net
        device = next(net.parameters()).device
        self.device_type, self.autocast = device.type, autocast
        self.needed_gradients_only = needed_gradients_only
        self.etas = [eta.to(device).requires_grad_() for eta in etas]
        self.masks = [None] * len(etas)
        if masks is not None:
            self.masks = [torch.tensor(mask, dtype=eta.dtype, device=device) for mask, eta in zip(masks, etas)]
        self.eta_optimiser = torch.optim.Adam(self.etas, **self.ETA)
        self.weight_optimiser = torch.optim.SGD(net.parameters(), lr=lr, **self.WEIGHTS)

    def loss(self, images, labels, architecture):
        """Returns the loss of one batch; every call draws a new theta."""
        theta = [draw_theta(eta, mask) for eta, mask in zip(self.etas, self.masks)]
        if self.needed_gradients_only and not architecture:
            theta = [table.detach() for table in theta]
        with torch.autocast(self.device_type, self.autocast, enabled=self.autocast is not None):
            return F.cross_entropy(self.net(images, *theta), labels)

    def architecture_step(self, images, labels):
        """Updates eta, first order: with the current weights (DARTS, section 2.3)."""
        self.eta_optimiser.zero_grad()
        loss = self.loss(images, labels, architecture=True)
        loss.backward(inputs=self.etas if self.needed_gradients_only else None)
        nn.utils.clip_grad_norm_(self.etas, self.GRAD_CLIP)
        self.eta_optimiser.step()

    def weight_step(self, images, labels):
        # Also clears the gradients that the architecture step left in the weights.
        self.weight_optimiser.zero_grad()
        loss = self.loss(images, labels, architecture=False)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.GRAD_CLIP)
        self.weight_optimiser.step()
        return loss.detach()

    def bilevel_step(self, train, valid):
        """Updates eta on batch `valid` (None: no architecture step), then the weights on batch `train`. Returns the loss of
        the weight step, on the device.
        """
        if valid is not None:
            self.architecture_step(*valid)
        return self.weight_step(*train)
