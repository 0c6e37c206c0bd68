"""How smooth the loss is along the gradient, as a probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from evenorm.lab.fit import Batch, Probe


class Landscape(Probe):
    r"""Walks from the weights along the negative gradient, and looks at loss and gradient on the way.

    The step lengths are multiples of the gradient itself: :math:`W - \eta \cdot g`.

    Attributes:
        steps: after how many steps it looked.
        ranges: greatest loss minus least on the way.
        changes: the greatest distance of a gradient on the way from the one at the start (predictiveness).
        smoothness: the greatest such distance divided by the distance walked (the effective β).

    Source:
        Santurkar et al., "How Does Batch Normalization Help Optimization?" (2018), figure 4.
    """

    def __init__(self, every: int, lengths: Sequence[float]) -> None:
        self.every, self.lengths = every, lengths
        self.steps: list[int] = []
        self.ranges: list[float] = []
        self.changes: list[float] = []
        self.smoothness: list[float] = []

    def due(self, step: int) -> bool:
        """Every so many steps."""
        return step % self.every == 0

    def differentiated(self, step: int, network: nn.Module, batch: Batch) -> None:
        """Walk, and come back."""
        start = {name: p.detach() for name, p in network.named_parameters() if p.grad is not None}
        gradient = {name: p.grad.detach() for name, p in network.named_parameters() if p.grad is not None}
        losses, changes, ratios = [], [], []
        for length in self.lengths:
            there = {name: (start[name] - length * gradient[name]).requires_grad_() for name in start}
            loss = cross_entropy(functional_call(network, there, (batch[0],)), batch[1])
            found = dict(zip(there, torch.autograd.grad(loss, list(there.values())), strict=True))
            change = distance(found, gradient)
            losses.append(float(loss.detach()))
            changes.append(change)
            ratios.append(change / (length * size(gradient)))
        self.steps.append(step + 1)
        self.ranges.append(max(losses) - min(losses))
        self.changes.append(max(changes))
        self.smoothness.append(max(ratios))


def size(tensors: dict[str, Tensor]) -> float:
    """Return the length of all tensors as one vector."""
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors.values()]).sum().sqrt())


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the length of the difference."""
    return size({name: ours[name] - theirs[name] for name in ours})
