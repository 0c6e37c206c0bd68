"""Plans, by brute force: for every element the kernel's arithmetic against the pattern's meaning."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evenorm import Affine, Pattern, PatternError
from evenorm.plan import Levels, Plan, Strides, Unplannable, make_plan
from patterns import patterns


def labels(sizes: tuple[int, ...], order: tuple[int, ...] | None) -> Tensor:
    """For each statistic or parameter of the pattern's order, its position in memory's order."""
    positions = torch.arange(prod(sizes)).reshape(sizes)
    if order is None:
        return positions
    in_memory = torch.empty_like(positions)
    in_memory.permute(order).copy_(torch.arange(prod(sizes)).reshape([sizes[k] for k in order]))
    return in_memory


def offsets(shape: tuple[int, ...], strides: Strides) -> Tensor:
    """For each element its place in memory."""
    total = torch.zeros(shape, dtype=torch.long)
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        wide = [size if k == axis else 1 for k in range(len(shape))]
        total = total + (torch.arange(size) * stride).reshape(wide)
    return total


def check(plan: Plan, pattern: Pattern, affine: Affine, shape: tuple[int, ...], x: Strides, dy: Strides) -> None:
    """What the kernel computes from the plan, beside what the pattern says."""
    binding = pattern.bind(shape)
    assert (plan.statistics, plan.values) == (prod(binding.statistics_shape), binding.count)

    # The kernel's four loops.
    b, o, g, i = torch.meshgrid(
        *(torch.arange(size) for size in (plan.batch, plan.outer, plan.group, plan.inner)), indexing="ij"
    )
    flat = ((b * plan.outer + o) * plan.group + g) * plan.inner + i
    statistic = b * plan.group + g
    parameter = flat // plan.stretch * plan.count + flat // plan.span % plan.count

    def read(levels: Levels | None) -> Tensor:
        levels = plan.dense_levels if levels is None else levels
        return b * levels.batch + o * levels.outer + g * levels.group + i

    # The pattern's elements in the order of the output's memory.
    order = offsets(shape, plan.dense).flatten().argsort()
    assert torch.equal(offsets(shape, plan.dense).flatten()[order], torch.arange(prod(shape)))
    assert torch.equal(flat.flatten(), torch.arange(prod(shape)))

    def in_memory(values: Tensor) -> Tensor:
        return values.expand(binding.shape).reshape(shape).flatten()[order]

    def assert_reads(levels: Levels | None, strides: Strides) -> None:
        wanted = plan.dense if levels is None else strides
        assert torch.equal(read(levels).flatten(), offsets(shape, wanted).flatten()[order])

    assert_reads(plan.x, x)
    assert_reads(plan.dy, dy)
    statistics = labels(plan.statistics_shape, plan.statistic_order).reshape(binding.keepdim_shape)
    assert torch.equal(statistic.flatten(), in_memory(statistics))
    if affine.axes:
        places = [binding.names.index(name) for name in affine.axes]
        own = labels(plan.parameter_shape, plan.parameter_order)
        own = own.permute(sorted(range(len(places)), key=places.__getitem__))
        wide = [size if k in places else 1 for k, size in enumerate(binding.shape)]
        assert torch.equal(parameter.flatten(), in_memory(own.reshape(wide)))


def dense_like(shape: tuple[int, ...], strides: Strides) -> Strides:
    """The strides that torch gives the output."""
    return torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()


def make(pattern: Pattern, affine: Affine, shape: tuple[int, ...], x: Strides, dy: Strides | None = None) -> Plan:
    dense = dense_like(shape, x)
    plan = make_plan(pattern, affine, shape, x, dense, dy)
    check(plan, pattern, affine, shape, x, plan.dense if dy is None else dy)
    return plan


def contiguous(shape: tuple[int, ...]) -> Strides:
    return torch.empty(shape, device="meta").stride()


def channels_last(shape: tuple[int, ...]) -> Strides:
    moved = torch.empty(shape[0], *shape[2:], shape[1], device="meta")
    return moved.movedim(-1, 1).stride()


# The table of the design: pattern, affine, shape, layout; batch, outer, group, inner; span, count.
N, C, H, W, G, K = 4, 6, 5, 3, 2, 2
IMAGE = (N, C, H, W)
TABLE: dict[str, tuple[str, str, tuple[int, ...], Callable[..., Strides], tuple[int, ...], tuple[int, int]]] = {
    "BatchNorm NCHW": ("[n] c [...]", "c", IMAGE, contiguous, (1, N, C, H * W), (H * W, C)),
    "BatchNorm NHWC": ("[n] c [...]", "c", IMAGE, channels_last, (1, N * H * W, C, 1), (1, C)),
    "BatchNorm NC": ("[n] c [...]", "c", (N, C), contiguous, (1, N, C, 1), (1, C)),
    "LayerNorm": ("... [d]", "d", (N, H, C), contiguous, (1, 1, N * H, C), (1, C)),
    "GroupNorm NCHW": (
        "n (g=2 [c]) [...]",
        "g c",
        IMAGE,
        contiguous,
        (1, 1, N * G, C // G * H * W),
        (H * W, C),
    ),
    "GroupNorm NHWC": ("n (g=2 [c]) [...]", "g c", IMAGE, channels_last, (N, H * W, G, C // G), (1, C)),
    "InstanceNorm NCHW": ("n c [...]", "c", IMAGE, contiguous, (1, 1, N * C, H * W), (H * W, C)),
    "InstanceNorm NHWC": ("n c [...]", "c", IMAGE, channels_last, (N, H * W, C, 1), (1, C)),
    "LayerNorm2d NCHW": ("n [c] h w", "c", IMAGE, contiguous, (N, C, H * W, 1), (H * W, C)),
    "LayerNorm2d NHWC": ("n [c] h w", "c", IMAGE, channels_last, (1, 1, N * H * W, C), (1, C)),
    "Ghost NCHW": ("(k=2 [n]) c [...]", "c", IMAGE, contiguous, (K, N // K, C, H * W), (H * W, C)),
    "Ghost NHWC": ("(k=2 [n]) c [...]", "c", IMAGE, channels_last, (K, N // K * H * W, C, 1), (1, C)),
    "QK norm": ("b t h [d]", "h d", IMAGE, contiguous, (1, 1, N * C * H, W), (1, H * W)),
    "everything": ("[...]", "", IMAGE, contiguous, (1, 1, 1, N * C * H * W), (N * C * H * W, 1)),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_plans(name: str) -> None:
    text, axes, shape, layout, levels, (span, count) = TABLE[name]
    plan = make(Pattern.parse(text), Affine(axes), shape, layout(shape))
    assert (plan.batch, plan.outer, plan.group, plan.inner) == levels
    assert (plan.span, plan.count) == (span, count)


# Views that are read where they lie: the strides of a part of a wider tensor.
def third_of_the_last_axis(shape: tuple[int, ...]) -> Strides:
    return torch.empty(*shape[:-1], 3 * shape[-1], device="meta").narrow(-1, 0, shape[-1]).stride()


def third_of_axis_1(shape: tuple[int, ...]) -> Strides:
    return torch.empty(shape[0], 3 * shape[1], *shape[2:], device="meta").narrow(1, 0, shape[1]).stride()


def third_of_the_channels_last(shape: tuple[int, ...]) -> Strides:
    outer, *inner, channel = third_of_the_last_axis((shape[0], *shape[2:], shape[1]))
    return (outer, channel, *inner)


READ_IN_PLACE = [
    ("... [d]", "d", (N, H, C), third_of_the_last_axis),
    ("b t h [d]", "d", IMAGE, third_of_the_last_axis),
    ("b t h [d]", "h d", IMAGE, third_of_axis_1),
    ("[n] c [...]", "c", IMAGE, third_of_axis_1),
    ("n c [...]", "c", IMAGE, third_of_axis_1),
    ("n [c] h w", "c", IMAGE, third_of_axis_1),
    ("[n] c [...]", "c", IMAGE, third_of_the_channels_last),
    ("n (g=2 [c]) [...]", "g c", IMAGE, third_of_the_channels_last),
]


@pytest.mark.parametrize(("text", "axes", "shape", "layout"), READ_IN_PLACE)
def test_a_view_is_read_where_it_lies(
    text: str, axes: str, shape: tuple[int, ...], layout: Callable[..., Strides]
) -> None:
    plan = make(Pattern.parse(text), Affine(axes), shape, layout(shape))
    assert plan.x is not None
    gradient = make(Pattern.parse(text), Affine(axes), shape, contiguous(shape), layout(shape))
    assert gradient.dy is None or gradient.dy != gradient.dense_levels


def test_what_cannot_be_read_in_place_is_copied() -> None:
    pattern, affine = Pattern.parse("... [d]"), Affine("d")
    stepped = torch.empty(4, 6, 2, device="meta")[..., 0].stride()
    assert make(pattern, affine, (4, 6), stepped).x is None
    expanded = torch.empty(4, 1, device="meta").expand(4, 6).stride()
    assert make(pattern, affine, (4, 6), expanded).x is None
    rows = torch.empty(1, 6, device="meta").expand(4, 6).stride()
    assert make(pattern, affine, (4, 6), rows).x is not None


PER_SAMPLE = [
    ("n t [d]", "n d", (N, H, C), contiguous),
    ("[n] c [...]", "n c", IMAGE, contiguous),
    ("[n] c [...]", "n c", IMAGE, channels_last),
    ("n c [...]", "n c", IMAGE, channels_last),
    ("n (g=2 [c]) [...]", "n g c", IMAGE, contiguous),
    ("n (g=2 [c]) [...]", "n g c", IMAGE, channels_last),
    ("(k=2 [n]) c [...]", "k n c", IMAGE, contiguous),
]


@pytest.mark.parametrize(("text", "axes", "shape", "layout"), PER_SAMPLE)
def test_an_affine_per_sample_has_a_stretch(
    text: str, axes: str, shape: tuple[int, ...], layout: Callable[..., Strides]
) -> None:
    make(Pattern.parse(text), Affine(axes), shape, layout(shape))


def test_what_fits_no_plan_says_why() -> None:
    pattern = Pattern.parse("n ([g=3] c) ([k=2] l)")
    with pytest.raises(Unplannable, match="keep n, reduce g, keep c, reduce k, keep l"):
        make(pattern, Affine("c"), (4, 6, 10), contiguous((4, 6, 10)))
    apart = Pattern.parse("([n=2] a) c ([h=2] w)")
    with pytest.raises(Unplannable, match=r"'a w' are not neighbors"):
        make(apart, Affine("a w"), (4, 6, 10), contiguous((4, 6, 10)))


def test_a_pattern_that_does_not_fit_is_no_matter_of_plans() -> None:
    with pytest.raises(PatternError):
        make(Pattern.parse("[n] c"), Affine("c"), (4, 6, 5), contiguous((4, 6, 5)))


def test_axes_of_size_one_mean_nothing() -> None:
    plan = make(Pattern.parse("[n] c [...]"), Affine("c"), (1, 6, 1, 5), (999, 5, 1234, 1))
    assert (plan.batch, plan.outer, plan.group, plan.inner) == (1, 1, 6, 5)


@st.composite
def laid_out(draw: Callable[..., Any], shape: tuple[int, ...]) -> Strides:
    """Strides of this shape: permuted, cut out of a wider tensor, stepped, or expanded."""
    order = draw(st.permutations(range(len(shape))))
    extra = draw(st.sampled_from([0] * 5 + [1, 2]))
    step = draw(st.sampled_from([1] * 5 + [2]))
    repeated = draw(st.sampled_from([()] * 4 + [(k,) for k in range(len(shape))]))
    strides, size = [0] * len(shape), step
    for axis in reversed(order):
        strides[axis] = size
        size = size * (shape[axis] + (extra if axis == order[-1] else 0))
    return tuple(0 if k in repeated else s for k, s in enumerate(strides))


@settings(max_examples=200)
@given(st.data())
def test_any_pattern_on_any_layout(data: st.DataObject) -> None:
    pattern = data.draw(patterns())
    shape = [prod(f.size or data.draw(st.integers(1, 3)) for f in axis.factors) for axis in pattern.axes]
    axes = data.draw(st.lists(st.sampled_from(pattern.names), unique=True, max_size=3))
    x, dy = data.draw(laid_out(tuple(shape))), data.draw(laid_out(tuple(shape)))
    try:
        make(pattern, Affine(tuple(axes)), tuple(shape), x, dy)
    except Unplannable:
        kinds = [f.reduced for f in pattern.factors]
        changes = sum(a != b for a, b in pairwise(kinds))
        assert changes > 1 or len(axes) > 1 or any(len(a.factors) > 1 for a in pattern.axes)
