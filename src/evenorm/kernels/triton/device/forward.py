"""The way there: moments, their merging over pieces, and y."""

import triton
import triton.language as tl

from evenorm.kernels.triton.device.blocks import (
    before_activation,
    count_of,
    doubtful,
    flat,
    gamma_and_beta,
    groups,
    load,
    moments_of,
    normalized,
    normalizers,
    place,
    present_in,
    rounded,
    rstd_of,
    survey,
    sweep,
)
from evenorm.kernels.triton.device.curves import activated

__all__ = ["apply", "forward", "merge"]


@triton.jit
def _finish(
    x_hat: tl.tensor,
    y: tl.tensor,
    beside: tl.tuple,
    spot: tl.tuple,
    inside: tl.tensor,
    present: tl.tensor,
    space: tl.tuple,
    LAYOUT: tl.constexpr,
    FINISH: tl.constexpr,
    TILE: tl.constexpr,
    REAL: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """From normalized values to the output, which is zero where the mask hides."""
    gamma, beta = gamma_and_beta(beside, spot, space, LAYOUT, FINISH, TILE, REAL)
    at = flat(spot, space.dense, TILE)
    z = before_activation(x_hat, gamma, beta, beside, at, present, FINISH, REAL, DTYPE)
    values = tl.where(present, activated(z, FINISH), 0.0)
    tl.store(y + at, rounded(values, DTYPE), mask=inside)


@triton.jit
def forward(
    x: tl.tensor,
    y: tl.tensor,
    means: tl.tensor,
    m2s: tl.tensor,
    counts: tl.tensor,
    addend: tl.tensor,
    sums: tl.tensor,
    beside: tl.tuple,
    space: tl.tuple,
    pieces: tl.tensor,
    per_piece: tl.tensor,
    statistics: tl.tensor,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    SINGLE: tl.constexpr,
    LAYOUT: tl.constexpr,
    FINISH: tl.constexpr,
    TILE: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> None:
    """Moments of a block of statistics, or of a piece of each; and y, where it is wanted and they are whole.

    With an addend, where a tile holds whole statistics, of the sum, which is rounded and stored first; all lie alike.
    """
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    DTYPE: tl.constexpr = x.dtype.element_ty
    program = tl.program_id(0)
    piece = program // space.blocks % pieces
    b = (program // space.blocks // pieces).to(tl.int64)
    g = groups(program % space.blocks, TILE)
    first = piece * per_piece
    last = tl.minimum(first + per_piece, space.tiles)
    if SINGLE:
        spot, inside = place(b, g, first, space, TILE)
        present = present_in(beside, inside, spot)
        values = load(x, flat(spot, space.x, TILE), present, REAL)
        if addend is not None:
            at = flat(spot, space.dense, TILE)
            values = rounded(values + load(addend, at, present, REAL), DTYPE)
            tl.store(sums + at, values, mask=inside)
            values = values.to(REAL)
        n = count_of(present, first, space, beside.mask is not None, TILE)
        mean, m2 = moments_of(values, present, n, CENTERED, REAL)
        lost = m2 < 0
    else:
        n, mean, m2, lost = sweep(x, beside, b, g, first, last, space, CENTERED, TILE, REAL)
    here = g < space.size.group
    if not DOUBLE:
        lost = lost | doubtful(n, mean, m2)
    if not DOUBLE or not SINGLE:
        lost = lost & here & (n > 0)
        if tl.sum(lost.to(tl.int32)) > 0:
            source = x
            if addend is not None:
                # What other threads have stored.
                tl.debug_barrier()
                source = sums
            exact = survey(source, beside, b, g, first, last, space, CENTERED, TILE, tl.float64)
            # Of these alone: the others do not depend on their neighbors.
            mean = tl.where(lost, exact[1], mean)
            m2 = tl.where(lost, exact[2], m2)
    at = piece.to(tl.int64) * statistics + b * space.size.group + g
    tl.store(means + at, mean, mask=here)
    tl.store(m2s + at, m2, mask=here)
    if counts is not None:
        tl.store(counts + at, n + tl.zeros_like(m2), mask=here)
    if y is not None:
        scale = normalizers(mean, rstd_of(m2, n, EPS), REAL)
        if SINGLE:
            x_hat = normalized(values, scale, present)
            _finish(x_hat, y, beside, spot, inside, present, space, LAYOUT, FINISH, TILE, REAL, DTYPE)
        else:
            for t in range(first, last):
                spot, inside = place(b, g, t, space, TILE)
                present = present_in(beside, inside, spot)
                x_hat = normalized(load(x, flat(spot, space.x, TILE), present, REAL), scale, present)
                _finish(x_hat, y, beside, spot, inside, present, space, LAYOUT, FINISH, TILE, REAL, DTYPE)


@triton.jit
def merge(
    counts: tl.tensor,
    means: tl.tensor,
    m2s: tl.tensor,
    mean: tl.tensor,
    m2: tl.tensor,
    rstd: tl.tensor,
    statistics: tl.tensor,
    pieces: tl.tensor,
    EPS: tl.constexpr,
    PIECES: tl.constexpr,
    STATISTICS: tl.constexpr,
) -> None:
    """The pieces' moments as one: n = Σ nₖ, μ = Σ nₖμₖ / n, M2 = Σ M2ₖ + nₖ(μₖ − μ)², in float64."""
    s = tl.program_id(0).to(tl.int64) * STATISTICS + tl.arange(0, STATISTICS)
    k = tl.arange(0, PIECES)
    # As if there were nothing known of how many there are: a statistic's pieces are added up in one order.
    at = tl.max_contiguous(tl.multiple_of(k[:, None].to(tl.int64) * statistics + s[None, :], (1, 1)), (1, 1))
    inside = (k < pieces)[:, None] & (s < statistics)[None, :]
    n = tl.load(counts + at, mask=inside, other=0.0)
    center = tl.load(means + at, mask=inside, other=0.0)
    whole = tl.sum(n, axis=0)
    middle = tl.sum(n * center, axis=0) / tl.where(whole > 0, whole, 1.0)
    off = center - middle[None, :]
    spread = tl.sum(tl.load(m2s + at, mask=inside, other=0.0) + n * off * off, axis=0)
    tl.store(mean + s, middle, mask=s < statistics)
    tl.store(m2 + s, spread, mask=s < statistics)
    tl.store(rstd + s, rstd_of(spread, whole, EPS), mask=s < statistics)


@triton.jit
def apply(
    x: tl.tensor,
    y: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    beside: tl.tuple,
    space: tl.tuple,
    LAYOUT: tl.constexpr,
    FINISH: tl.constexpr,
    TILE: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> None:
    """y of given statistics, one tile."""
    REAL: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    program = tl.program_id(0)
    b = (program // space.blocks // space.tiles).to(tl.int64)
    g = groups(program % space.blocks, TILE)
    spot, inside = place(b, g, program // space.blocks % space.tiles, space, TILE)
    present = present_in(beside, inside, spot)
    s, here = b * space.size.group + g, g < space.size.group
    scale = normalizers(tl.load(mean + s, mask=here, other=0.0), tl.load(rstd + s, mask=here, other=0.0), REAL)
    x_hat = normalized(load(x, flat(spot, space.x, TILE), present, REAL), scale, present)
    _finish(x_hat, y, beside, spot, inside, present, space, LAYOUT, FINISH, TILE, REAL, x.dtype.element_ty)
