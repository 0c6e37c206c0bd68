"""What belongs together, as the kernels take it: tuples whose names Triton knows too."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from evenorm.kernels.triton.view import Quad

__all__ = ["Beside", "Block", "Finishing", "Layout", "Scale", "Slots", "Space"]


class Space(NamedTuple):
    """Where the elements lie, and how tiles cover them.

    Sizes and strides are in units, which divide the inner size and all strides; inner is dense. For a parameter's place
    ``affine`` has its span, count and stretch. ``tiles`` cover a statistic, ``across`` of them its inner axis, and
    ``blocks`` the groups.
    """

    size: Quad
    dense: Quad
    x: Quad
    dy: Quad
    affine: tuple[int, int, int]
    across: int
    tiles: int
    blocks: int


class Beside(NamedTuple):
    """The tensors beside x, each where there is one; of the mask its strides on the levels, in elements."""

    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    output: Tensor | None
    mask: Tensor | None
    mask_strides: Quad


class Slots(NamedTuple):
    """Where the parameters' partial sums go: strides and number of the slots of a row, two halves of so many rows."""

    strides: Quad
    number: int
    half: int
    lanes: int


class Block(NamedTuple):
    """The elements of a tile; the units, of which a run's first place is a multiple, so that loads are wide."""

    outer: int
    group: int
    inner: int
    outer_unit: int
    group_unit: int
    unit: int


class Layout(NamedTuple):
    """The levels along which the parameter changes, whether it wraps around, whether samples have their own."""

    levels: int
    wraps: bool
    stretched: bool


class Finishing(NamedTuple):
    """The activation and its slope, the weight's offset, whether x̂ is rounded before it is scaled."""

    activation: str
    slope: float
    offset: float
    early: bool


class Scale(NamedTuple):
    """The mean as two numbers, of which the second is what the first lost to rounding; rstd."""

    high: Any
    low: Any
    rstd: Any
