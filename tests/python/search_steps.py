"""A whole search in PyTorch: search_steps.py FOLDER.

The networks are those of benches/plain, which tests/plain.rs compares with the published code. The loop follows DrNAS
(ICLR 2021), DARTS (ICLR 2019) and the published code, and uses PyTorch's autograd, SGD, Adam, gradient clipping, cosine
schedule and Dirichlet distribution. Replicas are networks with equal weights and their own batch statistics, whose
gradients are averaged as in DistributedDataParallel.

Shapes: S steps, A steps that train eta, R replicas, N images per replica, T tables, E edges, O operations.

FOLDER/search.toml is the configuration, with every key that this script reads. FOLDER/inputs.safetensors holds the
initial state, the random draws and the images:

    weights/NAME, eta [T, E, O]                         at the start of the search
    train.images [S, R, N, 3, px, px] uint8, train.labels [S, R, N]; valid.images, valid.labels [A, ...]
    theta.weights, theta.architecture, theta.virtual    [S, R, T, E, O]: Dirichlet samples before the mask, for the
                                                        weight step, the architecture step, and its virtual step
    copied/NAME.input, copied/NAME.output, copied/NAME  channels that the widening copies: of a convolution's weight, or
                                                        of the batch norm after a pooling; absent if there are none

Writes FOLDER/torch.safetensors: `losses` [S], `architecture_losses` [A], `lr` [S], `epoch_eta` [epochs, T, E, O] (at
the end of each epoch, before pruning), and the state after each step (for the last step of a stage, after pruning and
widening) as STEP/NAME, named as in a checkpoint except for a replica's running statistics: running/REPLICA/NAME.
"""

import sys
import tomllib
from pathlib import Path

import torch
from torch import nn
from torch.distributions import Dirichlet, kl_divergence
from torch.func import functional_call
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "benches/plain"))
import nb201  # noqa: E402
import supernet  # noqa: E402
from check import read_safetensors  # noqa: E402
from search import draw_theta  # noqa: E402
from tensors import write_safetensors  # noqa: E402

# Length of the finite difference in a second-order step (DARTS, appendix A).
DIFFERENCE_LENGTH = 0.01


def learning_rates(weights, epochs):
    """The cosine schedule, whose first epochs are replaced by a linear warm-up, as in the published ImageNet search."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=weights["lr"])
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs, eta_min=weights["lr_min"])
    rates, warmup = [], weights["warmup_epochs"]
    for epoch in range(epochs):
        rates.append(weights["lr"] * (epoch + 1) / warmup if epoch < warmup else cosine.get_last_lr()[0])
        optimiser.step()
        cosine.step()
    return rates


def normalise(images, data, kind):
    mean, std = (torch.tensor(data[name], dtype=torch.float64).view(3, 1, 1) for name in ("mean", "std"))
    return ((images.double() / 255 - mean) / std).to(kind)


def extend(tensor, dim, copied):
    return tensor if copied is None else torch.cat([tensor, tensor.index_select(dim, copied)], dim)


class Search:
    def __init__(self, config, inputs):
        self.config, self.inputs = config, inputs
        self.kind = inputs["eta"].dtype
        self.masks = None
        self.etas = [eta.clone().requires_grad_() for eta in inputs["eta"]]
        eta = config["eta"]
        decay = eta["weight_decay"] if eta["regulariser"] == "l2" else 0.0
        self.adam = torch.optim.Adam(self.etas, lr=eta["lr"], betas=tuple(eta["betas"]), weight_decay=decay)
        self.nets = [self.network(config["search"]["stage"][0]["k"]) for _ in range(config["search"]["replicas"])]
        weights = {name[8:]: tensor for name, tensor in inputs.items() if name.startswith("weights/")}
        for net in self.nets:
            assert weights.keys() == dict(net.named_parameters()).keys()
            net.load_state_dict(weights, strict=False)
        self.sgd = self.optimiser()

    def network(self, k):
        model = self.config["model"]
        masks = None if self.masks is None else [mask.bool().tolist() for mask in self.masks]
        sizes = {"init_channels": model["init_channels"], "num_classes": model["num_classes"], "k": k, "masks": masks}
        if model["space"] == "nas-bench-201":
            net = nb201.Supernet(cells_per_group=model["layers"], **sizes)
        else:
            net = supernet.Supernet(model["space"].removeprefix("darts-"), layers=model["layers"], **sizes)
        return net.to(self.kind).train()

    def optimiser(self):
        weights = self.config["weights"]
        return torch.optim.SGD(
            self.nets[0].parameters(),
            lr=weights["lr"],
            momentum=weights["momentum"],
            weight_decay=weights["weight_decay"],
        )

    def theta(self, samples):
        """The mixing weights for one Dirichlet sample per table [T, E, O], differentiable with respect to eta."""
        sample_dirichlet, tables = torch._sample_dirichlet, []
        for table, (eta, sample) in enumerate(zip(self.etas, samples)):
            torch._sample_dirichlet = lambda *_, sample=sample, **__: sample.clone()
            tables.append(draw_theta(eta, None if self.masks is None else self.masks[table]))
        torch._sample_dirichlet = sample_dirichlet
        return tables

    def loss(self, batches, samples, virtual_weights=None):
        """The mean loss over the replicas. With virtual weights, the running statistics are not updated."""
        losses = []
        for net, (images, labels), sample in zip(self.nets, batches, samples, strict=True):
            inputs = (images, *self.theta(sample))
            if virtual_weights is None:
                logits = net(*inputs)
            else:
                buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
                logits = functional_call(net, {**virtual_weights, **buffers}, inputs)
            losses.append(F.cross_entropy(logits, labels))
        return torch.stack(losses).mean()

    def weight_grads(self, loss):
        """The gradients of the weights, summed over the replicas; None for weights of pruned operations."""
        weights = [weight for net in self.nets for weight in net.parameters()]
        grads = torch.autograd.grad(loss, weights, allow_unused=True)
        count = len(grads) // len(self.nets)
        return [None if grads[i] is None else sum(grads[i::count]) for i in range(count)]

    def regulariser(self):
        """The KL divergence from the uniform distribution, summed over the edges."""
        total = torch.zeros((), dtype=self.kind)
        if self.config["eta"]["regulariser"] == "kl":
            for eta in self.etas:
                concentration = F.elu(eta) + 1
                uniform = Dirichlet(torch.ones_like(concentration))
                total = total + kl_divergence(Dirichlet(concentration), uniform).sum()
            total = total * self.config["eta"]["kl_scale"]
        return total

    def architecture_step(self, step, train, valid, lr):
        if self.config["search"]["order"] == 1:
            loss = self.loss(valid, self.inputs["theta.architecture"][step])
            grads = torch.autograd.grad(loss, self.etas)
        else:
            loss, grads = self.second_order(step, train, valid, lr)
        for eta, grad in zip(self.etas, grads):
            eta.grad = grad
        regulariser = self.regulariser()
        if regulariser.requires_grad:
            regulariser.backward()
        if self.config["eta"]["grad_clip"] > 0:
            nn.utils.clip_grad_norm_(self.etas, self.config["eta"]["grad_clip"])
        self.adam.step()
        return loss.detach()

    def second_order(self, step, train, valid, lr):
        """The loss after a virtual SGD step, and its gradient with respect to eta, through that step by a finite
        difference (DARTS, section 2.3 and appendix A). Virtual networks do not update the running statistics.
        """
        settings, train_samples = self.config["weights"], self.inputs["theta.virtual"][step]
        weights = dict(self.nets[0].named_parameters())
        virtual = {}
        for (name, weight), grad in zip(weights.items(), self.weight_grads(self.loss(train, train_samples))):
            change = settings["weight_decay"] * weight.detach()
            if grad is not None:
                change = change + grad
            if weight in self.sgd.state:
                change = change + settings["momentum"] * self.sgd.state[weight]["momentum_buffer"]
            virtual[name] = (weight.detach() - lr * change).requires_grad_()
        loss = self.loss(valid, self.inputs["theta.architecture"][step], virtual)
        grads = torch.autograd.grad(loss, [*self.etas, *virtual.values()], allow_unused=True)
        eta_grads, vector = grads[: len(self.etas)], dict(zip(virtual, grads[len(self.etas) :]))
        radius = DIFFERENCE_LENGTH / torch.cat([grad.flatten() for grad in vector.values() if grad is not None]).norm()
        for sign in (1, -1):
            for name, weight in weights.items():
                virtual[name] = weight.detach()
                if vector[name] is not None:
                    virtual[name] = virtual[name] + sign * radius * vector[name]
            grads = torch.autograd.grad(self.loss(train, train_samples, virtual), self.etas)
            eta_grads = [eta - lr * sign * grad / (2 * radius) for eta, grad in zip(eta_grads, grads)]
        return loss, eta_grads

    def weight_step(self, step, train, lr):
        loss = self.loss(train, self.inputs["theta.weights"][step])
        weights = list(self.nets[0].parameters())
        for weight, grad in zip(weights, self.weight_grads(loss)):
            weight.grad = grad
        if self.config["search"]["grad_clip"] > 0:
            nn.utils.clip_grad_norm_(weights, self.config["search"]["grad_clip"])
        for group in self.sgd.param_groups:
            group["lr"] = lr
        self.sgd.step()
        for net in self.nets[1:]:
            for other, weight in zip(net.parameters(), weights):
                other.data.copy_(weight)
        return loss.detach()

    def advance(self, stage):
        """Starts the next stage: prunes, widens and carries over the optimiser state."""
        masks = []
        for table, eta in enumerate(self.etas):
            left = eta.detach() if self.masks is None else eta.detach().masked_fill(self.masks[table] == 0, -torch.inf)
            best = left.topk(stage["ops_kept"]).indices
            masks.append(torch.zeros_like(left).scatter_(1, best, 1.0))
            eta.data.mul_(masks[-1])
        self.masks = masks

        old, momentum = self.nets, [self.sgd.state[weight]["momentum_buffer"] for weight in self.nets[0].parameters()]
        self.nets = [self.network(stage["k"]) for _ in old]
        for new, net in zip(self.nets, old):
            state = net.state_dict()
            for name, tensor in self.widened(net).items():
                state[name] = tensor
            new.load_state_dict(state)
        self.sgd = self.optimiser()
        names = [name for name, _ in old[0].named_parameters()]
        for name, weight, tensor in zip(names, self.nets[0].parameters(), momentum):
            self.sgd.state[weight]["momentum_buffer"] = self.widened_weight(name, tensor)

    def copied(self, name):
        return self.inputs.get(f"copied/{name}")

    def widened_weight(self, name, tensor):
        return extend(extend(tensor, 1, self.copied(f"{name}.input")), 0, self.copied(f"{name}.output"))

    def widened(self, net):
        """Weights and running statistics for the next stage; batch norms follow the channels of the preceding layer."""
        tensors = {name: self.widened_weight(name, weight.detach()) for name, weight in net.named_parameters()}
        tensors.update(net.named_buffers())

        def put(norm, module, index):
            if index is not None:
                for name in ("running_mean", "running_var"):
                    tensors[f"{norm}.{name}"] = getattr(module, name).index_select(0, index)

        def channels(module, name):
            """The output channels of a module after the widening, as indices of the old channels."""
            count = module.weight.shape[0]
            return extend(torch.arange(count), 0, self.copied(f"{name}.weight.output"))

        for name, module in net.named_modules():
            # Only operations on edges are widened.
            if "._ops." not in name.replace(".edges.", "._ops."):
                continue
            if isinstance(module, supernet.FactorizedReduce):
                first, second = channels(module.conv_1, f"{name}.conv_1"), channels(module.conv_2, f"{name}.conv_2")
                put(f"{name}.bn", module.bn, torch.cat([first, module.conv_1.weight.shape[0] + second]))
            elif isinstance(module, supernet.Pool):
                norm = module.op[1]
                put(f"{name}.op.1", norm, extend(torch.arange(norm.num_features), 0, self.copied(f"{name}.op.1")))
            elif isinstance(module, nn.Sequential):
                for at, (before, part) in enumerate(zip(module, module[1:]), start=1):
                    if isinstance(part, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                        put(f"{name}.{at}", part, channels(before, f"{name}.{at - 1}"))
        return tensors

    def pruned(self):
        """Name prefixes of the tensors of pruned operations."""
        prefixes = []
        for name, module in self.nets[0].named_modules():
            if isinstance(module, (supernet.MixedOp, nb201.Edge)):
                prefix = f"{name}._ops" if isinstance(module, supernet.MixedOp) else name
                prefixes += [f"{prefix}.{op}." for op, kept in enumerate(module.kept) if not kept]
        return tuple(prefixes)

    def state(self):
        """All tensors that a step changes, without those of pruned operations."""
        pruned, net = self.pruned(), self.nets[0]
        state = {}
        for name, weight in net.named_parameters():
            if not name.startswith(pruned):
                state[f"weights/{name}"] = weight.detach().clone()
                state[f"momentum/{name}"] = self.sgd.state[weight]["momentum_buffer"].clone()
        running = []
        for replica, other in enumerate(self.nets):
            buffers = {name: buffer for name, buffer in other.named_buffers() if buffer.is_floating_point()}
            running.append({name: buffers[name].clone() for name in buffers if not name.startswith(pruned)})
            state.update({f"running/{replica}/{name}": buffer for name, buffer in running[-1].items()})
        for name in running[0]:
            state[f"weights/{name}"] = torch.stack([buffers[name] for buffers in running]).mean(0)
        moments = [self.adam.state[eta] for eta in self.etas]
        state["eta"] = torch.stack([eta.detach() for eta in self.etas])
        for name, moment in (("mean", "exp_avg"), ("square", "exp_avg_sq")):
            tables = [s[moment] if moment in s else torch.zeros_like(eta) for s, eta in zip(moments, self.etas)]
            state[f"eta.{name}"] = torch.stack(tables)
        return state


def main(folder):
    config = tomllib.loads((folder / "search.toml").read_text())
    inputs, _ = read_safetensors(folder / "inputs.safetensors")
    search = Search(config, inputs)

    def batches(name, at):
        """One per replica."""
        images = normalise(inputs[f"{name}.images"][at], config["data"], search.kind)
        return list(zip(images, inputs[f"{name}.labels"][at], strict=True))

    stages = config["search"]["stage"]
    rates = learning_rates(config["weights"], sum(stage["epochs"] for stage in stages))
    found = {"losses": [], "architecture_losses": [], "lr": [], "epoch_eta": []}
    step = epoch = 0
    for number, stage in enumerate(stages):
        for epoch_of_stage in range(stage["epochs"]):
            lr = rates[epoch]
            for _ in range(config["search"]["steps_per_epoch"]):
                train = batches("train", step)
                if epoch_of_stage >= config["search"]["architecture_from_epoch"]:
                    valid = batches("valid", len(found["architecture_losses"]))
                    found["architecture_losses"].append(search.architecture_step(step, train, valid, lr))
                found["losses"].append(search.weight_step(step, train, lr))
                found["lr"].append(torch.tensor(lr, dtype=torch.float64))
                step += 1
                # The change of stage is part of the last step of a stage.
                if step % config["search"]["steps_per_epoch"] == 0:
                    found["epoch_eta"].append(torch.stack([eta.detach().clone() for eta in search.etas]))
                    if epoch_of_stage + 1 == stage["epochs"] and number + 1 < len(stages):
                        search.advance(stages[number + 1])
                found.update({f"{step}/{name}": tensor for name, tensor in search.state().items()})
            epoch += 1
    write_safetensors(
        folder / "torch.safetensors",
        {name: torch.stack(x) if isinstance(x, list) else x for name, x in found.items()},
    )


torch.set_num_threads(1)
main(Path(sys.argv[1]))
