"""Calls that go straight to the extension: taken when they may be, the same bits, forgotten when something changes."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evenorm
from cases import CASES, case
from evenorm import kernels
from evenorm.kernels import cpu
from evenorm.layers import Layer
from kernels_here import WITHOUT_EXTENSION
from ways import counting, results, whole_way

pytestmark = pytest.mark.skipif(WITHOUT_EXTENSION, reason="the C++ extension is not built")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the straight calls that were made."""
    return counting(monkeypatch)


FORMATS = {
    f"{case}{suffix}": (case, {"memory_format": torch.channels_last} if suffix else {})
    for case in CASES
    for suffix in ("", " channels_last")
    if case.fused and not case.given and (not suffix or len(case.shape) == 4)
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_the_same_bits(name: str, dtype: torch.dtype, training: bool) -> None:
    case, form = FORMATS[name]
    layer = case.layer(dtype).train(training)
    for _ in range(2):
        twin = copy.deepcopy(layer)
        x, dy = (torch.randn(case.shape).to(dtype).contiguous(**form) for _ in range(2))
        found = results(layer, x, dy)
        with whole_way():
            wanted = results(twin, x, dy)
        for part, value in wanted.items():
            if part.startswith("running") and dtype == torch.float64:
                # torch.lerp rounds once or twice, by the processor and the place in the tensor.
                torch.testing.assert_close(found[part], value, rtol=0, atol=1e-15)
            else:
                assert torch.equal(found[part], value), part
            assert found[part].stride() == value.stride(), part


@pytest.mark.parametrize(
    ("make", "training", "kind"),
    [
        (lambda: evenorm.BatchNorm2d(6), True, "observed"),
        (lambda: evenorm.BatchNorm2d(6, momentum=None), True, "observed"),
        (lambda: evenorm.BatchNorm2d(6), False, "given"),
        (lambda: evenorm.BatchNorm2d(6, activation="silu"), True, "observed"),
        (lambda: evenorm.BatchNorm2d(6, track_running_stats=False), True, "batch"),
        (lambda: evenorm.GroupNorm(2, 6), True, "batch"),
        (lambda: evenorm.LayerNorm(5), False, "batch"),
        (lambda: evenorm.RMSNorm(5), False, "batch"),
        (lambda: evenorm.BatchNorm2d(6).bfloat16(), True, "observed"),
        (lambda: evenorm.BatchNorm2d(6).half(), False, "given"),
    ],
)
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "bare"])
def test_taken_where_it_may_be(
    make: Callable[[], Layer], training: bool, kind: str, recorded: bool, taken: list[str]
) -> None:
    layer = make().train(training)
    with torch.set_grad_enabled(recorded):
        for _ in range(3):
            layer(torch.randn(4, 6, 5, 5, dtype=next(layer.parameters(), torch.empty(0)).dtype))
    assert taken == [kind] * 3


def test_gradients_to_the_second_order(taken: list[str]) -> None:
    for name in ("BatchNorm2d", "LayerNorm", "RMSNorm"):
        layer = case(name).layer()
        x = torch.randn(case(name).shape, dtype=torch.float64, requires_grad=True)
        weight = layer.weight

        def function(x: Tensor, weight: Tensor, layer: Layer = layer) -> Tensor:
            return layer(x)

        for training in (True, False):
            layer.train(training)
            layer(x)
            before = len(taken)
            assert torch.autograd.gradcheck(function, (x, weight))
            assert torch.autograd.gradgradcheck(function, (x, weight))
            assert len(taken) > before


CHANGES: dict[str, Callable[[Any], object]] = {
    "eps": lambda layer: setattr(layer, "eps", 0.5),
    "momentum": lambda layer: setattr(layer, "momentum", 0.7),
    "mode": lambda layer: layer.eval(),
    "kernel": lambda layer: setattr(layer, "kernel", "eager"),
    "dtype": lambda layer: layer.double(),
    "no weight": lambda layer: setattr(layer, "weight", None),
    "another weight": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(6))),
    "data of the weight": lambda layer: setattr(layer.weight, "data", torch.randn(6, dtype=torch.float64)),
    "strided weight": lambda layer: setattr(layer.weight, "data", torch.randn(6, 2)[:, 0]),
    "counter of another type": lambda layer: setattr(layer, "num_batches_tracked", torch.tensor(3, dtype=torch.int32)),
    "history of another type": lambda layer: setattr(layer.running_mean, "data", torch.randn(6, dtype=torch.float16)),
    "another history": lambda layer: setattr(layer, "running_mean", torch.randn(6)),
    "no history": lambda layer: layer.__setattr__("running_mean", None) or layer.__setattr__("running_var", None),
    "tracking": lambda layer: setattr(layer, "track_running_stats", False),
    "parametrized": lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_counts_at_once(change: str) -> None:
    layer: Any = case("BatchNorm2d").layer(torch.float32)
    x, dy = torch.randn(4, 6, 5, 5), torch.randn(4, 6, 5, 5)
    results(layer, x, dy)
    results(layer, x, dy)
    CHANGES[change](layer)
    twin = copy.deepcopy(layer)
    found = results(layer, x, dy)
    with whole_way():
        wanted = results(twin, x, dy)
    for name, value in wanted.items():
        # Of a history in float64 the last bit may differ: see above.
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-15 if name.startswith("running") else 0)


def test_transforms_and_modes_go_the_whole_way(taken: list[str]) -> None:
    layer = evenorm.LayerNorm(6)
    x = torch.randn(4, 6)
    layer(x), layer(x)
    del taken[:]
    torch.func.grad(lambda x: layer(x).square().sum())(x)
    torch.func.jvp(layer, (x,), (x,))
    torch.func.functional_call(layer, {"weight": torch.ones(6, dtype=torch.float64)}, x)
    layer(x, scale=None)
    assert taken == ["batch"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_not_finite_is_not_taken_in(dtype: torch.dtype, taken: list[str]) -> None:
    layer = evenorm.BatchNorm1d(3).to(dtype)
    x = torch.randn(8, 3, dtype=dtype)
    layer(x)
    before = {name: b.clone() for name, b in layer.state_dict().items()}
    with pytest.warns(RuntimeWarning, match="not finite"):
        layer(x.where(x < 0, torch.inf))
    assert taken == ["observed", "observed"]
    assert all(torch.equal(before[name], b) for name, b in layer.state_dict().items())
    assert layer.get_buffer("num_batches_skipped") == 1
    layer(x)
    assert layer.get_buffer("num_batches_tracked") == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_is_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    # Sums over as many magnitudes as the type has, ties, denormals and infinities among them.
    exponents = torch.arange(-30.0, 30.0).double()
    x = torch.cat([2**exponents * (1 + k / 2**11) for k in range(8)]).float()[None]
    layer = evenorm.InstanceNorm1d(x.shape[1], affine=True, eps=0.0)
    layer.weight.data, layer.bias.data = (p.data.to(dtype) for p in (layer.weight, layer.bias))
    pair = torch.tensor([-1.0, 1.0]).expand(1, x.shape[1], 2)
    dy = torch.stack([torch.zeros_like(x), x], dim=2)
    found = results(layer, pair, dy)
    assert torch.equal(found["bias"], x[0].double().to(dtype))
    assert torch.equal(found["weight"], x[0].double().to(dtype))


def test_a_layer_that_was_called_is_copied_and_saved() -> None:
    layer = evenorm.BatchNorm1d(3)
    x = torch.randn(8, 3)
    layer(x), layer(x)
    twin = copy.deepcopy(layer)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(twin(x), loaded(x))


def test_what_a_transform_left_behind_goes_the_whole_way(taken: list[str]) -> None:
    left: list[Tensor] = []
    torch.func.grad(lambda x: left.append(x) or x.sum())(torch.randn(4, 6))  # type: ignore[func-returns-value]
    layer = evenorm.LayerNorm(6)
    layer(torch.randn(4, 6))
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            torch.testing.assert_close(layer(left[0]), torch.nn.functional.layer_norm(left[0], (6,)))
    assert taken == ["batch"]


def test_without_the_extension_calls_go_the_whole_way(monkeypatch: pytest.MonkeyPatch, taken: list[str]) -> None:
    monkeypatch.setattr(cpu, "_cpu", None)
    kernels.choice.cache_clear()
    layer, x = evenorm.LayerNorm(6), torch.randn(4, 6)
    torch.testing.assert_close(layer(x), torch.nn.functional.layer_norm(x, (6,)))
    torch.testing.assert_close(layer(x), torch.nn.functional.layer_norm(x, (6,)))
    assert not taken
    kernels.choice.cache_clear()


def test_a_graph_that_outlives_its_program_is_no_news() -> None:
    program = """
import torch, evenorm
layer = evenorm.LayerNorm(8)
x = torch.randn(4, 8, requires_grad=True)
kept = [layer(x) for _ in range(3)]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout + done.stderr == ""
