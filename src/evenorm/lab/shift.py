"""How the inputs of a layer move while a network trains: two measures of covariate shift, as probes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from evenorm.lab.fit import Batch, Probe
from evenorm.lab.networks import Network

PERCENTILES = (15, 50, 85)


class LayerInputs(Probe):
    """Reads percentiles of what enters every activation function, for each unit, on the same images each time.

    The network sees them in training mode, as its layers do while they learn.

    Attributes:
        steps: after how many steps it was read.
        seen: by layer, percentiles (3, units) at each of them.
    """

    def __init__(self, x: Tensor, every: int) -> None:
        self.x, self.every = x, every
        self.steps: list[int] = []
        self.seen: dict[str, list[Tensor]] = {}

    def due(self, step: int) -> bool:
        """Whether so many steps are done, and at the first step."""
        return step % self.every == 0

    def updated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Read them."""
        assert isinstance(network, Network)
        levels = torch.tensor(PERCENTILES) / 100
        self.steps.append(step + 1)
        handles = []
        for name, block in network.hidden():

            def read(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                units = inputs[0].detach().float().movedim(1, -1).flatten(0, -2)
                self.seen.setdefault(name, []).append(torch.quantile(units, levels, dim=0))

            handles.append(block.activation.register_forward_pre_hook(read))
        with torch.no_grad():
            network(self.x)
        for handle in handles:
            handle.remove()

    def drift(self, layer: str) -> float:
        r"""Return how far a layer's percentiles move from one look to the next, in widths of the distribution.

        .. math:: \frac{\sum_t |p_t - p_{t-1}|}{\sum_t (p^{85}_t - p^{15}_t)}

        Both sums are over units and looks, the upper one is the mean of the three percentiles.
        """
        looks = torch.stack(self.seen[layer])
        width = (looks[:, -1] - looks[:, 0]).mean()
        moved = (looks[1:] - looks[:-1]).abs().mean() if len(looks) > 1 else torch.zeros(())
        return float(moved / width.clamp_min(1e-12))


class GradientChange(Probe):
    r"""Reads how much the layers before it change a layer's gradient in one update.

    .. math:: \lVert G_i - G_i' \rVert / \lVert G_i \rVert

    G is the gradient of the weights of layer i, G' the same after the update of the layers before it alone.

    Source:
        Santurkar et al., "How Does Batch Normalization Help Optimization?" (2018), definition 2.1, made relative.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.before: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.changes: dict[str, list[float]] = {}
        self.steps: list[int] = []

    def due(self, step: int) -> bool:
        """Every so many steps."""
        return step % self.every == 0

    def differentiated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Keep parameters and gradients of before the update."""
        self.before = {name: p.detach().clone() for name, p in network.named_parameters()}
        self.gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    def updated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Take each layer's gradient with the layers before it as they are now."""
        assert isinstance(network, Network)
        self.steps.append(step + 1)
        blocks = list(network.hidden())
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        mixed = dict(self.before)
        for index, (layer, block) in enumerate(blocks):
            weight = names[id(block.linear.weight)]
            if index:
                mixed[weight] = self.before[weight].requires_grad_()
                loss = cross_entropy(functional_call(network, mixed, (batch[0],)), batch[1])
                (after,) = torch.autograd.grad(loss, mixed[weight])
                before = self.gradients[weight]
                change = (after - before).norm() / before.norm().clamp_min(1e-30)
                self.changes.setdefault(layer, []).append(float(change))
            for name, parameter in block.named_parameters(prefix=weight.rpartition(".linear.")[0]):
                mixed[name] = parameter.detach()

    @property
    def mean(self) -> float:
        """The mean over layers and looks."""
        every = [change for changes in self.changes.values() for change in changes]
        return sum(every) / max(1, len(every))
