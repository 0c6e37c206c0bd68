"""The two ways of a call: which one is taken, and everything that a call gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from evenorm.layers import Layer
from evenorm.operator import Straight

__all__ = ["counting", "results", "whole_way"]


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the straight calls that are made from now on."""
    kinds: list[str] = []
    right = Straight.__call__

    def counted(self: Straight, *arguments: Any) -> Any:
        y = right(self, *arguments)
        if y is not None:
            kinds.append(self.kind)
        return y

    monkeypatch.setattr(Straight, "__call__", counted)
    return kinds


@contextmanager
def whole_way() -> Iterator[None]:
    """No call goes straight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layer, "_straight", lambda *_: None)
        yield


def results(layer: Layer, x: Tensor, dy: Tensor, residual: Tensor | None = None) -> dict[str, Tensor]:
    """Everything that a call gives; of a residual before the normalization the sum too, with a gradient of its own."""
    x = x.detach().requires_grad_()
    beside = {} if residual is None else {"residual": residual.detach().requires_grad_()}
    y, *total = found if isinstance(found := layer(x, **beside), tuple) else (found,)
    torch.autograd.backward([y, *total], [dy, *(dy.flip(0) for _ in total)])
    assert x.grad is not None
    gradients = {name: p.grad for name, p in (*layer.named_parameters(), *beside.items()) if p.grad is not None}
    layer.zero_grad()
    buffers = {name: b.clone() for name, b in layer.named_buffers()}
    return {
        "y": y.detach(),
        "dx": x.grad,
        **{f"total {k}": t.detach() for k, t in enumerate(total)},
        **gradients,
        **buffers,
    }
