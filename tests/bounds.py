"""How far a kernel may be from the float64 reference, computed from the numbers at hand.

One rounding to the output's dtype, plus

    K · eps(accumulation dtype) · √count · (1 + |mean|/σ) · |γ|

Gradients likewise, with their largest term in place of |γ|. Nothing here depends on the output's
dtype but the one rounding, so a bound for bfloat16 is not a bound that zeros pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["K", "Magnitudes", "affine_bound", "forward_bound", "input_bound", "rounding"]

Array = NDArray[np.float64]

# Each element passes through about four roundings in the accumulation dtype: the deviation, its
# product with rstd, with γ, and the sum with β. Sums and rstd have as many again.
K = 8.0


class Magnitudes(NamedTuple):
    """What scales an error, for each element of the input."""

    values: int  # per statistic
    condition: Array  # 1 + |mean|/σ
    gamma: Array  # |offset + weight|
    x_hat: Array
    rstd: Array
    largest: Array  # the largest term of dx / rstd in this element's group


def epsilon(dtype: torch.dtype) -> float:
    """The epsilon that sums of this input dtype are accumulated with."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def rounding(values: Any, dtype: torch.dtype) -> Array:
    """Half a unit in the last place, at least half of the smallest denormal number."""
    info = torch.finfo(dtype)
    # The float64 reference rounds once itself.
    times = 2 if dtype == torch.float64 else 1
    return np.maximum(np.abs(values), info.tiny) * info.eps / 2 * times


def forward_bound(y: Array, at: Magnitudes, dtype: torch.dtype, cast: str) -> Array:
    """The bound of the output."""
    # |x̂| is at most √count unless the statistics are those of other data.
    spread = np.maximum(np.sqrt(at.values), np.abs(at.x_hat))
    bound = rounding(y, dtype) + K * epsilon(dtype) * spread * at.condition * at.gamma
    return bound + rounding(at.x_hat, dtype) * at.gamma if cast == "before" else bound


def input_bound(dx: Array, at: Magnitudes, dtype: torch.dtype) -> Array:
    """The bound of the gradient of the input."""
    error = K * epsilon(dtype) * np.sqrt(at.values) * at.condition * at.largest * at.rstd
    return rounding(dx, dtype) + error


def affine_bound(gradient: Array, terms: Array, values: int, dtype: torch.dtype, parameter: torch.dtype) -> Array:
    """The bound of Σ terms, which lie on the last axis; each came out of a statistic of so many values."""
    error = np.sqrt(max(values, terms.shape[-1])) * np.abs(terms).max(axis=-1, initial=0)
    return rounding(gradient, parameter) + K * epsilon(dtype) * error
