"""The averages: this batch alone, a running average, the whole past, or a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor

from evenorm.statistics.source import Source, Statistics

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Batch", "Cumulative", "Frozen", "Nonfinite", "Running", "Variance"]

Variance = Literal["unbiased", "biased", "debiased"]
"""What a running average keeps: M2 / (n − 1), as torch; M2 / n; or M2 / (n − 1), and nothing of the initial value."""

Kept = Literal["population", "unbiased", "biased"]
"""What a cumulative average keeps: the variance of all values together, or the average of the batches' variances."""

Nonfinite = Literal["skip", "raise"]
"""What happens to a batch that holds infinities or NaN: it is never taken in; it may also be an error."""


class _Alone:
    """Made of nothing else."""

    def on(self, base: Statistics) -> Self:
        """Itself."""
        return self

    def choices(self) -> tuple[Self]:
        """Itself alone."""
        return (self,)

    def flat(self) -> Source:
        """Itself alone."""
        return Source(self)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Batch(_Alone):
    """The statistics of this batch, in training and in evaluation; nothing is remembered."""

    def remembers(self, training: bool) -> bool:
        """Never."""
        return False

    def __str__(self) -> str:
        return "this batch"


@dataclass(frozen=True)
class Frozen(_Alone):
    """The history, in training and in evaluation; it never moves."""

    def remembers(self, training: bool) -> bool:
        """Always."""
        return True

    def __str__(self) -> str:
        return "frozen"


class _Average(_Alone):
    """What running and cumulative averages share."""

    variance: Any
    nonfinite: Nonfinite

    def _check(self, kinds: Any) -> None:
        name = type(self).__name__
        if self.variance not in get_args(kinds):
            known = ", ".join(map(repr, get_args(kinds)))
            raise ValueError(f"{name}: variance must be one of {known}, got {self.variance!r}")
        if self.nonfinite not in ("skip", "raise"):
            raise ValueError(f"{name}: nonfinite must be 'skip' or 'raise', got {self.nonfinite!r}")

    def remembers(self, training: bool) -> bool:
        """In evaluation."""
        return not training

    def share(self, updates: Tensor | None) -> float | Tensor:
        """A new batch's share of the average that has taken so many batches in."""
        raise NotImplementedError


@dataclass(frozen=True, init=False)
class Running(_Average):
    """Batch statistics in training, their exponential average in evaluation.

    running ← (1 − momentum)·running + momentum·new (torch's convention). ``decay`` is the other one,
    running ← decay·running + (1 − decay)·new: ``Running(decay=0.99) == Running(momentum=0.01)``.

    Args:
        momentum, decay: one of the two.
        variance: ``"unbiased"`` keeps M2 / (n − 1) as torch does, ``"biased"`` M2 / n. ``"debiased"`` is the unbiased
            one without the initial 0 and 1: a batch's share is momentum / (1 − (1 − momentum)ᵗ) at update t (Kingma &
            Ba, "Adam", 2015, section 3).
        nonfinite: a batch with infinities or NaN is never taken in; ``"raise"`` makes it an error too.

    Raises:
        ValueError: both or neither given, a number outside [0, 1], or no such choice.

    >>> Running(decay=0.75)
    Running(momentum=0.25)
    """

    momentum: float
    variance: Variance = "unbiased"
    nonfinite: Nonfinite = "skip"

    def __init__(
        self,
        momentum: float | None = None,
        variance: Variance = "unbiased",
        nonfinite: Nonfinite = "skip",
        *,
        decay: float | None = None,
    ) -> None:
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
        object.__setattr__(self, "variance", variance)
        object.__setattr__(self, "nonfinite", nonfinite)
        self._check(Variance)

    def share(self, updates: Tensor | None) -> float | Tensor:
        """The momentum; debiased, all that the past does not yet hold."""
        if self.variance != "debiased":
            return self.momentum
        if updates is None:
            raise ValueError("Running: a debiased average needs a counter of updates; keep num_batches_tracked")
        if self.momentum == 0:
            return 0.0
        return self.momentum / (1 - (1 - self.momentum) ** (updates.double() + 1))

    def __repr__(self) -> str:
        parts = [f"momentum={self.momentum!r}"]
        if self.variance != "unbiased":
            parts.append(f"variance={self.variance!r}")
        if self.nonfinite != "skip":
            parts.append(f"nonfinite={self.nonfinite!r}")
        return f"Running({', '.join(parts)})"

    def __str__(self) -> str:
        kind = "" if self.variance == "unbiased" else f", {self.variance}"
        return f"this batch in training, a running average (momentum {self.momentum:g}{kind}) in evaluation"


@dataclass(frozen=True)
class Cumulative(_Average):
    """Batch statistics in training, those of all batches seen in evaluation.

    Args:
        variance: ``"population"`` keeps mean and variance M2 / (n − 1) of all values together, whatever batch they came
            in: merged, not averaged. ``"unbiased"`` is torch's ``momentum=None``, the plain average of the batches'
            means and of their variances, which knows nothing of the differences between batches; ``"biased"`` the
            same with M2 / n.
        nonfinite: as in :class:`Running`.

    Source:
        Wu & Johnson, "Rethinking “Batch” in BatchNorm" (2021), section 3, for the population's statistics.
    """

    variance: Kept = "population"
    nonfinite: Nonfinite = "skip"

    def __post_init__(self) -> None:
        self._check(Kept)

    def share(self, updates: Tensor | None) -> float | Tensor:
        """1 / number of updates, this one counted in."""
        if updates is None:
            raise ValueError("Cumulative: the history has no counter of updates; keep num_batches_tracked")
        return 1.0 / (updates.double() + 1)

    def __str__(self) -> str:
        kind = "all values seen" if self.variance == "population" else "the average of all batches"
        return f"this batch in training, {kind} in evaluation"
