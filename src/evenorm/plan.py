"""The plan: a pattern laid on memory, in the one form that every fused kernel understands.

Sorted by stride, the axes of almost every normalizer are *batch × outer × group × inner*, of which ``batch``
and ``group`` are kept and ``outer`` and ``inner`` are reduced. For the element at the flat position ``f``::

    statistic = (batch index, group index)
    parameter = f // stretch * count + f // span % count

>>> from evenorm.pattern import Pattern
>>> from evenorm.affine import Affine
>>> plan = make_plan(Pattern.parse("[n] c [...]"), Affine("c"), (32, 64, 28, 28), (50176, 784, 28, 1))
>>> plan.batch, plan.outer, plan.group, plan.inner, plan.span, plan.count
(1, 32, 64, 784, 784, 64)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from evenorm.affine import Affine
from evenorm.pattern import Binding, Pattern

__all__ = ["Plan", "Unplannable", "make_plan"]

Strides = tuple[int, ...]


class Unplannable(ValueError):
    """The pattern and the affine do not reduce to one plan on this shape."""


class Levels(NamedTuple):
    """Strides of batch, outer and group; the innermost level is dense."""

    batch: int
    outer: int
    group: int


@dataclass(frozen=True)
class Plan:
    """What a kernel needs to know of the pattern and of memory, in elements.

    ``x`` and ``dy`` are the strides with which the inputs are read, or ``None`` where an input must first be
    copied into ``dense``, the strides of the output. ``statistic_order`` and ``parameter_order`` permute
    statistics and parameters from the pattern's order to memory's; ``None`` where they agree.
    """

    batch: int
    outer: int
    group: int
    inner: int
    span: int
    count: int
    stretch: int
    dense: Strides
    x: Levels | None
    dy: Levels | None
    # The binding's factors in each of the four levels, in memory's order.
    factors: tuple[tuple[int, ...], ...]
    statistics_shape: tuple[int, ...]
    statistic_order: tuple[int, ...] | None
    parameter_shape: tuple[int, ...]
    parameter_order: tuple[int, ...] | None

    @property
    def statistics(self) -> int:
        """How many statistics there are."""
        return self.batch * self.group

    @property
    def values(self) -> int:
        """Values per statistic."""
        return self.outer * self.inner

    @property
    def dense_levels(self) -> Levels:
        """Strides of the levels of a dense tensor."""
        return Levels(self.outer * self.group * self.inner, self.group * self.inner, self.inner)

    def __str__(self) -> str:
        return (
            f"batch {self.batch} x outer {self.outer} x group {self.group} x inner {self.inner}, "
            f"span {self.span}, count {self.count}"
        )


class _Level(NamedTuple):
    """A run of neighboring factors of one kind, with its stride in the input, the gradient and the output."""

    size: int
    reduced: bool
    x: int
    dy: int
    dense: int
    factors: tuple[int, ...] = ()

    def continues(self, inner: _Level) -> bool:
        """Whether the two lie end to end, so that one loop runs over both."""
        return self.reduced == inner.reduced and all(
            mine == theirs * inner.size for mine, theirs in zip(self[2:5], inner[2:5], strict=True)
        )


def make_plan(
    pattern: Pattern,
    affine: Affine,
    shape: Sequence[int],
    strides: Strides,
    dense: Strides | None = None,
    grad_strides: Strides | None = None,
) -> Plan:
    """Plan a pattern on a tensor of this shape and these strides.

    Args:
        pattern: the pattern.
        affine: the axes on which the parameters lie.
        shape: the tensor's shape.
        strides: the input's strides.
        dense: strides that the output will have; those of the input unless it is a view with gaps.
        grad_strides: strides of the gradient that comes in; those of the output unless given.

    Raises:
        PatternError: the pattern does not fit the shape.
        Unplannable: no order of memory suits the pattern and the affine; another kernel must take it.
    """
    binding = pattern.bind(shape)
    dense = strides if dense is None else dense
    grad_strides = dense if grad_strides is None else grad_strides
    fault: Unplannable | None = None
    for output in (dense, _kept_first(binding, shape)):
        try:
            return _fit(binding, affine, output, _split(binding, strides), _split(binding, grad_strides))
        except Unplannable as reason:
            fault = fault or reason
    raise fault or Unplannable("no order of memory fits")


def _split(binding: Binding, strides: Strides) -> Strides:
    """Strides of the factors, from those of the axes."""
    result = [0] * len(binding.shape)
    inner = 1
    for i in reversed(range(len(binding.shape))):
        last_of_axis = i + 1 == len(binding.shape) or binding.axes[i + 1] != binding.axes[i]
        inner = 1 if last_of_axis else inner * binding.shape[i + 1]
        result[i] = strides[binding.axes[i]] * inner
    return tuple(result)


def _kept_first(binding: Binding, shape: Sequence[int]) -> Strides:
    """The dense order that suits every pattern of unsplit axes: kept axes outside, reduced ones inside."""
    kept = {binding.axes[i] for i in binding.kept}
    order = sorted(range(len(shape)), key=lambda axis: axis not in kept)
    strides = [0] * len(shape)
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def _fit(binding: Binding, affine: Affine, dense: Strides, x: Strides, dy: Strides) -> Plan:
    split = _split(binding, dense)
    # The strides of an axis of size 1 mean nothing.
    order = sorted((i for i, size in enumerate(binding.shape) if size != 1), key=lambda i: -split[i])
    span, count, stretch, parameter_order = _parameters(binding, affine, order)
    for x_read, dy_read in ((x, dy), (x, split), (split, dy), (split, split)):
        levels = _assign(_merge(binding, order, x_read, dy_read, split))
        if levels is not None:
            break
    else:
        raise Unplannable(f"{_kinds(binding, order)} is more than keep, reduce, keep, reduce")
    kept = [i for i in order if i in binding.kept]
    batch, outer, group, inner = (level.size for level in levels)
    return Plan(
        batch=batch,
        outer=outer,
        group=group,
        inner=inner,
        span=span,
        count=count,
        stretch=stretch,
        dense=dense,
        x=Levels(*(level.x for level in levels[:3])) if x_read == x else None,
        dy=Levels(*(level.dy for level in levels[:3])) if dy_read == dy else None,
        factors=tuple(level.factors for level in levels),
        statistics_shape=binding.statistics_shape,
        statistic_order=_permutation(binding.kept, kept),
        parameter_shape=binding.sizes(affine.axes),
        parameter_order=parameter_order,
    )


def _merge(binding: Binding, order: list[int], x: Strides, dy: Strides, dense: Strides) -> list[_Level]:
    """Neighbors of one kind become one level wherever they lie end to end in every tensor."""
    levels: list[_Level] = []
    for i in order:
        level = _Level(binding.shape[i], i in binding.reduced, x[i], dy[i], dense[i], (i,))
        if levels and levels[-1].continues(level):
            outer = levels.pop()
            level = level._replace(size=outer.size * level.size, factors=outer.factors + level.factors)
        levels.append(level)
    return levels


def _assign(levels: list[_Level]) -> tuple[_Level, ...] | None:
    """Levels into the four slots from the innermost out; ``None`` where they do not fit or the innermost has gaps."""
    slots = [_Level(1, reduced, 0, 0, 0) for reduced in (False, True, False, True)]
    if levels and (levels[-1].x != 1 or levels[-1].dy != 1):
        return None
    free = 4
    for level in reversed(levels):
        free -= 1
        while free >= 0 and slots[free].reduced != level.reduced:
            free -= 1
        if free < 0:
            return None
        slots[free] = level
    return tuple(slots)


def _parameters(binding: Binding, affine: Affine, order: list[int]) -> tuple[int, int, int, tuple[int, ...] | None]:
    """Span, count, stretch, and the permutation of the parameters into memory's order."""
    numel = prod(binding.shape)
    positions = [binding.names.index(name) for name in affine.axes]
    places = [place for place, i in enumerate(order) if i in positions]
    # What stands outermost in memory and apart from the rest gives each sample a row of its own.
    lead = 0
    while lead < len(places) and places[lead] == lead:
        lead += 1
    block = places[lead:] or places
    if block[-1:] and block[-1] - block[0] + 1 != len(block):
        names = " ".join(affine.axes)
        raise Unplannable(f"the affine's axes '{names}' are not neighbors in memory")
    rows = places[:lead] if places[lead:] else []
    sizes = [binding.shape[i] for i in order]
    count = prod(sizes[p] for p in block)
    span = prod(sizes[block[-1] + 1 :]) if block else max(numel, 1)
    stretch = prod(sizes[len(rows) :]) if rows else max(numel, 1)
    return span, max(count, 1), max(stretch, 1), _permutation(positions, [order[p] for p in places])


def _permutation(pattern: Sequence[int], memory: Sequence[int]) -> tuple[int, ...] | None:
    """Positions in the pattern's order of the factors in memory's; those of size 1, absent there, go first."""
    places = [pattern.index(i) for i in memory]
    if places == sorted(places):
        return None
    return tuple(k for k in range(len(pattern)) if k not in places) + tuple(places)


def _kinds(binding: Binding, order: list[int]) -> str:
    return ", ".join(f"{'reduce' if i in binding.reduced else 'keep'} {binding.names[i]}" for i in order)
