"""Where the statistics come from: this batch, a running average, the whole past, or a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Batch", "Cumulative", "Frozen", "History", "Running", "Statistics"]


class History(NamedTuple):
    """What a layer remembers: running mean, running unbiased variance, number of updates."""

    mean: Tensor
    variance: Tensor
    updates: Tensor | None = None

    def blend(self, mean: Tensor, variance: Tensor, weight: float | Tensor) -> None:
        """history ← (1 − weight)·history + weight·new, computed in float64 and rounded once; one update more."""
        for kept, new in ((self.mean, mean), (self.variance, variance)):
            kept.copy_(torch.lerp(kept.double(), new.double(), weight))
        if self.updates is not None:
            self.updates.add_(1)


@runtime_checkable
class Statistics(Protocol):
    """One choice of where mean and variance come from."""

    def __hash__(self) -> int:
        """Recipes are kept by their parts."""

    def remembers(self, training: bool) -> bool:
        """Whether a call normalizes with the history instead of this batch."""

    def update(self, history: History, mean: Tensor, variance: Tensor) -> None:
        """Take this batch's mean and unbiased variance into the history, in place."""


@dataclass(frozen=True)
class Batch:
    """The statistics of this batch, in training and in evaluation; nothing is remembered."""

    def remembers(self, training: bool) -> bool:
        """Never."""
        return False

    def update(self, history: History, mean: Tensor, variance: Tensor) -> None:
        """Nothing is kept."""

    def __str__(self) -> str:
        return "this batch"


@dataclass(frozen=True, init=False)
class Running:
    """Batch statistics in training, their exponential average in evaluation.

    running ← (1 − momentum)·running + momentum·new (torch's convention). ``decay`` is the other one,
    running ← decay·running + (1 − decay)·new: ``Running(decay=0.99) == Running(momentum=0.01)``.

    Raises:
        ValueError: both or neither given, or a number outside [0, 1].

    >>> Running(decay=0.75)
    Running(momentum=0.25)
    """

    momentum: float

    def __init__(self, momentum: float | None = None, *, decay: float | None = None) -> None:
        if (momentum is None) == (decay is None):
            raise ValueError(
                f"Running: give either momentum (torch's convention) or decay, "
                f"got momentum={momentum!r}, decay={decay!r}"
            )
        name, value = ("momentum", momentum) if momentum is not None else ("decay", decay)
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(f"Running: {name} must be a number from 0 to 1, got {value!r}")
        # 1 - 0.99 is 0.010000000000000009; fifteen digits give back what was meant.
        object.__setattr__(self, "momentum", value if name == "momentum" else float(f"{1 - value:.15g}"))

    def remembers(self, training: bool) -> bool:
        """In evaluation."""
        return not training

    def update(self, history: History, mean: Tensor, variance: Tensor) -> None:
        """Blend by the momentum."""
        history.blend(mean, variance, self.momentum)

    def __str__(self) -> str:
        return f"this batch in training, a running average (momentum {self.momentum:g}) in evaluation"


@dataclass(frozen=True)
class Cumulative:
    """Batch statistics in training, the plain average of all batches seen in evaluation (``momentum=None``)."""

    def remembers(self, training: bool) -> bool:
        """In evaluation."""
        return not training

    def update(self, history: History, mean: Tensor, variance: Tensor) -> None:
        """Blend by 1 / number of updates, this one counted in."""
        if history.updates is None:
            raise ValueError("Cumulative: the history has no counter of updates; keep num_batches_tracked")
        history.blend(mean, variance, 1.0 / (history.updates.double() + 1))

    def __str__(self) -> str:
        return "this batch in training, the average of all batches in evaluation"


@dataclass(frozen=True)
class Frozen:
    """The history, in training and in evaluation; it never moves."""

    def remembers(self, training: bool) -> bool:
        """Always."""
        return True

    def update(self, history: History, mean: Tensor, variance: Tensor) -> None:
        """Frozen statistics stay."""

    def __str__(self) -> str:
        return "frozen"
