"""Variants that are torch modules: our layers and torch's, as they are, compiled, and with separate activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenorm.bench.case import Case, Data
from evenorm.bench.peers import OURS, Outputs, Unavailable

__all__ = ["VARIANTS", "Called"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "silu": functional.silu,
    "hardswish": functional.hardswish,
    "gelu": functional.gelu,
}


class Called:
    """A module called on the case's tensors."""

    def __init__(self, module: nn.Module, data: Data, *, retains: bool = True) -> None:
        self.module = data.load(module)
        self.x, self.dy = data.x, data.dy
        self.arguments = (data.x,) if data.residual is None else (data.x, data.residual)
        self.leaves = (*self.arguments, *self.module.parameters())
        self.retains = retains
        self.y: Tensor | None = None

    def call(self, direction: str) -> Callable[[], object]:
        """What is timed. The caller turns gradients off for ``"forward"``."""
        if direction == "backward":
            if not self.retains:
                raise Unavailable("a compiled graph frees its buffers in its first backward")
            self.y = self.module(*self.arguments)
            return self._backward
        self.y = None
        return self._forward if direction == "forward" else self._both

    def outputs(self) -> Outputs:
        """y without and with gradients, and every gradient."""
        with torch.no_grad():
            bare = self.module(*self.arguments)
        y = self.module(*self.arguments)
        y.backward(self.dy)
        found = {"y without grad": bare, "y": y.detach(), "dx": self.x.grad}
        for name, parameter in self.module.named_parameters():
            found[f"d{name.rpartition('.')[2]}"] = parameter.grad
        if len(self.arguments) > 1:
            found["dresidual"] = self.arguments[1].grad
        self._clear()
        return found

    def _forward(self) -> Tensor:
        y: Tensor = self.module(*self.arguments)
        return y

    def _both(self) -> None:
        self.module(*self.arguments).backward(self.dy)
        self._clear()

    def _backward(self) -> None:
        assert self.y is not None
        self.y.backward(self.dy, retain_graph=True)
        self._clear()

    def _clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


class _Separate(nn.Module):
    """A layer, an addition and an activation, one after the other."""

    def __init__(self, layer: nn.Module, case: Case) -> None:
        super().__init__()
        self.layer = layer
        self.activation = None if case.activation is None else _ACTIVATIONS[case.activation]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y: Tensor = self.layer(x)
        if residual is not None:
            y = y + residual
        return y if self.activation is None else self.activation(y)


def _ours(case: Case) -> nn.Module:
    return case.ours() if case.activation is None else case.ours(activation=case.activation)


def _theirs(case: Case) -> nn.Module:
    return _Separate(case.torchs(), case) if case.extras else case.torchs()


def _compiled(module: nn.Module, data: Data) -> Called:
    compiled: Any = torch.compile(module, dynamic=False)
    return Called(compiled, data, retains=False)


VARIANTS: dict[str, Callable[[Case, Data], Called]] = {
    OURS: lambda case, data: Called(_ours(case), data),
    "torch": lambda case, data: Called(_theirs(case), data),
    "compile": lambda case, data: _compiled(_theirs(case), data),
    "evenorm compiled": lambda case, data: _compiled(_ours(case), data),
    "norm alone": lambda case, data: Called(case.ours(), replace(data, residual=None)),
    "separate": lambda case, data: Called(_Separate(case.ours(), case), data),
}
