"""One network trained at several learning rates, of which one is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

from evenorm.lab.data import Images
from evenorm.lab.fit import Pace, Trace, descent, even, fit
from evenorm.lab.training import Schedule, Watch, predictions, stream

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Attempt(Generic[Model]):
    """One training.

    Attributes:
        rate: of the optimizer.
        network: after it.
        trace: its losses.
        watch: held-out accuracy on the way.
        steps: that it was given.
    """

    rate: float
    network: Model
    trace: Trace
    watch: Watch
    steps: int

    def reached(self, target: float) -> int:
        """Return after how many steps an accuracy was first seen; all steps where it was not."""
        return self.watch.reached(target) or self.steps

    @property
    def curve(self) -> tuple[list[int], list[float]]:
        """Held-out accuracy over steps, in percent."""
        return self.watch.steps, [100 * share for share in self.watch.shares]


def attempts(
    start: Callable[[], Model],
    images: Images,
    rates: Iterable[float],
    *,
    steps: int,
    seed: int,
    batch: int = 64,
    pace: Pace = even,
    looks: int = 20,
) -> list[Attempt[Model]]:
    """Train a fresh network at each rate, all on the same batches, with so many looks at the held-out accuracy."""
    made = []
    for rate in rates:
        torch.manual_seed(seed)
        network, watch = start(), Watch(images, max(1, steps // looks))
        batches = stream(images, Schedule(batch, steps, rate, seed))
        trace = fit(network, batches, descent(rate), pace=pace, probes=[watch])
        made.append(Attempt(rate, network, trace, watch, steps))
    return made


def lowest(made: Sequence[Attempt[Model]]) -> Attempt[Model]:
    """Return the one whose training loss is lowest at the end: held-out images take no part in the choice."""
    return min(made, key=lambda attempt: attempt.trace.last_loss())


def soonest(made: Sequence[Attempt[Model]], target: float) -> Attempt[Model]:
    """Return the one that reaches an accuracy first."""
    return min(made, key=lambda attempt: (attempt.reached(target), -max(attempt.watch.shares, default=0.0)))


def accuracy(network: nn.Module, images: Images) -> float:
    """Return how many of the held-out images are right in evaluation mode, in percent."""
    return 100 * float(np.mean(predictions(network, images, images.test_pixels) == images.test_labels))
