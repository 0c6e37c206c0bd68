"""Weight and spectral normalization: torch's parametrizations, and what they promise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrizations, parametrize

import evenorm

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(6, 4).double(),
    "Conv2d": lambda: nn.Conv2d(3, 5, 3).double(),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(3, 5, 2).double(),
    "Conv1d, groups": lambda: nn.Conv1d(4, 6, 3, groups=2).double(),
}
ALL = pytest.mark.parametrize("name", LAYERS)


def pair(name: str, ours: Callable[..., Any], theirs: Callable[..., Any], **options: Any) -> tuple[Any, Any]:
    layer = LAYERS[name]()
    twin = copy.deepcopy(layer)
    torch.manual_seed(1)
    ours(layer, **options)
    torch.manual_seed(1)
    theirs(twin, **options)
    return layer, twin


@ALL
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_is_torchs(name: str, dim: int | None) -> None:
    layer, twin = pair(name, evenorm.weight_norm, parametrizations.weight_norm, dim=dim)
    assert layer.state_dict().keys() == twin.state_dict().keys()
    twin.load_state_dict(layer.state_dict(), strict=True)
    for parameter in layer.parameters():
        parameter.data.normal_()
    layer.load_state_dict(layer.state_dict())
    twin.load_state_dict(layer.state_dict(), strict=True)
    torch.testing.assert_close(layer.weight, twin.weight)
    dw = torch.randn_like(layer.weight)
    for mine, theirs in zip(
        torch.autograd.grad(layer.weight, parameters(layer), dw),
        torch.autograd.grad(twin.weight, parameters(twin), dw),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def parameters(layer: nn.Module) -> list[Tensor]:
    return [p for name, p in layer.named_parameters() if "parametrizations" in name]


@ALL
def test_weight_norm_changes_nothing_at_first_and_keeps_lengths(name: str) -> None:
    plain = LAYERS[name]()
    layer = evenorm.weight_norm(copy.deepcopy(plain))
    torch.testing.assert_close(layer.weight, plain.weight)
    magnitude, direction = parameters(layer)
    with torch.no_grad():
        direction.mul_(7)
    torch.testing.assert_close(layer.weight, plain.weight)
    lengths = layer.weight.flatten(1).norm(dim=1)  # type: ignore[operator]
    torch.testing.assert_close(lengths, magnitude.flatten())


@ALL
def test_weight_norm_derivatives(name: str) -> None:
    norm = evenorm.weights.WeightNorm(0)
    weight = LAYERS[name]().weight.detach()  # type: ignore[operator]
    magnitude, direction = norm.right_inverse(weight)
    inputs = magnitude.clone().requires_grad_(), direction.clone().requires_grad_()
    assert gradcheck(norm, inputs, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(norm, inputs, fast_mode=True)


@ALL
def test_spectral_norm_is_torchs(name: str) -> None:
    """With the same vectors to start from, step for step; in training and in evaluation."""
    layer, twin = pair(name, evenorm.spectral_norm, parametrizations.spectral_norm)
    assert layer.state_dict().keys() == twin.state_dict().keys()
    twin.load_state_dict(layer.state_dict(), strict=True)
    layer.load_state_dict(twin.state_dict(), strict=True)
    for training in (True, True, False):
        layer.train(training)
        twin.train(training)
        dw = torch.randn_like(twin.parametrizations.weight.original)
        ours, theirs = layer.weight, twin.weight
        torch.testing.assert_close(ours, theirs)
        mine, torchs = (torch.autograd.grad(w, parameters(m), dw)[0] for w, m in ((ours, layer), (theirs, twin)))
        torch.testing.assert_close(mine, torchs)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


@ALL
def test_spectral_norm_reaches_a_largest_singular_value_of_1(name: str) -> None:
    layer = evenorm.spectral_norm(LAYERS[name](), n_power_iterations=200)
    dim = 1 if isinstance(layer, nn.ConvTranspose1d) else 0
    weight = layer.weight
    assert isinstance(weight, Tensor)
    matrix = weight.movedim(dim, 0).flatten(1)
    torch.testing.assert_close(torch.linalg.matrix_norm(matrix, 2).item(), 1.0, rtol=1e-6, atol=0)


@ALL
def test_spectral_norm_derivatives(name: str) -> None:
    """With the singular vectors held fast, as torch has them."""
    layer: Any = evenorm.spectral_norm(LAYERS[name]()).eval()
    norm = layer.parametrizations.weight[0]
    weight = layer.parametrizations.weight.original.detach().requires_grad_()
    assert gradcheck(norm, (weight,), fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(norm, (weight,), fast_mode=True)


def test_evaluation_does_not_move_the_vectors() -> None:
    layer = evenorm.spectral_norm(nn.Linear(6, 4)).eval()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer(torch.randn(2, 6))
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("apply", [evenorm.weight_norm, evenorm.spectral_norm], ids=["weight_norm", "spectral_norm"])
def test_trains_copies_compiles_and_can_be_taken_off(apply: Callable[[nn.Linear], nn.Linear]) -> None:
    model = nn.Sequential(apply(nn.Linear(6, 4)), nn.Tanh(), apply(nn.Linear(4, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(16, 6)
    losses = []
    for _ in range(5):
        loss = (model(x) - x[:, :1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    copied = copy.deepcopy(model).eval()
    torch.testing.assert_close(copied(x), model.eval()(x))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    first = model[0]
    wanted = first(x)
    parametrize.remove_parametrizations(first, "weight")
    torch.testing.assert_close(first(x), wanted)


def test_bad_input_is_refused_by_name() -> None:
    for apply in (evenorm.weight_norm, evenorm.spectral_norm):
        name = apply.__name__
        with pytest.raises(ValueError, match=f"{name}: Linear has no parameter 'kernel'; it has weight, bias"):
            apply(nn.Linear(6, 4), "kernel")
        integers = nn.Linear(6, 4)
        integers.weight = nn.Parameter(torch.ones(4, 6, dtype=torch.long), requires_grad=False)
        with pytest.raises(TypeError, match=rf"{name}: .*int64"):
            apply(integers)
    with pytest.raises(ValueError, match=r"weight_norm: dim .*\(4, 6\), got 2"):
        evenorm.weight_norm(nn.Linear(6, 4), dim=2)
    zeros = nn.Linear(6, 4)
    nn.init.zeros_(zeros.weight)
    with pytest.raises(ValueError, match=r"weight_norm: .*zero"):
        evenorm.weight_norm(zeros)
    with pytest.raises(ValueError, match=r"spectral_norm: .*one power iteration, got 0"):
        evenorm.spectral_norm(nn.Linear(6, 4), n_power_iterations=0)
    with pytest.raises(ValueError, match=r"spectral_norm: dim .*got 5"):
        evenorm.spectral_norm(nn.Linear(6, 4), dim=5)
