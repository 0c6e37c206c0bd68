"""Sums that several of Triton's programs share: each program its own part, all parts in one order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evenorm.kernels import triton
from evenorm.kernels.triton import tile
from evenorm.kernels.triton.call import Call
from evenorm.kernels.triton.prepared import Prepared
from evenorm.kernels.triton.tile import Parts, Share, parts, share
from gpu import DEVICE, GPU, poison, shortly, shrink
from gpu_setting import EPS, Setting, assert_sums, tensors

pytestmark = GPU

# By how the sums are cut: with how many warps in all, and what is then shared out.
OF_SHORT_ROWS = {
    "rows": (Setting("... [d]", "d", (9, 6)), 2, Share(programs=2, rows=3, lanes=2, steady=True)),
    "positions": (Setting("n [c] h w", "c", (5, 4, 2, 3)), 3, Share(programs=3, rows=4, lanes=3, steady=True)),
    "samples": (Setting("n (g=2 [c]) [...]", "g c", (5, 4, 3)), 2, Share(programs=10, rows=1, lanes=5, steady=True)),
    "runs": (Setting("n (g=2 [c]) [...]", "g c", (3, 4, 15)), 2, Share(programs=6, rows=1, lanes=3, steady=False)),
}
OF_LONG_ROWS = {
    "own": (Setting("... [d]", "d", (3, 20)), 4, Parts(own=1, rows=3, splits=2, per_program=2, repeats=1)),
    "tiles": (Setting("n [h] c [w]", "w", (2, 2, 2, 20)), 8, Parts(own=1, rows=4, splits=2, per_program=2, repeats=2)),
    "slots": (Setting("n [h w]", "w", (3, 2, 20)), 6, Parts(own=1, rows=3, splits=2, per_program=2, repeats=1)),
}
# One statistic in several pieces.
OF_PIECES = {
    "batch": Setting("[n] c [...]", "c", (5, 2, 10)),
    "layer": Setting("... [d]", "d", (2, 70)),
    "group": Setting("n (g=2 [c]) [...]", "g c", (1, 12, 15)),
}
SETTINGS = {
    **{name: (setting, warps) for name, (setting, warps, _) in (*OF_SHORT_ROWS.items(), *OF_LONG_ROWS.items())},
    **{f"pieces of {name}": (setting, 2) for name, setting in OF_PIECES.items()},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    poison(monkeypatch)


def prepared(setting: Setting) -> Prepared:
    x, dy = tensors(setting, None)
    return Call(x, setting.parsed, setting.finish(), None, dy=dy).prepared


@pytest.mark.parametrize(("setting", "warps", "shared"), OF_SHORT_ROWS.values(), ids=OF_SHORT_ROWS)
def test_rows_are_shared_out(setting: Setting, warps: int, shared: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program takes several rows, the last one fewer, or the rows that have its parameters lie in several."""
    monkeypatch.setattr(tile, "WARPS", warps)
    made = prepared(setting)
    assert share(made.view, made._whole_back) == shared
    assert_sums(setting, setting.finish("silu"), *tensors(setting, None))


@pytest.mark.parametrize(("setting", "warps", "shared"), OF_LONG_ROWS.values(), ids=OF_LONG_ROWS)
def test_parameters_of_long_rows_are(
    setting: Setting, warps: int, shared: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that keep to some parameters share the rows out, the last with fewer; so may several tiles of a row."""
    monkeypatch.setattr(tile, "WARPS", warps)
    made = prepared(setting)
    assert not made.keeps_parameters
    assert parts(made.view, made._whole_back) == shared
    assert_sums(setting, setting.finish("silu"), *tensors(setting, None))


@pytest.mark.parametrize("setting", OF_PIECES.values(), ids=OF_PIECES)
def test_one_statistic_is(setting: Setting) -> None:
    assert prepared(setting).pieces_back > 2
    assert_sums(setting, setting.finish("silu"), *tensors(setting, None))


def test_what_a_cuda_graph_makes_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the slots, which its replay alone would fill; what was made before is there for a graph too."""
    made = prepared(OF_LONG_ROWS["slots"][0])
    monkeypatch.setattr("evenorm.kernels.triton.prepared._capturing", lambda device: True)
    captured = made.order
    assert captured is not None
    monkeypatch.setattr("evenorm.kernels.triton.prepared._capturing", lambda device: False)
    kept = made.order
    assert kept is not captured
    assert kept is not None
    assert torch.equal(kept, captured)
    monkeypatch.setattr("evenorm.kernels.triton.prepared._capturing", lambda device: True)
    assert made.order is kept


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU orders programs as it likes")
@pytest.mark.parametrize("name", shortly(SETTINGS, "rows", "own", "pieces of batch"))
def test_in_any_order_of_programs_the_bits_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import interpreter_builder

    setting, warps = SETTINGS[name]
    monkeypatch.setattr(tile, "WARPS", warps)
    finish, (x, dy) = setting.finish("silu"), tensors(setting, None)

    def step() -> tuple[Tensor, ...]:
        y, mean, m2 = triton.forward(x, setting.parsed, True, EPS, finish)
        return y, mean, m2, *triton.backward(dy, x, setting.parsed, True, EPS, mean, m2, finish)[:3]

    forth = step()
    start = interpreter_builder.set_grid_idx
    monkeypatch.setattr(
        *(interpreter_builder, "set_grid_idx"),
        lambda *at: start(*(n - 1 - k for n, k in zip(interpreter_builder.grid_dim, at, strict=True))),
    )
    for one, other in zip(forth, step(), strict=True):
        assert torch.equal(one, other)
