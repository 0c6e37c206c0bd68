"""A model's exact state, to put back: classes, attributes, hooks, modes, parameters, buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Snapshot", "atomic", "untouched"]


class Snapshot:
    """What a model is at one moment. Objects are remembered, not copied; buffers by value only if asked."""

    def __init__(self, model: nn.Module, *, values: bool = False) -> None:
        self._modules = [(module, type(module), dict(module.__dict__)) for module in model.modules()]
        containers = {id(c): c for _, _, own in self._modules for c in own.values() if isinstance(c, (dict, set))}
        self._contents = [(container, container.copy()) for container in containers.values()]
        self._flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        self._values: list[tuple[Tensor, Tensor]] = []
        if values:
            self._values = [(b, b.detach().clone()) for b in model.buffers()]

    def restore(self) -> None:
        """Put everything back, in place."""
        for module, kind, attributes in self._modules:
            if type(module) is not kind:
                module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for container, content in self._contents:
            if not _is(container, content):
                container.clear()
                container.update(content)
        for parameter, flag, grad in self._flags:
            parameter.requires_grad_(flag)
            parameter.grad = grad
        with torch.no_grad():
            for buffer, value in self._values:
                buffer.copy_(value)


@contextmanager
def atomic(model: nn.Module, *, values: bool = False) -> Iterator[None]:
    """Whatever goes wrong inside, Ctrl-C too, the model is afterwards what it was."""
    before = Snapshot(model, values=values)
    try:
        yield
    except BaseException:
        before.restore()
        raise


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, the model and the random numbers are afterwards what they were."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    before = Snapshot(model, values=True)
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        before.restore()


def _is(container: dict[Any, Any] | set[Any], content: dict[Any, Any] | set[Any]) -> bool:
    """Whether the very same objects are in it, in the same order; tensors are not to be compared by value."""
    if isinstance(container, dict) and isinstance(content, dict):
        pairs = zip(container.items(), content.items(), strict=False)
        return len(container) == len(content) and all(a == b and x is y for (a, x), (b, y) in pairs)
    return container == content
