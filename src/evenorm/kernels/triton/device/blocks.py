"""What the kernels have in common: places of a tile, loads, moments of a tile and their merging.

Tiles have three axes, outer x group x inner; what lies on fewer keeps axes of size 1, statistics group alone. A
``spot`` is the indices of a tile's elements on each level; what else comes as a tuple is named in ``bundle.py``.
"""

import triton
import triton.language as tl

from evenorm.kernels.triton.bundle import Scale
from evenorm.kernels.triton.device.curves import slope_at
from evenorm.kernels.triton.view import Along, Quad

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
    return (block.to(tl.int64) * TILE.group + tl.arange(0, TILE.group))[None, :, None]


@triton.jit
def _elements(units: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """A size or stride in elements, of which there may be more than an int32 counts."""
    elements = units
    if TILE.unit > 1:
        elements = tl.cast(units, tl.int64) * TILE.unit
    return elements


@triton.jit
def place(b: tl.tensor, g: tl.tensor, t: tl.tensor, space: tl.tuple, TILE: tl.constexpr) -> tl.tuple:
    """The spot of a tile, and which of its elements exist."""
    o = ((t // space.across).to(tl.int64) * TILE.outer + tl.arange(0, TILE.outer))[:, None, None]
    i = ((t % space.across).to(tl.int64) * TILE.inner + tl.arange(0, TILE.inner))[None, None, :]
    inside = (o < space.size.outer) & (g < space.size.group) & (i < _elements(space.size.inner, TILE))
    return Quad(b, o, g, i), inside


@triton.jit
def flat(spot: tl.tuple, strides: tl.tuple, TILE: tl.constexpr) -> tl.tensor:
    """Where the spot's elements lie.

    What the compiler may know of it depends on the tile alone: of one row, and of none but its strides, it would know
    more, read wider words and add them up in another order.
    """
    at = (spot.batch * strides.batch + spot.outer * strides.outer + spot.group * strides.group) * TILE.unit + spot.inner
    OUTER_UNIT: tl.constexpr = TILE.outer_unit
    GROUP_UNIT: tl.constexpr = TILE.group_unit
    UNIT: tl.constexpr = TILE.unit
    return tl.multiple_of(at, (OUTER_UNIT, GROUP_UNIT, UNIT))


@triton.jit
def along(spot: tl.tuple, strides: tl.tuple, LEVELS: tl.constexpr) -> tl.tensor:
    """A flat position of these levels alone, in the shape of a tile's axes that they have."""
    at = tl.full((1, 1, 1), 0, tl.int64)
    if BATCH & LEVELS:
        at = at + spot.batch * strides.batch
    if OUTER & LEVELS:
        at = at + spot.outer * strides.outer
    if GROUP & LEVELS:
        at = at + spot.group * strides.group
    if INNER & LEVELS:
        at = at + spot.inner * strides.inner
    return at


@triton.jit
def exists(spot: tl.tuple, space: tl.tuple, LEVELS: tl.constexpr, TILE: tl.constexpr) -> tl.tensor:
    """Which of the places that `along` gives exist."""
    yes = tl.full((1, 1, 1), 1, tl.int1)
    if OUTER & LEVELS:
        yes = yes & (spot.outer < space.size.outer)
    if GROUP & LEVELS:
        yes = yes & (spot.group < space.size.group)
    if INNER & LEVELS:
        yes = yes & (spot.inner < _elements(space.size.inner, TILE))
    return yes


@triton.jit
def gamma_and_beta(
    beside: tl.tuple,
    spot: tl.tuple,
    space: tl.tuple,
    LAYOUT: tl.constexpr,
    FINISH: tl.constexpr,
    TILE: tl.constexpr,
    REAL: tl.constexpr,
) -> tl.tuple:
    """offset + weight and bias, in the shape of a tile's axes along which they change; 1 and 0 where absent."""
    gamma = tl.full((1, 1, 1), 1.0, REAL)
    beta = tl.full((1, 1, 1), 0.0, REAL)
    span, count, stretch = space.affine
    dense = space.dense
    strides = Quad(_elements(dense.batch, TILE), _elements(dense.outer, TILE), _elements(dense.group, TILE), 1)
    f = along(spot, strides, LAYOUT.levels)
    p = f // span
    if LAYOUT.wraps:
        p = p % count
    if LAYOUT.stretched:
        p = p + f // stretch * count
    there = exists(spot, space, LAYOUT.levels, TILE)
    if beside.weight is not None:
        gamma = tl.load(beside.weight + p, mask=there, other=0.0).to(REAL) + FINISH.offset
    if beside.bias is not None:
        beta = tl.load(beside.bias + p, mask=there, other=0.0).to(REAL)
    return gamma, beta


@triton.jit
def present_in(beside: tl.tuple, inside: tl.tensor, spot: tl.tuple) -> tl.tensor:
    """Which elements are there: all that exist, but those that the mask hides."""
    present = inside
    if beside.mask is not None:
        strides = beside.mask_strides
        at = (
            spot.batch * strides.batch
            + spot.outer * strides.outer
            + spot.group * strides.group
            + spot.inner * strides.inner
        )
        # Byte by byte, so that it does not decide which elements a thread has.
        at = tl.multiple_of(at, (1, 1, 1))
        present = present & (tl.load(beside.mask + at, mask=inside, other=0) != 0)
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
def _covered(k: tl.tensor, size: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """How much of a size the k-th of its parts covers: all of its width, or what is left."""
    # In int64 where the size is: in loops that are short of registers int32 does for the rest.
    size = size + k * 0
    return tl.minimum(size - k.to(size.dtype) * WIDTH, WIDTH).to(tl.int32)


@triton.jit
def count_of(present: tl.tensor, t: tl.tensor, space: tl.tuple, MASKED: tl.constexpr, TILE: tl.constexpr) -> tl.tensor:
    """Values of each statistic in a tile."""
    if MASKED:
        n = total(present.to(tl.int32)).to(tl.float64)
    else:
        high = _covered(t // space.across, space.size.outer, TILE.outer)
        wide = _covered(t % space.across, _elements(space.size.inner, TILE), TILE.inner)
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
    beside: tl.tuple,
    b: tl.tensor,
    g: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    space: tl.tuple,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
    REAL: tl.constexpr,
) -> tl.tuple:
    """Count, mean and M2 over some tiles, in one pass around the first tile's mean.

    And whether that was too far off: where (Σ d)² / n is above 3/4 of Σ d², their difference has lost bits.
    """
    center = tl.full((1, TILE.group, 1), 0, REAL)
    if CENTERED:
        start, start_inside = place(b, g, first, space, TILE)
        start_present = present_in(beside, start_inside, start)
        few = count_of(start_present, first, space, beside.mask is not None, TILE)
        head = load(x, flat(start, space.x, TILE), start_present, REAL)
        center = (total(head).to(tl.float64) / tl.where(few > 0, few, 1.0)).to(REAL)
    n = tl.full((1, TILE.group, 1), 0, tl.float64)
    sums = tl.full((TILE.outer, TILE.group, TILE.inner), 0, REAL)
    squares = tl.full((TILE.outer, TILE.group, TILE.inner), 0, REAL)
    for t in range(first, last):
        spot, inside = place(b, g, t, space, TILE)
        present = present_in(beside, inside, spot)
        values = load(x, flat(spot, space.x, TILE), present, REAL)
        n = n + count_of(present, t, space, beside.mask is not None, TILE)
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
    beside: tl.tuple,
    b: tl.tensor,
    g: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    space: tl.tuple,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
    REAL: tl.constexpr,
) -> tl.tuple:
    """Count, mean and M2 over some tiles, each in two passes, merged by Chan, Golub & LeVeque (1979), eq. 2.1."""
    n = tl.full((1, TILE.group, 1), 0, tl.float64)
    mean = tl.full((1, TILE.group, 1), 0, tl.float64)
    m2 = tl.full((1, TILE.group, 1), 0, tl.float64)
    for t in range(first, last):
        spot, inside = place(b, g, t, space, TILE)
        present = present_in(beside, inside, spot)
        values = load(x, flat(spot, space.x, TILE), present, REAL)
        more = count_of(present, t, space, beside.mask is not None, TILE)
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
    """What normalizes: the mean in two numbers, and rstd."""
    high = mean.to(REAL)
    return Scale(high, (mean - high.to(tl.float64)).to(REAL), rstd.to(REAL))


@triton.jit
def normalized(values: tl.tensor, scale: tl.tuple, present: tl.tensor) -> tl.tensor:
    """x̂; zero where nothing is, whatever the statistics are there."""
    return tl.where(present, ((values - scale.high) - scale.low) * scale.rstd, 0.0)


@triton.jit
def before_activation(
    x_hat: tl.tensor,
    gamma: tl.tensor,
    beta: tl.tensor,
    beside: tl.tuple,
    at: tl.tensor,
    present: tl.tensor,
    FINISH: tl.constexpr,
    REAL: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """What the activation takes."""
    z = x_hat
    if FINISH.early:
        z = rounded(z, DTYPE).to(REAL)
    z = z * gamma + beta
    if beside.residual is not None:
        z = z + load(beside.residual, at, present, REAL)
    return z


@triton.jit
def gradient_of(
    dy: tl.tensor,
    x_hat: tl.tensor,
    gamma: tl.tensor,
    beta: tl.tensor,
    beside: tl.tuple,
    dy_at: tl.tensor,
    at: tl.tensor,
    present: tl.tensor,
    FINISH: tl.constexpr,
    REAL: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """dz = dy · activation'(z); zero where nothing is."""
    dz = load(dy, dy_at, present, REAL)
    if FINISH.activation != "identity":
        if beside.output is not None:
            z = load(beside.output, at, present, REAL)
        else:
            z = before_activation(x_hat, gamma, beta, beside, at, present, FINISH, REAL, DTYPE)
        dz = tl.where(present, dz * slope_at(z, FINISH), 0.0)
    return dz
