"""Processor time of small pieces of work, taken in turns so that a busy machine is busy for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn


def seconds(work: Mapping[str, Callable[[], Any]], rounds: int, calls: int = 1) -> dict[str, float]:
    """Return the median over rounds of the processor time of one call, of each piece of work.

    The first two rounds do not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 2):
        for name, call in work.items():
            begin = time.thread_time()
            for _ in range(calls):
                call()
            taken[name].append((time.thread_time() - begin) / calls)
    return {name: median(times[2:]) for name, times in taken.items()}


def there_and_back(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return the work of one forward and one backward pass."""
    x = x.detach().requires_grad_()
    dy = torch.randn(module(x).shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)

    def work() -> None:
        module(x).backward(dy)

    return work
