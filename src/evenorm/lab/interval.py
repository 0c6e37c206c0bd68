"""The average of an effect over seeds, and a bootstrap interval of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def center(values: Sequence[float], ratio: bool = False) -> float:
    """Return the mean; of ratios the geometric one. Of nothing it is NaN.

    >>> round(center([1.0, 4.0], ratio=True), 6)
    2.0
    """
    seen = np.asarray(values, np.float64)
    if not seen.size:
        return float("nan")
    return float(np.exp(np.log(seen).mean()) if ratio else seen.mean())


def bootstrap(values: Sequence[float], ratio: bool = False) -> tuple[float, float]:
    r"""Return the 95 % percentile interval of the mean over resampled seeds.

    Of three seeds it reaches from the least to the greatest. The draw is always the same.

    Source:
        Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979).

    >>> bootstrap([1.0, 2.0, 6.0])
    (1.0, 6.0)
    """
    seen = np.asarray(values, np.float64)
    scaled = np.log(seen) if ratio else seen
    drawn = np.random.default_rng(0).integers(len(seen), size=(RESAMPLES, len(seen)))
    # Quantiles that are means of a resample; interpolated ones would depend on the last bit.
    low, high = np.quantile(scaled[drawn].mean(1), (0.025, 0.975), method="nearest")
    ends = np.exp([low, high]) if ratio else np.array([low, high])
    # What exp and log, or a mean of equals, do to the last bit must not widen the range of the seeds.
    low, high = np.clip(ends, seen.min(), seen.max())
    return float(low), float(high)
