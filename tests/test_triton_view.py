"""The view and the tiles of the GPU's kernels, element by element: plain arithmetic, which needs no GPU."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cases import CASES, Case, case
from evenorm import Affine, Pattern
from evenorm.kernels.triton.tile import ALONE, LOOP, WHOLE, Tile, parts, pieces, share, tile
from evenorm.kernels.triton.view import Along, Quad, View, strides_on, view
from evenorm.plan import Plan, Unplannable, make_plan
from layouts import LAYOUTS, lay

FUSED = pytest.mark.parametrize("case", [c for c in CASES if c.fused], ids=str)
Indices = NDArray[np.int64]


def planned(case: Case, layout: str, shape: tuple[int, ...]) -> Plan:
    x = lay(torch.randn(shape), layout, case.pattern)
    affine = Affine(case.given or case.affine)
    return make_plan(Pattern.parse(case.pattern), affine, shape, x.stride(), torch.empty_like(x).stride())


def on(size: Quad, strides: Quad) -> Indices:
    """Where each element lies, by its place on the levels."""
    at = np.zeros(size, np.int64)
    for axis, (n, stride) in enumerate(zip(size, strides, strict=True)):
        at += (np.arange(n) * stride).reshape([-1 if k == axis else 1 for k in range(4)])
    return at


@pytest.mark.parametrize("layout", LAYOUTS)
@FUSED
def test_levels_are_those_of_the_plan(case: Case, layout: str) -> None:
    for shape in case.shapes:
        if prod(shape) > 10_000:
            continue
        plan = planned(case, layout, shape)
        found = view(plan)
        flat = on(found.size, found.dense)
        assert sorted(flat.ravel()) == list(range(prod(shape)))
        # Statistic and place in the input of each position, by the plan.
        size = Quad(plan.batch, plan.outer, plan.group, plan.inner)
        f = on(size, Quad(*plan.dense_levels, 1)).ravel()
        assert (f == np.arange(f.size)).all()
        statistic = np.broadcast_to(np.arange(plan.statistics).reshape(plan.batch, 1, plan.group, 1), size)
        own = np.broadcast_to(np.arange(found.statistics).reshape(found.size.batch, 1, found.size.group, 1), found.size)
        assert (statistic.ravel()[flat] == own).all()
        read = on(size, Quad(*(plan.x or plan.dense_levels), 1)).ravel()
        assert (read[flat] == on(found.size, found.x)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@FUSED
def test_parameters_follow_their_levels(case: Case, layout: str) -> None:
    for shape in case.shapes:
        if prod(shape) > 10_000:
            continue
        found = view(planned(case, layout, shape))
        flat = on(found.size, found.dense)
        expected = flat // found.stretch * found.count + flat // found.span % found.count
        kept = [n if level in found.along else 0 for level, n in zip(Along, found.dense, strict=True)]
        f = on(found.size, Quad(*kept))
        p = f // found.span
        p = p % found.count if found.wraps else p
        p = p + f // found.stretch * found.count if found.stretched else p
        assert (p == expected).all()
        # Each slot belongs to one parameter, which the table of slots names.
        slots = on(found.size, found.slot)
        assert (found.parameters_of_slots(torch.device("cpu")).numpy()[slots] == expected).all()
        assert slots.max() + 1 == found.slots


def test_a_parameter_has_one_slot_in_every_usual_layer() -> None:
    for name, layout in (
        ("BatchNorm2d", "contiguous"),
        ("BatchNorm2d", "channels_last"),
        ("GroupNorm_2", "contiguous"),
        ("GroupNorm_2", "channels_last"),
        ("InstanceNorm2d_affine", "contiguous"),
        ("LayerNorm", "contiguous"),
        ("LayerNorm2d", "contiguous"),
        ("LayerNorm_given", "contiguous"),
        ("Norm_heads", "contiguous"),
    ):
        plan = planned(case(name), layout, case(name).shape)
        assert view(plan).slots == prod(plan.parameter_shape), name


def layer_norm(rows: int, width: int) -> View:
    shape = (rows, width)
    return view(make_plan(Pattern.parse("... [d]"), Affine("d"), shape, (width, 1)))


@pytest.mark.parametrize("width", [1, 7, 12, 128, 1000, 4096, 16_384, 16_385, 100_000])
def test_the_tile_does_not_depend_on_the_number_of_rows(width: int) -> None:
    found = set()
    for rows in (1, 2, 19, 5000):
        chosen = tile(layer_norm(rows, width), WHOLE, 4)
        found.add(
            (
                chosen.outer,
                chosen.group,
                chosen.inner,
                chosen.warps,
                chosen.count,
                pieces(layer_norm(rows, width), chosen),
            )
        )
    assert len(found) == 1


SIZES = [
    ("[n] c [...]", "c", (32, 64, 56, 56)),
    ("[n] c [...]", "c", (200_000, 3)),
    ("n (g=32 [c]) [...]", "g c", (2, 320, 64, 64)),
    ("n [c] h w", "c", (2, 768, 14, 14)),
    ("... [d]", "d", (4, 8192)),
    ("... [d]", "d", (7, 65_537)),
    ("n c [...]", "c", (2, 3, 512, 512)),
    ("b t h [d]", "h d", (2, 64, 12, 64)),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize(("pattern", "affine", "shape"), SIZES)
def test_tiles_cover_everything_once(
    pattern: str, affine: str, shape: tuple[int, ...], itemsize: int, layout: str
) -> None:
    strides = LAYOUTS[layout](torch.empty(shape, device="meta"), pattern).stride()
    found = view(make_plan(Pattern.parse(pattern), Affine(affine), shape, strides))
    for whole in (LOOP, WHOLE):
        chosen = tile(found, whole, itemsize)
        assert chosen.outer * chosen.group * chosen.inner <= max(whole, chosen.group)
        assert covers(chosen, found)
        # A run begins at a multiple of its word wherever it lies.
        units = {Along.OUTER: chosen.outer_unit, Along.GROUP: chosen.group_unit, Along.INNER: chosen.unit}
        assert all(unit == 1 for level, unit in units.items() if level != found.dense_level)
        assert found.reads_words(found.dense, units[found.dense_level])
        cut, each = pieces(found, chosen)
        assert (cut - 1) * each < chosen.count <= cut * each
        assert cut > 1 or chosen.single or chosen.group * found.values <= ALONE
        shared = share(found, chosen)
        blocks = found.size.batch * chosen.blocks
        assert (shared.programs - 1) * shared.rows < blocks <= shared.programs * shared.rows
        own = parts(found, chosen)
        assert (own.splits - 1) * own.per_program < own.rows <= own.splits * own.per_program
        assert own.own * own.rows == blocks


def covers(chosen: Tile, found: View) -> bool:
    down = chosen.count // chosen.across
    return (
        (chosen.across - 1) * chosen.inner < found.size.inner <= chosen.across * chosen.inner
        and (down - 1) * chosen.outer < found.size.outer <= down * chosen.outer
        and (chosen.blocks - 1) * chosen.group < found.size.group <= chosen.blocks * chosen.group
        and found.size.inner % chosen.unit == 0
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm_2", "LayerNorm2d", "LayerNorm", "InstanceNorm2d_affine"])
def test_strides_of_a_mask(name: str, layout: str) -> None:
    """Every mask that has strides on the levels is read at the right place."""
    met = 0
    shape = case(name).shape
    x = lay(torch.randn(shape), layout, case(name).pattern)
    plan = planned(case(name), layout, shape)
    found = view(plan)
    for kept in range(2 ** len(shape)):
        small = [n if kept >> axis & 1 else 1 for axis, n in enumerate(shape)]
        mask = torch.arange(prod(small)).reshape(small).expand(shape)
        strides = strides_on(found, mask, plan.dense)
        if strides is not None:
            met += 1
            dense = torch.empty_strided(shape, plan.dense, dtype=torch.int64).copy_(mask)
            values = dense.as_strided((prod(shape),), (1,)).numpy()
            assert (values[on(found.size, found.dense)] == on(found.size, strides)).all()
    assert met >= 2
    assert x.shape == mask.shape


def test_what_fits_no_plan_has_no_view() -> None:
    with pytest.raises(Unplannable):
        planned(case("Norm_unplannable"), "contiguous", case("Norm_unplannable").shape)
