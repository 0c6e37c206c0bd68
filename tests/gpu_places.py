"""A kernel of the tests alone: the first place of a tile on each level."""

import triton
import triton.language as tl

from evenorm.kernels.triton.device.blocks import groups, place

__all__ = ["first_places"]


@triton.jit  # type: ignore[untyped-decorator]
def first_places(found: tl.tensor, block: tl.tensor, t: tl.tensor, space: tl.tuple, TILE: tl.constexpr) -> None:
    """Of a block of statistics and one of its tiles."""
    spot, _ = place(block, groups(block, TILE), t, space, TILE)
    tl.store(found + tl.arange(0, 1), tl.min(spot.outer))
    tl.store(found + 1 + tl.arange(0, 1), tl.min(spot.group))
    tl.store(found + 2 + tl.arange(0, 1), tl.min(spot.inner))
