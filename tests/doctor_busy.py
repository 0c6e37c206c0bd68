"""A model that changes everything that a forward can change, and how to see that nothing has changed."""

import random
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn


class Busy(nn.Module):
    """A flipped momentum, a bias without effect, and a forward that leaves traces; it may raise in its n-th pass."""

    passes: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99), nn.Dropout(0.5))
        self.dropout = self.body[2]
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.seen: list[Tensor] = []
        self.count = 0
        self.fault: tuple[type[BaseException], int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        Busy.passes += 1
        self.seen.append(x)
        self.frozen.data.mul_(0.5)
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        self.dropout.eval()
        y: Tensor = self.body(x)
        if self.fault is not None and Busy.passes == self.fault[1]:
            raise self.fault[0]("stop")
        return y


def state(model: nn.Module) -> dict[str, Any]:
    """All of a model that may be seen from outside, and the random numbers to come."""
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "identities": [id(t) for t in (*model.parameters(), *model.buffers())],
        "modes": [m.training for m in model.modules()],
        "hooks": [(list(m._forward_hooks.values()), list(m._forward_pre_hooks.values())) for m in model.modules()],
        "tensor hooks": [len(p._backward_hooks or ()) for p in model.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "asks": [p.requires_grad for p in model.parameters()],
        "random": (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),  # type: ignore[index]  # noqa: NPY002
        "own": (getattr(model, "count", 0), len(getattr(model, "seen", []))),
    }


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
