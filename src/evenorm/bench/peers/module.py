"""Variants that are torch modules: our layers and torch's, as they are, compiled, and with separate activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.bench.activation import ACTIVATIONS
from evenorm.bench.case import Case, Data
from evenorm.bench.peers import ALONE, OURS, OURS_COMPILED, SEPARATE, Outputs, Unavailable

__all__ = ["VARIANTS", "Called"]


_HISTORY = ("running_mean", "running_var")


class Called:
    """A module called on the case's tensors."""

    def __init__(self, module: nn.Module, data: Data, *, retains: bool = True) -> None:
        self.module = data.load(module.to(data.x.device))
        self.x = data.x
        beside = {"residual": data.residual, "mask": data.mask}
        self.options = {name: tensor for name, tensor in beside.items() if tensor is not None}
        self.cotangents = data.dy if data.d_total is None else (data.dy, data.d_total)
        self.leaves = (data.x, *self.options.values(), *self.module.parameters())
        self.retains = retains
        self.y: Any = None

    def call(self, direction: str) -> Callable[[], object]:
        """What is timed. The caller turns gradients off for ``"forward"``."""
        if direction == "backward":
            if not self.retains:
                raise Unavailable("a compiled graph frees its buffers in its first backward")
            self.y = self.module(self.x, **self.options)
            return self._backward
        self.y = None
        return self._forward if direction == "forward" else self._both

    def outputs(self) -> Outputs:
        """y without and with gradients, every gradient, and the running statistics after both."""
        with torch.no_grad():
            bare = self.module(self.x, **self.options)
        y = self.module(self.x, **self.options)
        torch.autograd.backward(y, self.cotangents)
        found = {"y without grad": bare, "y": y, "dx": self.x.grad}
        if isinstance(y, tuple):
            found |= {"y without grad": bare[0], "y": y[0], "sum": y[1]}
        for name, parameter in self.module.named_parameters():
            found[f"d{name.rpartition('.')[2]}"] = parameter.grad
        found |= {f"d{name}": tensor.grad for name, tensor in self.options.items() if tensor.requires_grad}
        # Moved twice by now, where the layer learns them: keeping them up is a part of what is timed.
        for name, buffer in self.module.named_buffers():
            if (history := name.rpartition(".")[2]) in _HISTORY:
                found[history] = buffer.clone()
        self._clear()
        return found

    def _forward(self) -> Any:
        return self.module(self.x, **self.options)

    def _both(self) -> None:
        torch.autograd.backward(self.module(self.x, **self.options), self.cotangents)
        self._clear()

    def _backward(self) -> None:
        torch.autograd.backward(self.y, self.cotangents, retain_graph=True)
        self._clear()

    def _clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


class _Separate(nn.Module):
    """A layer, an addition and an activation, one after the other."""

    def __init__(self, layer: nn.Module, case: Case) -> None:
        super().__init__()
        self.layer = layer
        self.before = case.residual == "before"
        self.activation = None if case.activation is None else ACTIVATIONS[case.activation]

    def forward(self, x: Tensor, residual: Any = None) -> Any:
        total = x + residual if self.before else x
        y: Tensor = self.layer(total)
        if residual is not None and not self.before:
            y = y + residual
        if self.activation is not None:
            y = self.activation(y)
        return (y, total) if self.before else y


def _theirs(case: Case) -> nn.Module:
    return _Separate(case.torchs(), case) if case.fuses else case.torchs()


def _compiled(module: nn.Module, data: Data) -> Called:
    compiled: Any = torch.compile(module, dynamic=False)
    return Called(compiled, data, retains=False)


VARIANTS: dict[str, Callable[[Case, Data], Called]] = {
    OURS: lambda case, data: Called(case.ours(fused=True), data),
    "torch": lambda case, data: Called(_theirs(case), data),
    "compile": lambda case, data: _compiled(_theirs(case), data),
    OURS_COMPILED: lambda case, data: _compiled(case.ours(fused=True), data),
    ALONE: lambda case, data: Called(case.ours(), replace(data, residual=None, d_total=None)),
    SEPARATE: lambda case, data: Called(_Separate(case.ours(), case), data),
}
