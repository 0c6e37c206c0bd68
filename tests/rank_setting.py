"""One of several processes: what its checks share. ``rank.py`` runs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor

__all__ = [
    "CHECKS",
    "COUNT",
    "RANK",
    "SHARD",
    "SIZES",
    "assert_same_bits",
    "check",
    "close",
    "compare",
    "counting",
    "numbers",
    "seeded",
    "summed",
]

RANK, COUNT = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
CHECKS: dict[str, Callable[[], None]] = {}
# Uneven, with one sample alone and with none.
SIZES = {2: (5, 1), 3: (4, 0, 3), 4: (7, 1, 0, 5)}[COUNT]
SHARD = slice(sum(SIZES[:RANK]), sum(SIZES[: RANK + 1]))


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64) * 2 + 3


def seeded(layer: Any) -> Any:
    """The same parameters on every rank, and not the initial ones."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 2)
    return layer


def summed(value: Tensor) -> Tensor:
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def assert_same_bits(value: Tensor) -> None:
    rows = [torch.empty_like(value) for _ in range(COUNT)]
    dist.all_gather(rows, value.detach().contiguous())
    assert all(torch.equal(row, rows[0]) for row in rows)


def compare(synced: Any, whole: Any, x: Tensor, dy: Tensor, shard: slice = SHARD, **options: Tensor) -> None:
    """A step of this rank's shard is the shard of one process's step on everything."""
    torch.manual_seed(RANK)
    mine = {name: value[shard] for name, value in options.items()}
    part, everything = x[shard].clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = synced(part, **mine), whole(everything, **options)
    y.backward(dy[shard])
    expected.backward(dy)
    assert part.grad is not None
    assert everything.grad is not None
    close(y, expected[shard])
    close(part.grad, everything.grad[shard])
    for mine_, theirs in zip(synced.parameters(), whole.parameters(), strict=True):
        close(summed(mine_.grad), theirs.grad, 1e-11)
    for mine_, theirs in zip(synced.buffers(), whole.buffers(), strict=True):
        close(mine_.double(), theirs.double())
        assert_same_bits(mine_)


@contextmanager
def counting() -> Iterator[list[tuple[int, torch.dtype]]]:
    """Numbers and dtype of every collective."""
    sent: list[tuple[int, torch.dtype]] = []
    gather = collectives.all_gather_single

    def counted(packet: Tensor, *rest: Any) -> Tensor:
        sent.append((packet.numel(), packet.dtype))
        return gather(packet, *rest)

    collectives.all_gather_single = counted  # type: ignore[assignment]
    try:
        yield sent
    finally:
        collectives.all_gather_single = gather
