"""Medians with a 95 % interval by the paired bootstrap: rounds are drawn again, all variants of a round together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "difference", "geometric_mean", "median", "ratio"]

Samples = NDArray[np.float64]

_DRAWS = 2000


class Interval(NamedTuple):
    """A value, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def median(samples: Samples) -> Interval:
    """The median of the rounds.

    >>> median(np.array([1.0, 2.0, 3.0])).value
    2.0
    """
    return _interval(np.median(samples), _redrawn(samples))


def ratio(numerator: Samples, denominator: Samples) -> Interval:
    """The ratio of two medians.

    >>> ratio(np.array([2.0, 4.0]), np.array([1.0, 2.0]))
    Interval(value=2.0, low=2.0, high=2.0)
    """
    value = np.median(numerator) / np.median(denominator)
    return _interval(value, _redrawn(numerator) / _redrawn(denominator))


def difference(samples: Samples, others: Samples) -> Interval:
    """The difference of two medians.

    >>> difference(np.array([2.0, 2.0]), np.array([1.0, 1.0])).value
    1.0
    """
    value = np.median(samples) - np.median(others)
    return _interval(value, _redrawn(samples) - _redrawn(others))


def geometric_mean(values: list[float]) -> float:
    """The mean of ratios.

    >>> round(geometric_mean([2.0, 8.0]), 9)
    4.0
    """
    return float(np.exp(np.mean(np.log(values))))


def _redrawn(samples: Samples) -> Samples:
    """Medians of redrawn rounds; the same rounds for every call, which pairs them."""
    rounds = len(samples)
    drawn = np.random.default_rng(0).integers(rounds, size=(_DRAWS, rounds))
    medians: Samples = np.median(samples[drawn], axis=1)
    return medians


def _interval(value: float, redrawn: Samples) -> Interval:
    low, high = np.quantile(redrawn, (0.025, 0.975))
    return Interval(float(value), float(low), float(high))
