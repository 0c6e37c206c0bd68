"""The view: a plan as a GPU walks it. Four levels, of which the parameters follow some and not the others."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from evenorm.plan import Levels, Plan

__all__ = ["Along", "Quad", "View", "strides_on", "view"]


class Quad(NamedTuple):
    """One number for each level: a size, a stride in elements, an index."""

    batch: int
    outer: int
    group: int
    inner: int


class Along(IntFlag):
    """The levels along which the parameter changes."""

    BATCH = 1
    OUTER = 2
    GROUP = 4
    INNER = 8


@dataclass(frozen=True)
class View:
    """Sizes and strides of the levels; statistics lie on batch and group.

    For the flat position ``f`` in the dense output, ``parameter = f // stretch * count + f // span % count``. A *slot*
    is one place of the levels that it changes along: a parameter has one, or a few where it comes again.
    """

    size: Quad
    dense: Quad
    x: Quad
    dy: Quad
    span: int
    count: int
    stretch: int
    along: Along
    wraps: bool
    stretched: bool
    slot: Quad
    slots: int

    @property
    def statistics(self) -> int:
        """How many statistics there are."""
        return self.size.batch * self.size.group

    @property
    def values(self) -> int:
        """Values per statistic."""
        return self.size.outer * self.size.inner

    @property
    def dense_level(self) -> Along:
        """The level along which elements are neighbors in memory."""
        if self.size.inner > 1:
            return Along.INNER
        return Along.GROUP if self.dense.group == 1 else Along.OUTER

    @property
    def run(self) -> int:
        """How many neighbors there are."""
        return self.size[list(Along).index(self.dense_level)]

    def reads_words(self, strides: Quad, word: int) -> bool:
        """Whether a tensor with these strides on the levels lies in words of so many elements."""
        levels = zip(Along, self.size, strides, strict=True)
        return all(s == 1 if level == self.dense_level else s % word == 0 for level, n, s in levels if n > 1)

    def parameters_of_slots(self, device: torch.device) -> Tensor:
        """The parameter of every slot."""
        f = torch.zeros((), dtype=torch.int64, device=device)
        for k in sorted(range(4), key=lambda k: -self.dense[k]):
            if list(Along)[k] in self.along:
                f = f[..., None] + torch.arange(self.size[k], device=device) * self.dense[k]
        f = f.flatten()
        own = f // self.stretch * self.count if self.stretched else 0
        return f // self.span % self.count + own


def view(plan: Plan) -> View:
    """The plan's levels, split further where the parameters then follow whole levels.

    >>> from evenorm.affine import Affine
    >>> from evenorm.pattern import Pattern
    >>> from evenorm.plan import make_plan
    >>> plan = make_plan(Pattern.parse("n (g=2 [c]) [...]"), Affine("g c"), (4, 6, 5), (30, 5, 1))
    >>> found = view(plan)
    >>> found.size, found.along
    (Quad(batch=4, outer=3, group=2, inner=5), <Along.OUTER|GROUP: 6>)
    """
    batch, outer, group, inner = plan.batch, plan.outer, plan.group, plan.inner
    numel = batch * outer * group * inner
    stretched = plan.stretch < numel
    period = plan.stretch if stretched else plan.span * plan.count
    strides = [Quad(*levels, 1) for levels in (plan.dense_levels, *_read(plan))]
    rows = period // inner
    if batch == outer == 1 and period % inner == 0 and 1 < rows < group and group % rows == 0:
        # Groups that take the same parameters again: each turn is a batch.
        batch, group = group // rows, rows
        strides = [s._replace(batch=s.group * rows) for s in strides]
    if outer == 1 and 1 < plan.span < inner and inner % plan.span == 0:
        # A parameter for each plane of a group.
        outer, inner = inner // plan.span, plan.span
        strides = [s._replace(outer=plan.span) for s in strides]
    size, dense = Quad(batch, outer, group, inner), strides[0]
    changes = [_changes(plan, stretched, n, t) for n, t in zip(size, dense, strict=True)]
    along = Along(sum(level for level, yes in zip(Along, changes, strict=True) if yes))
    last = sum((n - 1) * t for n, t, yes in zip(size, dense, changes, strict=True) if yes)
    slot, slots = _slots(size, dense, changes)
    return View(
        size=size,
        dense=dense,
        x=strides[1],
        dy=strides[2],
        span=plan.span,
        count=plan.count,
        stretch=plan.stretch,
        along=along,
        wraps=stretched or last // plan.span >= plan.count,
        stretched=stretched,
        slot=slot,
        slots=slots,
    )


def strides_on(view: View, tensor: Tensor, dense: tuple[int, ...]) -> Quad | None:
    """Strides of the levels in a tensor of the output's shape; ``None`` where a level has more than one.

    Args:
        dense: strides of the output.
    """
    axes = [
        (n, s) for n, s, d in sorted(zip(tensor.shape, tensor.stride(), dense, strict=True), key=_outermost) if n > 1
    ]
    found = [0, 0, 0, 0]
    for k in sorted(range(4), key=lambda k: view.dense[k]):
        stride, done = 0, 1
        while done < view.size[k]:
            n, s = axes.pop()
            rest = view.size[k] // done
            taken = min(n, rest)
            if n % taken or rest % taken or (done > 1 and s != stride * done):
                return None
            if taken < n:
                axes.append((n // taken, s * taken))
            stride, done = (s if done == 1 else stride), done * taken
        found[k] = stride
    return Quad(*found)


def _outermost(axis: tuple[int, int, int]) -> int:
    return -axis[2]


def _read(plan: Plan) -> tuple[Levels, Levels]:
    return plan.x or plan.dense_levels, plan.dy or plan.dense_levels


def _changes(plan: Plan, stretched: bool, size: int, stride: int) -> bool:
    """Whether the parameter changes along a level."""
    block = size * stride
    within = stride % (plan.span * plan.count) == 0 or plan.span % block == 0
    rows = not stretched or plan.stretch % block == 0
    return size > 1 and not (within and rows)


def _slots(size: Quad, dense: Quad, changes: list[bool]) -> tuple[Quad, int]:
    """Strides of the slots, in memory's order, and their number."""
    strides, step = [0, 0, 0, 0], 1
    for k in sorted(range(4), key=lambda k: dense[k]):
        if changes[k]:
            strides[k] = step
            step *= size[k]
    return Quad(*strides), prod(n for n, yes in zip(size, changes, strict=True) if yes)
