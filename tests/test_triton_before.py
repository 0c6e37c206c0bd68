"""A residual before the normalization in Triton's sweep: the bits of an addition, and of a call on the sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evenorm import Affine, Epilogue
from evenorm.kernels import Finish, eager, triton
from evenorm.kernels.triton.call import Call
from gpu import GPU, poison, shortly, shrink, there
from gpu_setting import EPS, SETTINGS, Setting, tensors

pytestmark = GPU

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def in_one_sweep(x: Tensor, setting: Setting, finish: Finish) -> bool:
    return Call.of_sum(x, setting.parsed, finish, True, EPS) is not None


def assert_step(x: Tensor, addend: Tensor, dy: Tensor, carried: Tensor, setting: Setting, finish: Finish) -> None:
    """The sum is an addition's, what is made of it that of a call on it; dx has both gradients."""
    pattern = setting.parsed
    y, total, mean, m2 = triton.forward_of_sum(x, addend, pattern, True, EPS, finish)
    assert torch.equal(total, x + addend)
    for found, expected in zip((y, mean, m2), triton.forward(total, pattern, True, EPS, finish), strict=True):
        assert torch.equal(found, expected)
    bare, *sums, _ = triton.backward(dy, total, pattern, True, EPS, mean, m2, finish)
    dx, *found_sums, _ = triton.backward(dy, total, pattern, True, EPS, mean, m2, finish, None, carried)
    for found, expected in zip(found_sums, sums, strict=True):
        assert torch.equal(found, expected)
    # Twice rounded where the addition is an operation of its own.
    bound = torch.finfo(x.dtype).eps * (bare.abs() + carried.abs()).double() + torch.finfo(torch.float32).eps
    assert ((dx.double() - bare.double() - carried.double()).abs() <= bound).all()


@pytest.mark.parametrize("dtype", shortly(DTYPES, "float32"))
@pytest.mark.parametrize("name", shortly(SETTINGS, "batch", "layer", "channels"))
def test_a_tile_that_holds_a_statistic_adds(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    setting = SETTINGS[name]
    x, dy = (t.to(DTYPES[dtype]) for t in tensors(setting, None))
    finish = setting.finish("silu")
    assert in_one_sweep(x, setting, finish)
    assert_step(x, x.roll(1, 0), dy, dy.roll(1, 0), setting, finish)


@pytest.mark.parametrize("dtype", shortly(DTYPES, "bfloat16"))
@pytest.mark.parametrize(
    "setting", [SETTINGS["batch"], Setting("... [d]", "d", (3, 20)), Setting("... [d]", "d", (1, 70))], ids=str
)
def test_of_several_tiles_it_is_an_operation_before(
    setting: Setting, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)
    poison(monkeypatch)
    x, dy = (t.to(DTYPES[dtype]) for t in tensors(setting, None))
    finish = setting.finish("silu")
    assert not in_one_sweep(x, setting, finish)
    assert_step(x, x.roll(1, 0), dy, dy.roll(1, 0), setting, finish)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["batch", "group", "channels"])
def test_channels_last_adds_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    setting = SETTINGS[name]._replace(shape=(2, 4, 2, 3))
    x, dy = map(channels_last, tensors(setting, None))
    finish = setting.finish()
    assert in_one_sweep(x, setting, finish)
    assert_step(x, x.roll(1, 0), dy, dy.roll(1, 0), setting, finish)


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def off_address(tensor: Tensor) -> Tensor:
    return there(torch.empty(tensor.numel() + 1))[1:].view(tensor.shape).copy_(tensor)


def with_a_gap(tensor: Tensor) -> Tensor:
    return there(torch.empty(*tensor.shape[:-1], tensor.shape[-1] + 3))[..., :-3].copy_(tensor)


def stepped(tensor: Tensor) -> Tensor:
    return there(torch.empty(*tensor.shape, 2))[..., 0].copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT


@pytest.mark.parametrize(
    ("lay", "lay_addend", "fused"),
    [
        (off_address, as_it_is, True),
        (as_it_is, off_address, True),
        (off_address, off_address, True),
        (as_it_is, transposed, True),
        (as_it_is, with_a_gap, True),
        (with_a_gap, as_it_is, False),
        (stepped, as_it_is, False),
    ],
)
def test_wherever_both_lie(
    lay: Callable[[Tensor], Tensor],
    lay_addend: Callable[[Tensor], Tensor],
    fused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows in words of 8 elements, from other addresses or with gaps: the same bits, from copies where need be."""
    poison(monkeypatch)
    setting = Setting("... [d]", "d", (3, 8))
    (x, dy), finish = tensors(setting, None), setting.finish("silu")
    addend, carried = x.roll(1, 0), dy.roll(1, 0)
    laid, beside = lay(x), lay_addend(addend)
    assert in_one_sweep(laid, setting, finish) is fused
    assert_step(laid, beside, dy, lay_addend(carried), setting, finish)
    arguments = (setting.parsed, True, EPS, finish)
    for one, other in zip(
        triton.forward_of_sum(laid, beside, *arguments), triton.forward_of_sum(x, addend, *arguments), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_squares_that_float32_cannot_hold_are_found_again_from_the_stored_sum(dtype: str) -> None:
    """From x alone they would be small."""
    setting = SETTINGS["layer"]
    x = torch.randn(setting.shape)
    addend = x.roll(1, 0)
    addend[1] *= 1e25
    x, addend = (there(t).to(DTYPES[dtype]) for t in (x, addend))
    finish = Finish(Affine(), Epilogue())
    assert in_one_sweep(x, setting, finish)
    _, total, *moments = triton.forward_of_sum(x, addend, setting.parsed, True, EPS, finish)
    torch.testing.assert_close(tuple(moments), eager.moments(total.double(), setting.parsed, True), rtol=1e-6, atol=0)
    assert moments[1][1] > torch.finfo(torch.float32).max
