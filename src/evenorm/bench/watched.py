"""The suite ``monitor``: training steps of a watched model beside the same steps when nobody watches.

Both take turns on one model, step by step. The watcher's first step, in which everything is measured, comes before:
what is timed is a loop that goes on. It is timed only where watching changes no loss by a single bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from evenorm.bench import models
from evenorm.bench.measure import timings
from evenorm.bench.peers import OURS
from evenorm.bench.row import Row, Timing
from evenorm.bench.stopwatch import interleave

__all__ = ["BARE", "NETWORK", "SUITE", "Watch", "measure"]

Watch = Callable[[nn.Module, Optimizer], AbstractContextManager[Any]]
"""Takes a model and its optimizer; what it gives watches the steps inside ``with``, and may be entered again."""

SUITE, NETWORK, BARE = "monitor", "ResNet-50", "bare"
_STEPS = 2


def measure(watch: Watch, seconds: float, quick: bool = False) -> Iterator[Row]:
    """One row: ours is the watched step, and ``bare`` the same without."""
    torch.manual_seed(0)
    task = models.MODELS[NETWORK](quick)
    error = _error(task, watch)
    if error != 0:
        found = {OURS: Timing(absent=f"wrong: watching moves a loss by {error:.2g}")}
    else:
        calls = _steps(task.model, task, watch)
        calls[OURS]()
        found = timings(interleave(calls, seconds))
    found[OURS].error, found[OURS].share = error, error
    yield models.row(NETWORK, "training", task.batch, found, suite=SUITE, title="whole steps, watched · float32")


def _error(task: models.Task, watch: Watch) -> float:
    """The largest difference of the losses of a few steps, of a copy that is watched and one that never was."""
    model = copy.deepcopy(task.model)
    bare = models.training(model, task, SGD(model.parameters(), lr=task.rate))
    watched = _steps(copy.deepcopy(task.model), task, watch)[OURS]
    losses = [torch.stack([call() for _ in range(_STEPS)]) for call in (bare, watched)]
    return float((losses[0] - losses[1]).abs().max())


def _steps(model: nn.Module, task: models.Task, watch: Watch) -> dict[str, Callable[[], Tensor]]:
    optimizer = SGD(model.parameters(), lr=task.rate)
    step, watcher = models.training(model, task, optimizer), watch(model, optimizer)

    def watched() -> Tensor:
        with watcher:
            return step()

    return {OURS: watched, BARE: step}
