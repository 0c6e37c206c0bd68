"""Medians with a 95 % interval by the paired bootstrap: rounds are drawn again, all variants of a round together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "Median", "geometric_mean"]

Samples = NDArray[np.float64]

_DRAWS = 2000


class Interval(NamedTuple):
    """A value, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


class Median(NamedTuple):
    """The median of rounds, and of the rounds drawn again.

    >>> slow, fast = (Median.of(np.array(rounds)) for rounds in ([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]))
    >>> fast.interval.value, slow.over(fast), slow.less(fast).value
    (2.0, Interval(value=2.0, low=2.0, high=2.0), 2.0)
    """

    value: float
    redrawn: Samples

    @classmethod
    def of(cls, rounds: Samples) -> Median:
        """The same rounds are drawn for every variant, which pairs them."""
        count = len(rounds)
        drawn = np.random.default_rng(0).integers(count, size=(_DRAWS, count))
        return cls(float(np.median(rounds)), np.median(rounds[drawn], axis=1))

    @property
    def interval(self) -> Interval:
        """Where the median lies."""
        return _interval(self.value, self.redrawn)

    def over(self, other: Median) -> Interval:
        """The ratio of two medians."""
        return _interval(self.value / other.value, self.redrawn / other.redrawn)

    def less(self, other: Median) -> Interval:
        """The difference of two medians."""
        return _interval(self.value - other.value, self.redrawn - other.redrawn)


def geometric_mean(values: list[float]) -> float:
    """The mean of ratios.

    >>> round(geometric_mean([2.0, 8.0]), 9)
    4.0
    """
    return float(np.exp(np.mean(np.log(values))))


def _interval(value: float, redrawn: Samples) -> Interval:
    low, high = np.quantile(redrawn, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))
