"""The papers' formulas longhand, in float64 NumPy: the oracle of every test, and the page to learn from.

Everything happens on a table with one row per statistic and one column per value. ``Table`` lays the
tensor out so; the four verbs below it are the formulas.

Forward (Ioffe & Szegedy 2015, algorithm 1)::

    μ = 1/m Σ x        σ² = 1/m Σ (x − μ)²        x̂ = (x − μ) / √(σ² + ε)        y = γ x̂ + β

Backward (same paper, section 3), the five gradients from ∂ℓ/∂y::

    ∂ℓ/∂γ  = Σ ∂ℓ/∂y · x̂                ∂ℓ/∂β = Σ ∂ℓ/∂y                 ∂ℓ/∂x̂ = ∂ℓ/∂y · γ
    ∂ℓ/∂σ² = Σ ∂ℓ/∂x̂ · (x − μ) · −½ (σ² + ε)^(−3/2)
    ∂ℓ/∂μ  = Σ ∂ℓ/∂x̂ · −1/√(σ² + ε)  +  ∂ℓ/∂σ² · 1/m Σ −2 (x − μ)
    ∂ℓ/∂x  = ∂ℓ/∂x̂ · 1/√(σ² + ε)  +  ∂ℓ/∂σ² · 2 (x − μ)/m  +  ∂ℓ/∂μ · 1/m

Put together, with rstd = 1/√(σ² + ε), they are what the fast kernels compute::

    ∂ℓ/∂x = rstd · ( ∂ℓ/∂x̂  −  1/m Σ ∂ℓ/∂x̂  −  x̂ · 1/m Σ ∂ℓ/∂x̂ · x̂ )

Not centered (RMSNorm: Zhang & Sennrich 2019, eq. 4), μ is 0 and the terms in ∂ℓ/∂μ vanish.

Where the statistics come from::

    masked        m and Σ go over the valid elements; y and ∂ℓ/∂x are 0 elsewhere
    synchronized  the ranks' batches, concatenated, are the batch; so are a window's micro-batches
    given         μ and σ² of a history: nothing flows through them
    renormalized  y = γ (x̂ r + d) + β with r and d constants (Ioffe 2017, algorithm 1)
    running       history ← (1 − α)·history + α·(μ, M2/(m − 1))
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evenorm.affine import Affine
from evenorm.pattern import Pattern

__all__ = [
    "Gradients",
    "Table",
    "backward",
    "correction",
    "counts",
    "five_gradients",
    "forward",
    "moments",
    "running",
]

Array = NDArray[np.float64]


class Gradients(NamedTuple):
    """∂ℓ/∂x, ∂ℓ/∂γ, ∂ℓ/∂β; the last two are ``None`` where there is no such parameter."""

    x: Array
    weight: Array | None
    bias: Array | None


class Table:
    """A tensor as a table: one row per statistic, one column per value that shares it."""

    def __init__(self, pattern: Pattern, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.binding = pattern.bind(shape)
        self.order = self.binding.kept + self.binding.reduced
        self.rows = int(np.prod(self.binding.statistics_shape))

    def lay(self, x: Array) -> Array:
        """The tensor as a table."""
        return x.reshape(self.binding.shape).transpose(self.order).reshape(self.rows, self.binding.count)

    def lift(self, table: Array) -> Array:
        """The table as a tensor again."""
        split = table.reshape([self.binding.shape[i] for i in self.order])
        return split.transpose(np.argsort(self.order)).reshape(self.shape)

    def spread(self, parameter: Any, affine: Affine) -> Array:
        """A weight or bias, given on its own axes, repeated over the whole tensor and laid as a table."""
        axes = [self.binding.names.index(name) for name in affine.axes]
        value = np.asarray(parameter, np.float64).reshape([self.binding.shape[i] for i in axes])
        value = value.transpose(np.argsort(axes))
        wide = [size if i in axes else 1 for i, size in enumerate(self.binding.shape)]
        return self.lay(np.broadcast_to(value.reshape(wide), self.binding.shape).reshape(self.shape))

    def gather(self, table: Array, affine: Affine, like: Any) -> Array:
        """The reverse of ``spread``: sum a table over everything that shares a parameter."""
        axes = [self.binding.names.index(name) for name in affine.axes]
        split = self.lift(table).reshape(self.binding.shape)
        summed = split.sum(axis=tuple(i for i in range(split.ndim) if i not in axes))
        ranks = np.argsort(np.argsort(axes))
        return summed.transpose(ranks).reshape(np.shape(like))


def counts(pattern: Pattern, shape: tuple[int, ...], mask: Any = None) -> Array:
    """Valid values of each group."""
    table = Table(pattern, shape)
    return _valid(table, mask).sum(axis=1).reshape(table.binding.statistics_shape).astype(np.float64)


def moments(x: Any, pattern: Pattern, centered: bool = True, mask: Any = None) -> tuple[Array, Array]:
    """Mean and M2 = Σ (x − μ)² of each group, in two passes; 0 where it has no value.

    Not centered, the mean is 0 and M2 = Σ x².
    """
    x = np.asarray(x, np.float64)
    table = Table(pattern, x.shape)
    valid = _valid(table, mask)
    values, m = np.where(valid, table.lay(x), 0), np.maximum(valid.sum(axis=1), 1)
    mean = values.sum(axis=1) / m if centered else np.zeros(table.rows)
    # The second pass removes the rounding of the first (Chan, Golub & LeVeque 1983, eq. 1.7).
    mean = mean + np.where(valid, values - mean[:, None], 0).sum(axis=1) / m if centered else mean
    deviation = np.where(valid, values - mean[:, None], 0)
    shape = table.binding.statistics_shape
    return mean.reshape(shape), (deviation**2).sum(axis=1).reshape(shape)


def correction(
    mean: Array, variance: Array, past: tuple[Any, Any], eps: float, r_max: float, d_max: float
) -> tuple[Array, Array]:
    """r = clip(σ_B/σ, 1/r_max, r_max) and d = clip((μ_B − μ)/σ, −d_max, d_max) of batch renormalization."""
    past_mean, past_variance = (np.asarray(part, np.float64) for part in past)
    sigma = np.sqrt(past_variance + eps)
    r = np.clip(np.sqrt(variance + eps) / sigma, 1 / r_max, r_max)
    return r, np.clip((mean - past_mean) / sigma, -d_max, d_max)


def running(past: tuple[Any, Any], mean: Array, m2: Array, count: Any, share: float) -> tuple[Array, Array]:
    """A running mean and unbiased variance after a batch; groups with fewer than two values stay."""
    past_mean, past_variance = (np.asarray(part, np.float64) for part in past)
    unbiased = m2 / np.maximum(np.asarray(count, np.float64) - 1, 1)
    known = np.asarray(count) > 1
    return (
        np.where(known, (1 - share) * past_mean + share * mean, past_mean),
        np.where(known, (1 - share) * past_variance + share * unbiased, past_variance),
    )


def forward(
    x: Any,
    pattern: Pattern,
    weight: Any = None,
    bias: Any = None,
    *,
    affine: Affine | None = None,
    eps: float = 1e-5,
    centered: bool = True,
    given: tuple[Array, Array] | None = None,
    mask: Any = None,
    corrected: tuple[Array, Array] | None = None,
) -> Array:
    """y = γ (x − μ)/√(σ² + ε) + β.

    ``given`` is a pair of mean and variance that replaces those of the batch; ``corrected`` is r and d, with which
    y = γ (x̂ r + d) + β.

    >>> forward([[1.0, 3.0]], Pattern.parse("n [d]"), eps=0.0)
    array([[-1.,  1.]])
    """
    x = np.asarray(x, np.float64)
    affine = affine or Affine()
    table = Table(pattern, x.shape)
    valid = _valid(table, mask)
    mean, variance = _statistics(x, pattern, centered, given, mask)
    x_hat = np.where(valid, (table.lay(x) - mean) / np.sqrt(variance + eps), 0)
    r, d = _columns(corrected)
    gamma = _gamma(table, weight, affine)
    beta = 0.0 if bias is None else table.spread(bias, affine)
    return table.lift(np.where(valid, gamma * (x_hat * r + d) + beta, 0))


def five_gradients(
    dy: Any, x: Any, pattern: Pattern, weight: Any = None, *, affine: Affine | None = None, eps: float = 1e-5
) -> dict[str, Array]:
    """The article's gradients term by term, for centered batch statistics; tables but for γ and β."""
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    affine = affine or Affine()
    table = Table(pattern, x.shape)
    m = table.binding.count
    mean, variance = _statistics(x, pattern, True, None, None)
    deviation = table.lay(x) - mean
    x_hat = deviation / np.sqrt(variance + eps)
    d_y = table.lay(dy)

    d_x_hat = d_y * _gamma(table, weight, affine)
    d_variance = (d_x_hat * deviation * -0.5 * (variance + eps) ** -1.5).sum(axis=1, keepdims=True)
    d_mean = (d_x_hat * -1 / np.sqrt(variance + eps)).sum(axis=1, keepdims=True) + d_variance * (-2 * deviation).mean(
        axis=1, keepdims=True
    )
    d_x = d_x_hat / np.sqrt(variance + eps) + d_variance * 2 * deviation / m + d_mean / m
    gradients = {"x_hat": table.lift(d_x_hat), "variance": d_variance, "mean": d_mean, "x": table.lift(d_x)}
    if weight is not None:
        gradients["weight"] = table.gather(d_y * x_hat, affine, weight)
        gradients["bias"] = table.gather(d_y, affine, weight)
    return gradients


def backward(
    dy: Any,
    x: Any,
    pattern: Pattern,
    weight: Any = None,
    bias: Any = None,
    *,
    affine: Affine | None = None,
    eps: float = 1e-5,
    centered: bool = True,
    given: tuple[Array, Array] | None = None,
    mask: Any = None,
    corrected: tuple[Array, Array] | None = None,
) -> Gradients:
    """∂ℓ/∂x, ∂ℓ/∂γ and ∂ℓ/∂β in the form that the fast kernels compute.

    With ``given`` statistics nothing flows through mean and variance: ∂ℓ/∂x = ∂ℓ/∂x̂ · rstd. ``corrected`` is r and
    d, constants: ∂ℓ/∂x̂ = ∂ℓ/∂y · γ · r.
    """
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    affine = affine or Affine()
    table = Table(pattern, x.shape)
    valid = _valid(table, mask)
    m = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    mean, variance = _statistics(x, pattern, centered, given, mask)
    rstd = 1 / np.sqrt(variance + eps)
    x_hat = np.where(valid, (table.lay(x) - mean) * rstd, 0)
    d_y = np.where(valid, table.lay(dy), 0)
    r, d = _columns(corrected)
    d_x_hat = d_y * _gamma(table, weight, affine) * r
    d_x = rstd * d_x_hat
    if given is None:
        d_x = rstd * (d_x_hat - x_hat * (d_x_hat * x_hat).sum(axis=1, keepdims=True) / m)
        if centered:
            d_x -= rstd * d_x_hat.sum(axis=1, keepdims=True) / m
    return Gradients(
        table.lift(np.where(valid, d_x, 0)),
        None if weight is None else table.gather(d_y * (x_hat * r + d), affine, weight),
        None if bias is None else table.gather(d_y, affine, bias),
    )


def _statistics(
    x: Array, pattern: Pattern, centered: bool, given: tuple[Array, Array] | None, mask: Any
) -> tuple[Array, Array]:
    """Mean and biased variance as columns beside the table."""
    if given is not None:
        mean, variance = given
    else:
        mean, m2 = moments(x, pattern, centered, mask)
        variance = m2 / np.maximum(counts(pattern, x.shape, mask), 1)
    return np.reshape(mean, (-1, 1)).astype(np.float64), np.reshape(variance, (-1, 1)).astype(np.float64)


def _valid(table: Table, mask: Any) -> NDArray[np.bool_]:
    """The mask, which broadcasts against the tensor, as a table."""
    mask = np.asarray(True if mask is None else mask, bool)
    return table.lay(np.broadcast_to(mask, table.shape).astype(np.float64)) > 0


def _columns(corrected: tuple[Array, Array] | None) -> tuple[Array, Array]:
    r, d = (np.ones(1), np.zeros(1)) if corrected is None else corrected
    return np.reshape(r, (-1, 1)), np.reshape(d, (-1, 1))


def _gamma(table: Table, weight: Any, affine: Affine) -> Array | float:
    return 1.0 if weight is None else affine.offset + table.spread(weight, affine)
