"""Kernels of the tests alone: the first place of a tile on each level; what there is of a tile."""

import triton
import triton.language as tl

from evenorm.kernels.triton.bundle import Beside
from evenorm.kernels.triton.device.blocks import INNER, count_of, exists, gamma_and_beta, groups, place

__all__ = ["first_places", "what_is_there"]


@triton.jit  # type: ignore[untyped-decorator]
def first_places(found: tl.tensor, block: tl.tensor, t: tl.tensor, space: tl.tuple, TILE: tl.constexpr) -> None:
    """Of a block of statistics and one of its tiles."""
    spot, _ = place(block, groups(block, TILE), t, space, TILE)
    tl.store(found + tl.arange(0, 1), tl.min(spot.outer))
    tl.store(found + 1 + tl.arange(0, 1), tl.min(spot.group))
    tl.store(found + 2 + tl.arange(0, 1), tl.min(spot.inner))


@triton.jit  # type: ignore[untyped-decorator]
def what_is_there(
    found: tl.tensor,
    weight: tl.tensor,
    t: tl.tensor,
    space: tl.tuple,
    strides: tl.tuple,
    LAYOUT: tl.constexpr,
    FINISH: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Elements of a tile, places of its inner axis, values of each statistic, and the weight of the last group."""
    b = (t * 0).to(tl.int64)
    g = groups(b, TILE)
    spot, inside = place(b, g, t, space, TILE)
    beside = Beside(weight, None, None, None, None, strides)
    gamma, _ = gamma_and_beta(beside, spot, space, LAYOUT, FINISH, TILE, tl.float32)
    tl.store(found, tl.sum(inside.to(tl.int32)))
    tl.store(found + 1, tl.sum(exists(spot, space, INNER, TILE).to(tl.int32)))
    tl.store(found + 2, tl.sum(count_of(inside, t, space, False, TILE)))
    tl.store(found + 3, tl.sum(tl.where(g == space.size.group - 1, gamma, 0.0)))
