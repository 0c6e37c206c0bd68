"""A model as it stands, to be put back whatever happens: values, modes, hooks, grads, random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["Snapshot", "undisturbed"]

CONTAINERS = (dict, list, set)


class Snapshot:
    """What a forward, a backward or an experiment may change in a model, copied.

    Parameters and buffers keep their identity and get their bits back; so do plain attributes (counters,
    caches, lists of tensors), the tables of hooks and submodules, ``grad`` and ``requires_grad``.
    """

    def __init__(self, model: nn.Module) -> None:
        scripted = [m for m in model.modules() if isinstance(m, torch.jit.ScriptModule)]
        self._modules = [(m, dict(vars(m))) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: dict[int, tuple[Tensor, Tensor, bool, Tensor | None]] = {}
        for _, attributes in self._modules:
            for value in attributes.values():
                self._keep(value, depth=2)
        for script in scripted:
            for tensor in (*script.parameters(recurse=False), *script.buffers(recurse=False)):
                self._keep(tensor, depth=0)
        self._random = RandomStates()

    def _keep(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            if id(value) not in self._tensors and not is_lazy(value):
                grad = value.grad if value.is_leaf else None
                self._tensors[id(value)] = (value, value.detach().clone(), value.requires_grad, grad)
                if grad is not None:
                    self._keep(grad, depth)
        elif isinstance(value, CONTAINERS) and depth:
            self._containers.append((value, value.copy()))
            for inner in value.values() if isinstance(value, dict) else value:
                self._keep(inner, depth - 1)

    def restore(self) -> None:
        """Put everything back. May be called again."""
        for module, attributes in self._modules:
            vars(module).clear()
            vars(module).update(attributes)
        for container, content in self._containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        for tensor, value, requires_grad, grad in self._tensors.values():
            # .data: a graph that the caller has not differentiated yet must not see a new version.
            if (tensor.dtype, tensor.shape, tensor.device) != (value.dtype, value.shape, value.device):
                tensor.data = value.clone()
            else:
                tensor.data.copy_(value)
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
                tensor.grad = grad
        self._random.restore()


class RandomStates:
    """The states of the generators that a model may draw from."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self._numpy, self._python = np.random.get_state(), random.getstate()  # noqa: NPY002

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        np.random.set_state(self._numpy)  # noqa: NPY002
        random.setstate(self._python)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[Snapshot]:
    """Do anything to a model; afterwards it is bit for bit as before, also after an exception or Ctrl-C.

    >>> norm = nn.BatchNorm1d(2)
    >>> with undisturbed(norm):
    ...     _ = norm(torch.ones(3, 2))
    >>> norm.running_mean.tolist()
    [0.0, 0.0]
    """
    snapshot = Snapshot(model)
    try:
        yield snapshot
    finally:
        try:
            snapshot.restore()
        except KeyboardInterrupt:
            # A second Ctrl-C waits until the model is whole.
            snapshot.restore()
            raise
