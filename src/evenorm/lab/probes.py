"""What is read off a network while it trains. Reading changes no bit of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from evenorm.lab.networks import Network

PERCENTILES = (5, 25, 50, 75, 95)
# Percentiles of more values than these are read off an even sample of them.
SAMPLE = 4096


@dataclass
class Activations:
    """Percentiles of what enters each hidden layer's activation function."""

    percentiles: dict[str, list[list[float]]] = field(default_factory=dict)

    @contextmanager
    def watching(self, network: Network) -> Iterator[None]:
        """Read the forward passes inside this context."""
        handles = [block.activation.register_forward_pre_hook(self._reader(name)) for name, block in network.hidden()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _reader(self, layer: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        levels = torch.tensor([percent / 100 for percent in PERCENTILES])

        def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().flatten().float()
            values = values[:: -(-len(values) // SAMPLE)]
            found = torch.quantile(values, levels).tolist()
            self.percentiles.setdefault(layer, []).append(found)

        return read


@dataclass
class Gradients:
    """The L2 norm of the loss's gradient over all parameters of each layer's linear map."""

    norms: dict[str, list[float]] = field(default_factory=dict)

    def read(self, network: Network) -> None:
        """Read the gradients that a backward pass has left."""
        layers: list[tuple[str, nn.Module]] = [(name, block.linear) for name, block in network.hidden()]
        for name, layer in [*layers, ("output", network[-1])]:
            squares = [float(p.grad.square().sum()) for p in layer.parameters() if p.grad is not None]
            self.norms.setdefault(name, []).append(sum(squares) ** 0.5)


@dataclass
class SavedBytes:
    """The memory that autograd keeps from a forward pass for its backward pass.

    Every distinct storage counts once. Parameters and the batch do not count: they are there anyway.

    >>> x, memory = torch.ones(1000, requires_grad=True), SavedBytes()
    >>> with memory.watching([]):
    ...     y = x.sin().sin()
    >>> memory.total
    8000
    """

    total: int = 0

    @contextmanager
    def watching(self, apart: Iterable[Tensor]) -> Iterator[None]:
        """Count what the forward pass inside this context saves, but for the given tensors."""
        seen = {tensor.untyped_storage().data_ptr() for tensor in apart}
        # Kept until the end: the address of a freed one could come again.
        kept = []

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                kept.append(tensor)
                self.total += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
