"""What the kernels of the way back have in common: a tile's x̂ and dz, the parameters' partial sums, dx."""

import triton
import triton.language as tl

from evenorm.kernels.triton.device.blocks import (
    GROUP,
    INNER,
    OUTER,
    along,
    exists,
    flat,
    gamma_and_beta,
    gradient_of,
    load,
    normalized,
    normalizers,
    present_in,
    rounded,
    rstd_of,
)

__all__ = ["backward_tile", "per_parameter", "statistics_of", "store_input", "store_parts"]


@triton.jit
def statistics_of(
    mean: tl.tensor,
    spread: tl.tensor,
    counts: tl.tensor,
    values: tl.tensor,
    s: tl.tensor,
    here: tl.tensor,
    SPREAD: tl.constexpr,
    EPS: tl.constexpr,
    REAL: tl.constexpr,
) -> tl.tuple:
    """Mean and rstd of a block of statistics, and the count that M2 is divided by."""
    n = tl.full((1, 1, 1), 0, tl.float64) + values
    if counts is not None:
        n = tl.load(counts + s, mask=here, other=1.0)
    rstd = tl.load(spread + s, mask=here, other=1.0)
    if SPREAD == "m2":
        rstd = rstd_of(rstd, n, EPS)
    return normalizers(tl.load(mean + s, mask=here, other=0.0), rstd, REAL), n


@triton.jit
def backward_tile(
    dy: tl.tensor,
    x: tl.tensor,
    beside: tl.tuple,
    spot: tl.tuple,
    inside: tl.tensor,
    scale: tl.tuple,
    space: tl.tuple,
    LAYOUT: tl.constexpr,
    FINISH: tl.constexpr,
    TILE: tl.constexpr,
    REAL: tl.constexpr,
) -> tl.tuple:
    """x̂ and dz of a tile, and the weight that multiplies there."""
    present = present_in(beside, inside, spot)
    gamma, beta = gamma_and_beta(beside, spot, space, LAYOUT, FINISH, TILE, REAL)
    x_hat = normalized(load(x, flat(spot, space.x, TILE), present, REAL), scale, present)
    dz = gradient_of(
        *(dy, x_hat, gamma, beta, beside, flat(spot, space.dy, TILE), flat(spot, space.dense, TILE), present),
        *(FINISH, REAL, x.dtype.element_ty),
    )
    return x_hat, dz, gamma, present


@triton.jit
def per_parameter(values: tl.tensor, LEVELS: tl.constexpr) -> tl.tensor:
    """The sum over a tile's axes along which the parameter does not change."""
    if (INNER & LEVELS) == 0:
        values = tl.sum(values, axis=2, keep_dims=True)
    if (GROUP & LEVELS) == 0:
        values = tl.sum(values, axis=1, keep_dims=True)
    if (OUTER & LEVELS) == 0:
        values = tl.sum(values, axis=0, keep_dims=True)
    return values


@triton.jit
def store_parts(
    parts: tl.tensor,
    slots: tl.tuple,
    row: tl.tensor,
    spot: tl.tuple,
    space: tl.tuple,
    weighted: tl.tensor,
    plain: tl.tensor,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """One row of the parameters' gradients, which another pass sums: Σ dz·x̂ and, half the array on, Σ dz."""
    at = parts + row.to(tl.int64) * slots.number + along(spot, slots.strides, LEVELS)
    there = exists(spot, space, LEVELS, TILE)
    tl.store(at, weighted, mask=there)
    tl.store(at + slots.half, plain, mask=there)


@triton.jit
def store_input(
    dx: tl.tensor,
    dresidual: tl.tensor,
    carried: tl.tensor,
    x_hat: tl.tensor,
    dz: tl.tensor,
    gamma: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    scale: tl.tuple,
    spot: tl.tuple,
    inside: tl.tensor,
    present: tl.tensor,
    space: tl.tuple,
    TILE: tl.constexpr,
) -> None:
    """dx = rstd · (γ·dz − c₁ − x̂·c₂) + carried, and dz for a residual; zeros where the mask hides."""
    at = flat(spot, space.dense, TILE)
    values = tl.where(present, (gamma * dz - c1 - x_hat * c2) * scale.rstd, 0.0)
    if carried is not None:
        values = values + load(carried, at, present, dz.dtype)
    tl.store(dx + at, rounded(values, dx.dtype.element_ty), mask=inside)
    if dresidual is not None:
        tl.store(dresidual + at, rounded(dz, dresidual.dtype.element_ty), mask=inside)
