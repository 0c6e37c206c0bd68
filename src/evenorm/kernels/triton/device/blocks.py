"""What the kernels have in common: places of a tile, loads, moments of a tile and their merging.

Tiles have three axes, outer x group x inner; what lies on fewer keeps axes of size 1, statistics group alone. Numbers
that belong together come as tuples::

    spot     indices of batch, outer, group, inner
    size     outer, group, inner
    strides  of batch, outer, group in units; inner is dense. Of a mask in elements, and of inner too
    TILE     outer, group, inner; the unit, which divides the inner size and all strides, so that loads are wide
    LAYOUT   the levels along which the parameter changes, whether it wraps around, whether samples have their own
    FINISH   activation, slope, the weight's offset, whether x̂ is rounded before it is scaled
"""

import triton
import triton.language as tl

from evenorm.kernels.triton.device.curves import slope_at
from evenorm.kernels.triton.view import Along

__all__ = [
    "BATCH",
    "GROUP",
    "INNER",
    "OUTER",
    "along",
    "before_activation",
    "count_of",
    "doubtful",
    "exists",
    "flat",
    "gamma_and_beta",
    "gradient_of",
    "groups",
    "load",
    "moments_of",
    "normalized",
    "normalizers",
    "place",
    "present_in",
    "rounded",
    "rstd_of",
    "survey",
    "sweep",
    "total",
]

# Triton's interpreter cuts bits off where the hardware rounds.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

BATCH = tl.constexpr(int(Along.BATCH))
OUTER = tl.constexpr(int(Along.OUTER))
GROUP = tl.constexpr(int(Along.GROUP))
INNER = tl.constexpr(int(Along.INNER))

# Squares below this, of each value, may have been lost to underflow, unless every value equals a mean this far from 0.
TINY_SQUARE = tl.constexpr(2.0**-100)
TINY = tl.constexpr(2.0**-50)
HUGE_SQUARE = tl.constexpr(1e300)


@triton.jit
def total(values: tl.tensor) -> tl.tensor:
    """The sum over outer and inner."""
    return tl.sum(tl.sum(values, axis=2, keep_dims=True), axis=0, keep_dims=True)


@triton.jit
def groups(block: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """Group indices of a block of statistics."""
    return (block * TILE[1] + tl.arange(0, TILE[1]))[None, :, None].to(tl.int64)


@triton.jit
def place(b: tl.tensor, g: tl.tensor, t: tl.tensor, across: tl.tensor, size: tl.tuple, TILE: tl.constexpr) -> tl.tuple:
    """The spot of a tile, and which of its elements exist."""
    o = ((t // across) * TILE[0] + tl.arange(0, TILE[0]))[:, None, None].to(tl.int64)
    i = ((t % across) * TILE[2] + tl.arange(0, TILE[2]))[None, None, :].to(tl.int64)
    return (b, o, g, i), (o < size[0]) & (g < size[1]) & (i < size[2] * TILE[3])


@triton.jit
def flat(spot: tl.tuple, strides: tl.tuple, TILE: tl.constexpr) -> tl.tensor:
    """Where the spot's elements lie."""
    return (spot[0] * strides[0] + spot[1] * strides[1] + spot[2] * strides[2]) * TILE[3] + spot[3]


@triton.jit
def along(spot: tl.tuple, strides: tl.tuple, LEVELS: tl.constexpr) -> tl.tensor:
    """A flat position of these levels alone, in the shape of a tile's axes that they have."""
    at = tl.full((1, 1, 1), 0, tl.int64)
    if BATCH & LEVELS:
        at = at + spot[0] * strides[0]
    if OUTER & LEVELS:
        at = at + spot[1] * strides[1]
    if GROUP & LEVELS:
        at = at + spot[2] * strides[2]
    if INNER & LEVELS:
        at = at + spot[3] * strides[3]
    return at


@triton.jit
def exists(spot: tl.tuple, size: tl.tuple, LEVELS: tl.constexpr, TILE: tl.constexpr) -> tl.tensor:
    """Which of the places that `along` gives exist."""
    yes = tl.full((1, 1, 1), 1, tl.int1)
    if OUTER & LEVELS:
        yes = yes & (spot[1] < size[0])
    if GROUP & LEVELS:
        yes = yes & (spot[2] < size[1])
    if INNER & LEVELS:
        yes = yes & (spot[3] < size[2] * TILE[3])
    return yes


@triton.jit
def gamma_and_beta(
    weight: tl.tensor,
    bias: tl.tensor,
    spot: tl.tuple,
    size: tl.tuple,
    dense: tl.tuple,
    affine: tl.tuple,
    LAYOUT: tl.constexpr,
    FINISH: tl.constexpr,
    TILE: tl.constexpr,
    REAL: tl.constexpr,
) -> tl.tuple:
    """offset + weight and bias, in the shape of a tile's axes along which they change; 1 and 0 where absent."""
    gamma = tl.full((1, 1, 1), 1.0, REAL)
    beta = tl.full((1, 1, 1), 0.0, REAL)
    span, count, stretch = affine
    f = along(spot, (dense[0] * TILE[3], dense[1] * TILE[3], dense[2] * TILE[3], 1), LAYOUT[0])
    p = f // span
    if LAYOUT[1]:
        p = p % count
    if LAYOUT[2]:
        p = p + f // stretch * count
    there = exists(spot, size, LAYOUT[0], TILE)
    if weight is not None:
        gamma = tl.load(weight + p, mask=there, other=0.0).to(REAL) + FINISH[2]
    if bias is not None:
        beta = tl.load(bias + p, mask=there, other=0.0).to(REAL)
    return gamma, beta


@triton.jit
def present_in(mask: tl.tensor, inside: tl.tensor, spot: tl.tuple, strides: tl.tuple) -> tl.tensor:
    """Which elements are there: all that exist, but those that the mask hides."""
    present = inside
    if mask is not None:
        at = spot[0] * strides[0] + spot[1] * strides[1] + spot[2] * strides[2] + spot[3] * strides[3]
        present = present & (tl.load(mask + at, mask=inside, other=0) != 0)
    return present


@triton.jit
def load(pointer: tl.tensor, at: tl.tensor, present: tl.tensor, REAL: tl.constexpr) -> tl.tensor:
    """Values in the accumulator's dtype; zeros where nothing is, which memory is not even asked for."""
    return tl.load(pointer + at, mask=present, other=0.0).to(REAL)


@triton.jit
def rounded(values: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """Values in a dtype, rounded to nearest, ties to even."""
    result = values
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = values.to(tl.float32).to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        result = tl.where(values == values, nearest, bits).to(tl.float32, bitcast=True)
    return result.to(DTYPE)


@triton.jit
def count_of(
    present: tl.tensor, t: tl.tensor, across: tl.tensor, size: tl.tuple, MASKED: tl.constexpr, TILE: tl.constexpr
) -> tl.tensor:
    """Values of each statistic in a tile."""
    if MASKED:
        n = total(present.to(tl.int32)).to(tl.float64)
    else:
        high = tl.minimum(size[0] - (t // across) * TILE[0], TILE[0])
        wide = tl.minimum(size[2] * TILE[3] - (t % across) * TILE[2], TILE[2])
        n = (tl.full((1, 1, 1), 0, tl.int32) + high * wide).to(tl.float64)
    return n


@triton.jit
def moments_of(
    values: tl.tensor, present: tl.tensor, n: tl.tensor, CENTERED: tl.constexpr, REAL: tl.constexpr
) -> tl.tuple:
    """Mean and M2 of a tile in float64, in two passes; what the mean's own rounding leaves is taken out."""
    if CENTERED:
        some = tl.where(n > 0, n, 1.0)
        center = (total(values).to(tl.float64) / some).to(REAL)
        deviation = tl.where(present, values - center, 0.0)
        rest = total(deviation).to(tl.float64)
        m2 = total(deviation * deviation).to(tl.float64) - rest * rest / some
        # Not the maximum, which would hide NaN.
        m2 = tl.where(m2 < 0, 0.0, m2)
        mean = center.to(tl.float64) + rest / some
    else:
        m2 = total(values * values).to(tl.float64)
        mean = tl.zeros_like(m2)
    return mean, m2


@triton.jit
def sweep(
    x: tl.tensor,
    mask: tl.tensor,
    b: tl.tensor,
    g: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    across: tl.tensor,
    size: tl.tuple,
    x_strides: tl.tuple,
    mask_strides: tl.tuple,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
    REAL: tl.constexpr,
) -> tl.tuple:
    """Count, mean and M2 over some tiles, in one pass around the first tile's mean.

    And whether that was too far off: where (Σ d)² / n is above 3/4 of Σ d², their difference has lost bits.
    """
    center = tl.full((1, TILE[1], 1), 0, REAL)
    if CENTERED:
        start, start_inside = place(b, g, first, across, size, TILE)
        start_present = present_in(mask, start_inside, start, mask_strides)
        few = count_of(start_present, first, across, size, mask is not None, TILE)
        head = load(x, flat(start, x_strides, TILE), start_present, REAL)
        center = (total(head).to(tl.float64) / tl.where(few > 0, few, 1.0)).to(REAL)
    n = tl.full((1, TILE[1], 1), 0, tl.float64)
    sums = tl.full((TILE[0], TILE[1], TILE[2]), 0, REAL)
    squares = tl.full((TILE[0], TILE[1], TILE[2]), 0, REAL)
    for t in range(first, last):
        spot, inside = place(b, g, t, across, size, TILE)
        present = present_in(mask, inside, spot, mask_strides)
        values = load(x, flat(spot, x_strides, TILE), present, REAL)
        n = n + count_of(present, t, across, size, mask is not None, TILE)
        if CENTERED:
            values = tl.where(present, values - center, 0.0)
            sums = sums + values
        squares = squares + values * values
    some = tl.where(n > 0, n, 1.0)
    rest = total(sums).to(tl.float64)
    spread = total(squares).to(tl.float64)
    m2 = spread - rest * rest / some
    lost = (m2 >= 0.25 * spread) == 0
    return n, center.to(tl.float64) + rest / some, m2, lost


@triton.jit
def survey(
    x: tl.tensor,
    mask: tl.tensor,
    b: tl.tensor,
    g: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    across: tl.tensor,
    size: tl.tuple,
    x_strides: tl.tuple,
    mask_strides: tl.tuple,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
    REAL: tl.constexpr,
) -> tl.tuple:
    """Count, mean and M2 over some tiles, each in two passes, merged by Chan, Golub & LeVeque (1979), eq. 2.1."""
    n = tl.full((1, TILE[1], 1), 0, tl.float64)
    mean = tl.full((1, TILE[1], 1), 0, tl.float64)
    m2 = tl.full((1, TILE[1], 1), 0, tl.float64)
    for t in range(first, last):
        spot, inside = place(b, g, t, across, size, TILE)
        present = present_in(mask, inside, spot, mask_strides)
        values = load(x, flat(spot, x_strides, TILE), present, REAL)
        more = count_of(present, t, across, size, mask is not None, TILE)
        other_mean, other_m2 = moments_of(values, present, more, CENTERED, REAL)
        whole = n + more
        share = more / tl.where(whole > 0, whole, 1.0)
        delta = other_mean - mean
        mean = mean + delta * share
        m2 = m2 + other_m2 + delta * delta * (n * share)
        n = whole
    return n, mean, m2


@triton.jit
def doubtful(n: tl.tensor, mean: tl.tensor, m2: tl.tensor) -> tl.tensor:
    """Which statistics float32 may have lost, to overflow or to underflow of the squares."""
    sound = (m2 >= n * TINY_SQUARE) & (m2 <= HUGE_SQUARE)
    constant = (m2 == 0) & (tl.abs(mean) >= TINY)
    return (sound | constant) == 0


@triton.jit
def rstd_of(m2: tl.tensor, n: tl.tensor, EPS: tl.constexpr) -> tl.tensor:
    """1 / sqrt(variance + eps), in float64."""
    return 1.0 / tl.sqrt(m2 / tl.where(n > 0, n, 1.0) + EPS)


@triton.jit
def normalizers(mean: tl.tensor, rstd: tl.tensor, REAL: tl.constexpr) -> tl.tuple:
    """The mean as two numbers, of which the second is what the first lost to rounding; rstd."""
    high = mean.to(REAL)
    return high, (mean - high.to(tl.float64)).to(REAL), rstd.to(REAL)


@triton.jit
def normalized(values: tl.tensor, scale: tl.tuple, present: tl.tensor) -> tl.tensor:
    """x̂; zero where nothing is, whatever the statistics are there."""
    return tl.where(present, ((values - scale[0]) - scale[1]) * scale[2], 0.0)


@triton.jit
def before_activation(
    x_hat: tl.tensor,
    gamma: tl.tensor,
    beta: tl.tensor,
    residual: tl.tensor,
    at: tl.tensor,
    present: tl.tensor,
    FINISH: tl.constexpr,
    REAL: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """What the activation takes."""
    z = x_hat
    if FINISH[3]:
        z = rounded(z, DTYPE).to(REAL)
    z = z * gamma + beta
    if residual is not None:
        z = z + load(residual, at, present, REAL)
    return z


@triton.jit
def gradient_of(
    dy: tl.tensor,
    x_hat: tl.tensor,
    gamma: tl.tensor,
    beta: tl.tensor,
    residual: tl.tensor,
    output: tl.tensor,
    dy_at: tl.tensor,
    at: tl.tensor,
    present: tl.tensor,
    FINISH: tl.constexpr,
    REAL: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """dz = dy · activation'(z); zero where nothing is."""
    dz = load(dy, dy_at, present, REAL)
    if FINISH[0] != "identity":
        if output is not None:
            z = load(output, at, present, REAL)
        else:
            z = before_activation(x_hat, gamma, beta, residual, at, present, FINISH, REAL, DTYPE)
        dz = tl.where(present, dz * slope_at(z, FINISH), 0.0)
    return dz
