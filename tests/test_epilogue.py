"""Activations and residuals: fused layers against torch's separate ones in float64, forward and backward."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evenorm
from evenorm import kernels
from evenorm.epilogue import ACTIVATIONS
from kernels_here import AVAILABLE
from ways import whole_way

MODULES: dict[str, nn.Module] = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(0.01),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
}
LAYERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "batch": (lambda **k: evenorm.BatchNorm2d(6, **k), lambda: nn.BatchNorm2d(6)),
    "group": (lambda **k: evenorm.GroupNorm(2, 6, **k), lambda: nn.GroupNorm(2, 6)),
    "layer": (lambda **k: evenorm.LayerNorm(5, **k), lambda: nn.LayerNorm(5)),
    "instance": (
        lambda **k: evenorm.InstanceNorm2d(6, affine=True, **k),
        lambda: nn.InstanceNorm2d(6, affine=True),
    ),
    "rms": (lambda **k: evenorm.RMSNorm(5, **k), lambda: nn.RMSNorm(5, eps=torch.finfo(torch.float32).eps)),
}
SHAPE = (4, 6, 4, 5)


def pair(family: str, activation: str, kernel: str) -> tuple[Any, nn.Module]:
    """The fused layer in float32, and torch's with the same parameters in float64."""
    torch.manual_seed(0)
    ours, theirs = LAYERS[family][0](activation=activation), LAYERS[family][1]()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    ours.kernel = kernel
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.double()


def assert_near(found: Tensor, expected: Tensor, what: str) -> None:
    """Within a few roundings of the largest term of a group of at most 120 values."""
    bound = 16 * torch.finfo(torch.float32).eps * sqrt(120) * expected.abs().max().item()
    error = (found.double() - expected).abs().max().item()
    assert expected.abs().max() > 0
    assert error <= bound, f"{what}: off by {error:.3g}, bound {bound:.3g}"


def test_every_activation_has_its_module() -> None:
    assert set(MODULES) == set(ACTIVATIONS)


@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("activation", MODULES)
@pytest.mark.parametrize("family", LAYERS)
def test_agrees_with_the_separate_layers(family: str, activation: str, with_residual: bool, kernel: str) -> None:
    for training in (True, False):
        for memory in (torch.contiguous_format, torch.channels_last):
            ours, theirs = pair(family, activation, kernel)
            ours.train(training), theirs.train(training)
            x, r, dy = (3 * torch.randn(SHAPE).contiguous(memory_format=memory) for _ in range(3))
            leaves = [t.clone().requires_grad_() for t in (x, r)]
            wide = [t.double().requires_grad_() for t in (x, r)]
            y = ours(leaves[0], residual=leaves[1] if with_residual else None)
            expected = MODULES[activation](theirs(wide[0]) + (wide[1] if with_residual else 0))
            assert_near(y, expected.detach(), "y")
            assert y.stride() == leaves[0].stride()
            count = 2 if with_residual else 1
            found = torch.autograd.grad(y, [*leaves[:count], *ours.parameters()], dy)
            wanted = torch.autograd.grad(expected, [*wide[:count], *theirs.parameters()], dy.double())
            for k, (f, w) in enumerate(zip(found, wanted, strict=True)):
                assert_near(f, w, f"gradient {k}, training={training}, {memory}")


@pytest.mark.parametrize("activation", ["silu", "hardswish", "gelu", "gelu_tanh", "leaky_relu"])
def test_derivatives_of_higher_order(activation: str) -> None:
    torch.manual_seed(1)
    layer = evenorm.BatchNorm2d(3, activation=activation, track_running_stats=False).double()
    x, r = (torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def call(x: Tensor, r: Tensor) -> Tensor:
        return layer(x, residual=r)

    assert torch.autograd.gradcheck(call, (x, r))
    assert torch.autograd.gradgradcheck(call, (x, r))


def test_a_residual_before_gives_the_sum_too() -> None:
    layer = evenorm.RMSNorm(5, activation=evenorm.Epilogue(residual="before"))
    x, r = torch.randn(SHAPE), torch.randn(SHAPE)
    y, total = layer(x, residual=r)
    assert torch.equal(total, x + r)
    assert torch.equal(y, evenorm.RMSNorm(5)(x + r))


BEFORE: dict[str, Callable[[], Any]] = {
    "alone": lambda: evenorm.LayerNorm(5, activation=evenorm.Epilogue("gelu", residual="before")),
    "a history": lambda: evenorm.BatchNorm2d(6, activation=evenorm.Epilogue(residual="before")),
    "the history": lambda: evenorm.BatchNorm2d(6, activation=evenorm.Epilogue(residual="before")).eval(),
    "a short last chunk": lambda: evenorm.GhostBatchNorm2d(6, 2, activation=evenorm.Epilogue(residual="before")),
    "without a batch": lambda: evenorm.InstanceNorm1d(4, activation=evenorm.Epilogue(residual="before")),
}


@pytest.mark.parametrize("other", ["float32", "float64", "another format"])
@pytest.mark.parametrize("name", BEFORE)
def test_a_residual_before_is_an_addition_before(name: str, other: str) -> None:
    layer = BEFORE[name]()
    twin = copy.deepcopy(layer)
    twin.epilogue = evenorm.Epilogue(layer.epilogue.activation)
    shape = (4, 7) if name == "without a batch" else (3, 6, 4, 5)
    x, r = (torch.randn(shape) for _ in range(2))
    r = r.double() if other == "float64" else r.transpose(0, 1).contiguous().transpose(0, 1) if "format" in other else r
    for _ in range(2):
        y, total = layer(x, residual=r)
        assert torch.equal(total, x + r)
        assert torch.equal(y, twin(x + r))
    for buffer, expected in zip(layer.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, expected)


STATISTICS: dict[str, tuple[evenorm.Statistics, dict[str, str]]] = {
    "per domain": (evenorm.PerDomain(["a", "b"]), {"domain": "b"}),
    "renormalized": (evenorm.Renorm(), {}),
    "frozen": (evenorm.Frozen(), {}),
    "cumulative": (evenorm.Cumulative(), {}),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_a_residual_before_of_other_statistics(name: str) -> None:
    statistics, options = STATISTICS[name]
    layers = [
        evenorm.BatchNorm2d(6, statistics=statistics, activation=evenorm.Epilogue(residual=place))
        for place in ("before", "after")
    ]
    x, r = (torch.randn(SHAPE) for _ in range(2))
    for _ in range(2):
        y, total = layers[0](x, residual=r, **options)
        assert torch.equal(total, x + r)
        assert torch.equal(y, layers[1](x + r, **options))
    for buffer, expected in zip(layers[0].buffers(), layers[1].buffers(), strict=True):
        assert torch.equal(buffer, expected)


def test_a_mask_does_not_change_a_sum() -> None:
    layer = evenorm.LayerNorm(5, activation=evenorm.Epilogue(residual="before"))
    x, r = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    mask = torch.rand(3, 4) > 0.5
    y, total = layer(x, residual=r, mask=mask)
    assert torch.equal(total, x + r)
    assert torch.equal(y, evenorm.LayerNorm(5)(x + r, mask=mask))


@pytest.mark.parametrize("straight", [True, False])
def test_a_sum_asks_for_a_gradient_where_its_operands_do(straight: bool) -> None:
    layer = evenorm.LayerNorm(5, activation=evenorm.Epilogue(residual="before"))
    x, r = torch.randn(3, 5), torch.randn(3, 5)
    with nullcontext() if straight else whole_way():
        y, total = layer(x, residual=r)
        assert y.requires_grad
        assert not total.requires_grad
        assert layer(x, residual=r.requires_grad_())[1].requires_grad


def test_of_a_sum_one_gradient_may_be_missing() -> None:
    layer = evenorm.LayerNorm(5, activation=evenorm.Epilogue(residual="before"))
    x, r, d = (torch.randn(3, 5) for _ in range(3))
    leaves = [x.requires_grad_(), r.requires_grad_(), layer.weight, layer.bias]
    y, total = layer(x, residual=r)
    found = torch.autograd.grad(total, leaves, d)
    assert torch.equal(found[0], d)
    assert torch.equal(found[1], d)
    assert not found[2].any()
    y, total = layer(x, residual=r)
    found = torch.autograd.grad(y, leaves, d)
    total = total.detach().requires_grad_()
    expected = torch.autograd.grad(layer(total), [total, *leaves[2:]], d)
    for one, other in zip((found[0], *found[1:]), (expected[0], *expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", BEFORE)
def test_a_wrong_residual_before_is_refused(name: str) -> None:
    layer = BEFORE[name]()
    x = torch.randn((4, 7) if name == "without a batch" else (3, 6, 4, 5))
    state = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=f"{type(layer).__name__}.*expected a residual of the input's shape"):
        layer(x, residual=x[:1])
    with pytest.raises(TypeError, match=f"{type(layer).__name__}.*expected a tensor for the residual, got float"):
        layer(x, residual=1.0)
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())


def test_a_function_gives_no_sum() -> None:
    x = torch.randn(3, 5)
    with pytest.raises(ValueError, match="only a layer adds a residual before"):
        evenorm.normalize(x, "... [d]", activation=evenorm.Epilogue(residual="before"), residual=x)


def test_of_a_residual_before_gradients_to_the_second_order() -> None:
    layer = evenorm.LayerNorm(4, activation=evenorm.Epilogue("silu", residual="before")).double()
    x, r = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def call(x: Tensor, r: Tensor, weight: Tensor) -> Any:
        # With a parameter that is none of the layer's own a call goes the whole way.
        return torch.func.functional_call(layer, {"weight": weight}, (x,), {"residual": r})

    assert torch.autograd.gradcheck(call, (x, r, layer.weight))
    assert torch.autograd.gradgradcheck(call, (x, r, layer.weight))


@pytest.mark.parametrize("name", ["alone", "a history"])
def test_a_residual_before_is_one_graph(name: str) -> None:
    layer = BEFORE[name]()
    compiled: Any = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    x, r, dy, d_total = (torch.randn(3, 6, 4, 5) for _ in range(4))
    results = []
    for call in (layer, compiled):
        leaves = [x.clone().requires_grad_(), r.clone().requires_grad_()]
        y, total = call(leaves[0], residual=leaves[1])
        parameters = list(call.parameters())
        results.append((y, total, *torch.autograd.grad((y, total), [*leaves, *parameters], (dy, d_total))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """What the sum's gradient was, in each way back that a kernel went."""
    seen: list[Tensor | None] = []
    backward = kernels.backward

    def noted(*arguments: Any, **options: Any) -> Any:
        seen.append(options["carried"])
        return backward(*arguments, **options)

    monkeypatch.setattr(kernels, "backward", noted)
    return seen


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_sum_that_goes_nowhere_has_no_gradient(compiled: bool, carried: list[Tensor | None]) -> None:
    """Not even zeros; nor has y, where the sum alone goes on."""
    layer: Any = BEFORE["alone"]()
    # What the C++ kernels take goes straight, another way.
    layer.kernel = "eager"
    x, r = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    inputs, dy = (x, r, layer.weight, layer.bias), torch.randn(3, 5)

    def one_of_both(x: Tensor, r: Tensor, which: int) -> Tensor:
        y: Tensor = layer(x, residual=r)[which]
        return y

    call: Any = torch.compile(one_of_both, fullgraph=True, backend="aot_eager") if compiled else one_of_both
    found = torch.autograd.grad(call(x, r, 0), inputs, dy)
    assert carried == [None]
    normalized = nn.functional.layer_norm(x + r, (5,), layer.weight, layer.bias, layer.eps)
    expected = torch.autograd.grad(nn.functional.gelu(normalized), inputs, dy)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    carried.clear()
    dx, dr, *of_parameters = torch.autograd.grad(call(x, r, 1), inputs, dy)
    assert torch.equal(dx, dy)
    assert torch.equal(dr, dy)
    assert not any(g.any() for g in of_parameters)
    assert not carried


def test_converters_leave_a_fused_batch_norm_alone() -> None:
    layer = evenorm.BatchNorm2d(6, activation="relu")
    assert not isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(layer) is layer
    assert "activation=relu" in repr(layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        x = torch.randn(SHAPE)
        assert torch.equal(twin(x), layer(x))
    layer.load_state_dict(nn.BatchNorm2d(6).state_dict(), strict=True)


def test_a_fused_layer_is_one_graph() -> None:
    layer = evenorm.BatchNorm2d(6, activation="silu")
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    x, r, dy = (torch.randn(SHAPE) for _ in range(3))
    results = []
    for call in (layer, compiled):
        leaves = [x.clone().requires_grad_(), r.clone().requires_grad_()]
        y = call(leaves[0], residual=leaves[1])
        results.append((y, *torch.autograd.grad(y, leaves, dy)))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)


def test_bad_epilogues_are_refused() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm2d: there is no activation 'swish'"):
        evenorm.BatchNorm2d(6, activation="swish")
    layer = evenorm.BatchNorm2d(6, activation="relu")
    with pytest.raises(ValueError, match=r"expected a residual of the input's shape"):
        layer(torch.randn(SHAPE), residual=torch.randn(4, 6, 4, 4))
    assert layer.state_dict()["num_batches_tracked"] == 0
