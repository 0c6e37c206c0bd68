"""Calls with a residual that go straight to the extension: the same bits, the same gradients, the same refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import evenorm
from evenorm import Epilogue
from evenorm.epilogue import ACTIVATIONS
from evenorm.layers import Layer
from kernels_here import WITHOUT_EXTENSION
from ways import counting, results, whole_way

pytestmark = pytest.mark.skipif(WITHOUT_EXTENSION, reason="the C++ extension is not built")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the straight calls that were made."""
    return counting(monkeypatch)


SHAPE = (4, 6, 5, 3)
LAYERS: dict[str, Callable[[Epilogue], Layer]] = {
    "BatchNorm2d": lambda epilogue: evenorm.BatchNorm2d(6, activation=epilogue),
    "GroupNorm": lambda epilogue: evenorm.GroupNorm(2, 6, activation=epilogue),
    "LayerNorm": lambda epilogue: evenorm.LayerNorm(3, activation=epilogue),
    "RMSNorm": lambda epilogue: evenorm.RMSNorm(3, activation=epilogue),
    "InstanceNorm2d": lambda epilogue: evenorm.InstanceNorm2d(6, activation=epilogue),
}
EPILOGUES = [Epilogue(name) for name in ACTIVATIONS] + [
    Epilogue(residual="before"),
    Epilogue("silu", residual="before"),
]


def drawn(layer: Layer, dtype: torch.dtype) -> Layer:
    """With parameters that are not the initial ones."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(1.0, 0.5)
    return layer.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: f"{e.activation}_{e.residual}")
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_bits(name: str, epilogue: Epilogue, dtype: torch.dtype, taken: list[str]) -> None:
    layer = drawn(LAYERS[name](epilogue), dtype)
    for training in (True, False):
        twin = copy.deepcopy(layer.train(training))
        x, dy, residual = (torch.randn(SHAPE).to(dtype) for _ in range(3))
        found = results(layer, x, dy, residual)
        with whole_way():
            wanted = results(twin, x, dy, residual)
        for part, value in wanted.items():
            assert torch.equal(found[part], value), part
            assert found[part].stride() == value.stride(), part
    assert len(taken) == 2


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "epilogue", [Epilogue(), Epilogue("relu"), Epilogue("silu"), Epilogue(residual="before")], ids=str
)
@pytest.mark.parametrize("name", ["BatchNorm2d", "RMSNorm"])
def test_gradients_to_the_second_order(name: str, epilogue: Epilogue, training: bool, taken: list[str]) -> None:
    layer = drawn(LAYERS[name](epilogue), torch.float64).train(training)
    x, residual = (torch.randn(3, 6, 1, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def function(x: Tensor, residual: Tensor, weight: Tensor) -> Any:
        return layer(x, residual=residual)

    assert torch.autograd.gradcheck(function, (x, residual, layer.weight))
    assert torch.autograd.gradgradcheck(function, (x, residual, layer.weight))
    assert taken


WANTED = {"x": (True, False, False), "residual": (False, True, False), "weight": (False, False, True)}


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_one_gradient_alone(activation: str, wanted: str, training: bool, taken: list[str]) -> None:
    layer = drawn(LAYERS["BatchNorm2d"](Epilogue(activation)), torch.float64).train(training)
    x, residual, dy = (torch.randn(SHAPE, dtype=torch.float64) for _ in range(3))
    tensors = (x, residual, layer.weight)
    for tensor, flag in zip((*tensors, layer.bias), (*WANTED[wanted], False), strict=True):
        tensor.requires_grad_(flag)
    (asked,) = (t for t in tensors if t.requires_grad)
    (found,) = torch.autograd.grad(layer(x, residual=residual), asked, dy)
    assert len(taken) == 1
    with whole_way():
        (right,) = torch.autograd.grad(layer(x, residual=residual), asked, dy)
    torch.testing.assert_close(found, right, rtol=1e-13, atol=1e-13)


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "another dtype": lambda r: r.double(),
    "another format": lambda r: r.contiguous(memory_format=torch.channels_last),
    "expanded": lambda r: r[:1].expand(r.shape),
    "a negative view": lambda r: torch._neg_view(r),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_residual_goes_the_whole_way(other: str, taken: list[str]) -> None:
    layer = drawn(LAYERS["BatchNorm2d"](Epilogue("relu")), torch.float32)
    x, residual = torch.randn(SHAPE), OTHERS[other](torch.randn(SHAPE))
    layer(x)
    del taken[:]
    twin = copy.deepcopy(layer)
    assert torch.equal(layer(x, residual=residual), twin(x, residual=residual.resolve_neg().to(x).contiguous()))
    assert len(taken) == 1
    assert torch.equal(layer.get_buffer("running_mean"), twin.get_buffer("running_mean"))


def test_a_wrong_residual_changes_nothing() -> None:
    layer = evenorm.BatchNorm2d(6)
    x = torch.randn(SHAPE)
    layer(x, residual=x)
    before = {name: b.clone() for name, b in layer.state_dict().items()}
    with pytest.raises(ValueError, match="expected a residual of the input's shape"):
        layer(x, residual=x[:1])
    with pytest.raises(TypeError, match="expected a tensor for the residual, got float"):
        layer(x, residual=1.0)
    with pytest.warns(RuntimeWarning, match="not finite"):
        layer(x.where(x < 0, torch.inf), residual=x)
    assert all(torch.equal(before[name], b) for name, b in layer.state_dict().items())


def test_where_the_residual_goes_is_read_at_each_call(taken: list[str]) -> None:
    layer: Any = evenorm.LayerNorm(3)
    x, residual = torch.randn(SHAPE), torch.randn(SHAPE)
    plain = layer(x)
    assert torch.equal(layer(x, residual=residual), plain + residual)
    layer.epilogue = Epilogue(residual="before")
    for _ in range(2):
        y, total = layer(x, residual=residual)
        assert torch.equal(total, x + residual)
        assert torch.equal(y, layer(total))
    assert taken == ["batch"] * 6
