"""Inputs on which single-pass, single-precision or half-rounded statistics fail.

A few float32 roundings around the float64 two-pass result applied exactly, however the values lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import evenorm
from bounds import rounding
from evenorm import Affine, Pattern
from evenorm.kernels import reference
from kernels_here import AVAILABLE
from oracle import Array, Bounded, array
from properties import assert_within

# Four roundings of one element, and the error that all elements share through rstd and the mean.
FEW = 4 * torch.finfo(torch.float32).eps
ROWS = 3


def noise(values: int) -> Tensor:
    return torch.randn(ROWS, values, dtype=torch.float64)


def with_first(values: int) -> Tensor:
    rows = noise(values)
    rows[:, 0] = 1e6
    return rows


def with_huge_row(values: int) -> Tensor:
    rows = noise(values)
    rows[1] *= 1e8
    return rows


def signs(values: int) -> Tensor:
    return torch.tensor([1.0, -1.0], dtype=torch.float64).repeat((values + 1) // 2)[:values]


def with_zeros(values: int) -> Tensor:
    rows = noise(values) * 1e18
    rows[:, ::2] = 0
    return rows


# Each makes three rows of values that share a mean and a variance.
HARD: dict[str, Callable[[int], Tensor]] = {
    "mean of 1e4 sigma": lambda n: noise(n) + 1e4,
    "mean of 1e6 sigma": lambda n: noise(n) + 1e6,
    "mean of -1e6 small sigma": lambda n: 1e-3 * noise(n) - 1e3,
    "constant": lambda n: torch.full((ROWS, n), 3.1, dtype=torch.float64),
    "constant but for the last": lambda n: torch.cat(
        [torch.full((ROWS, n - 1), 1e4), torch.full((ROWS, 1), 1e4 + 1)], 1
    ).double(),
    "first element of 1e6": with_first,
    "alternating 1e5": lambda n: noise(n) + 1e5 * signs(n),
    "linear drift": lambda n: noise(n) + 10.0 * torch.arange(n),
    "one huge channel": with_huge_row,
    "denormal": lambda n: 1e-40 * noise(n),
    "tiny": lambda n: 1e-18 * noise(n),
    "up to 1e18": lambda n: 1e18 * noise(n).clamp(-1, 1),
    "1e18 and zeros": with_zeros,
}
HARD_IN_HALF: dict[str, Callable[[int], Tensor]] = {
    "near the largest": lambda n: 65504.0 - 32 * noise(n).abs(),
    "both ends": lambda n: 65504.0 * signs(n).expand(ROWS, n),
    "one of the largest": lambda n: torch.cat([torch.full((ROWS, 1), 65504.0), noise(n - 1)], 1),
    "denormal": lambda n: 1e-6 * noise(n),
    "constant": lambda n: torch.full((ROWS, n), 0.1, dtype=torch.float64),
}

# Where the rows lie: the same values along every level of a plan.
PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "r [m]": lambda rows: rows,
    "[m] r": lambda rows: rows.T.contiguous(),
    "[n] r [l]": lambda rows: rows.reshape(ROWS, -1, 13).movedim(0, 1).contiguous(),
    "b [c] l": lambda rows: rows.reshape(1, ROWS, -1).mT.contiguous(),
    "[n] r [l] ": lambda rows: rows.reshape(ROWS, -1, 13).permute(1, 2, 0).contiguous().mT,
}
# Less than a chunk of a kernel, and several.
SIZES = (26, 13 * 500)


def check(x: Tensor, pattern: str, kernel: str, eps: float, centered: bool) -> None:
    """Output and the gradient of the input."""
    parsed, affine = Pattern.parse(pattern), Affine()
    settings: dict[str, Any] = {"eps": eps, "centered": centered}
    x = x.detach().requires_grad_()
    dy = torch.randn(x.shape, dtype=torch.float64).to(x.dtype)
    y = evenorm.normalize(x, parsed, kernel=kernel, **settings)
    with np.errstate(all="ignore"):
        expected = reference.forward(array(x), parsed, **settings)
        gradient = reference.backward(array(dy), array(x), parsed, affine=affine, **settings).x
        _, m2 = reference.moments(array(x), parsed, centered)
        rstd = 1 / np.sqrt(m2 / parsed.bind(x.shape).count + eps)
    spread = np.reshape(rstd, parsed.bind(x.shape).keepdim_shape)
    largest = np.abs(array(dy)).max() * spread * (1 + np.abs(expected))
    finite = np.isfinite(representable(expected, x.dtype))
    bound = rounding(expected, x.dtype) + FEW * (1 + np.abs(expected))
    assert_finite_within(y, expected, bound, finite, "y")
    (dx,) = torch.autograd.grad(y, x, dy)
    finite = np.isfinite(representable(gradient, x.dtype))
    bound = rounding(gradient, x.dtype) + FEW * largest
    assert_finite_within(dx, gradient, bound, finite, "dx")


def representable(values: Array, dtype: torch.dtype) -> Array:
    return array(torch.from_numpy(values).to(dtype))


def assert_finite_within(actual: Tensor, expected: Array, bound: Array, finite: NDArray[np.bool_], what: str) -> None:
    there = Bounded(np.where(finite, expected, 0), np.where(finite, bound, np.inf))
    assert_within(actual.masked_fill(torch.from_numpy(~finite), 0), there, what)


@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "not centered"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HARD)
def test_hard_input_in_float32(name: str, place: str, centered: bool, kernel: str) -> None:
    for size in SIZES:
        for eps in (1e-5, 0.0):
            x = PLACES[place](HARD[name](size).float())
            check(x, place.strip(), kernel, eps, centered)


@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", HARD_IN_HALF)
def test_hard_input_in_half(name: str, dtype: torch.dtype, kernel: str) -> None:
    for place in PLACES:
        for size in SIZES:
            for centered in (True, False):
                x = PLACES[place](HARD_IN_HALF[name](size).to(dtype))
                check(x, place.strip(), kernel, 1e-5, centered)


@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("name", HARD)
def test_history_of_a_hard_input(name: str, kernel: str) -> None:
    """The running averages are rounded once; the moments behind them are good to a rounding of σ."""
    x = HARD[name](SIZES[1]).float()
    layer = evenorm.BatchNorm1d(ROWS, momentum=1.0)
    layer.kernel = kernel
    layer(x.T)
    mean, variance = array(x).mean(1), array(x).var(1, ddof=1)
    expected = Bounded(mean, rounding(mean, torch.float32) + FEW / 4 * np.sqrt(variance))
    assert_within(layer.running_mean, expected, "running mean")
    # A variance is off by twice what σ is off by.
    bound = 2 * FEW * variance + rounding(variance, torch.float32)
    finite = np.isfinite(representable(variance, torch.float32))
    assert layer.running_var is not None
    assert_finite_within(layer.running_var, variance, bound, finite, "running variance")


def test_float32_statistics_would_fail() -> None:
    """The table is hard: the textbook formula in float32 is not within the bound."""
    x = (noise(SIZES[1]) + 1e4).float()
    variance = x.square().mean(1, keepdim=True) - x.mean(1, keepdim=True) ** 2
    y = (x - x.mean(1, keepdim=True)) * (variance + 1e-5).rsqrt()
    expected = reference.forward(x, Pattern.parse("r [m]"))
    assert np.abs(array(y) - expected).max() > 1e-3


def test_eps_none_is_torchs() -> None:
    """The epsilon of what torch computes in: float32's for half precision."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = (1e-3 * noise(64)).to(dtype)
        mine, torchs = evenorm.RMSNorm(64, dtype=dtype)(x), torch.nn.RMSNorm(64, dtype=dtype)(x)
        torch.testing.assert_close(mine, torchs)
