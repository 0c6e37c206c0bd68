"""Derivatives of any order, forward mode and transforms, by numbers and not by shape."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

import evenorm
from cases import CASES, Case, case
from evenorm.layers import Layer
from kernels_here import AVAILABLE
from oracle import array, expect
from properties import seeded_input

MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
ALL = pytest.mark.parametrize("case", CASES, ids=str)


Function = Callable[..., Tensor]


def as_function(case: Case, training: bool) -> tuple[Function, tuple[Tensor, ...]]:
    """The layer as a function of its input, its parameters, and what the call is given."""
    shape = case.shape
    layer = case.layer().train(training)
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    options = {k: v.requires_grad_() for k, v in case.options(shape).items()}
    x = seeded_input(shape, torch.float64).requires_grad_()

    def function(x: Tensor, *rest: Tensor) -> Tensor:
        own = dict(zip(names, rest[: len(names)], strict=True))
        given = dict(zip(options, rest[len(names) :], strict=True))
        return functional_call(layer, own, (x,), given)

    return function, (x, *parameters, *options.values())


@MODES
@ALL
def test_gradcheck(case: Case, training: bool) -> None:
    function, inputs = as_function(case, training)
    assert gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_a_negative_gradient_that_lies_otherwise(kernel: str, activation: str) -> None:
    """It is made one that is not negative, whose strides are others."""
    x = torch.randn(6, 3, 20, 20).transpose(0, 1).requires_grad_()
    dy = torch.randn(3, 6, 20, 40)[..., ::2]
    y = evenorm.normalize(x, "[n] c [...]", activation=activation, residual=torch.randn(x.shape), kernel=kernel)
    (expected,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    (found,) = torch.autograd.grad(y, x, torch._neg_view(-dy))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", ["after", "before"])
def test_gradients_in_batches(place: Any) -> None:
    layer = evenorm.LayerNorm(4, activation=evenorm.Epilogue("silu", residual=place)).double()
    x, r = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(lambda x, r: layer(x, residual=r), (x, r), check_batched_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x), x, vectorize=True)
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(lambda x: layer(x), x))


@MODES
@ALL
def test_gradgradcheck(case: Case, training: bool) -> None:
    function, inputs = as_function(case, training)
    assert gradgradcheck(function, inputs, fast_mode=True)


@MODES
@ALL
def test_forward_mode(case: Case, training: bool) -> None:
    function, inputs = as_function(case, training)
    assert gradcheck(
        function,
        inputs,
        fast_mode=True,
        check_forward_ad=True,
        check_backward_ad=False,
        check_batched_forward_grad=not keeps_history(case),
    )


@pytest.mark.slow
@MODES
@pytest.mark.parametrize("case", [c for c in CASES if prod(c.shape) <= 150], ids=str)
def test_every_entry_of_the_jacobian(case: Case, training: bool) -> None:
    function, inputs = as_function(case, training)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def keeps_history(case: Case) -> bool:
    """Whether a call in training writes a history, which vmap does not allow."""
    return case.make().history is not None


def layer_for_transforms(case: Case) -> Layer:
    """In training where nothing is written, else in evaluation."""
    return case.layer().train(not keeps_history(case))


@ALL
def test_func_grad_is_the_references(case: Case) -> None:
    layer = layer_for_transforms(case)
    x = seeded_input(case.shape, torch.float64)
    dy = torch.randn(case.shape, dtype=torch.float64)
    options = case.options(case.shape)
    expected = expect(case, layer, x, dy, options)
    dx = grad(lambda x: (layer(x, **options) * dy).sum())(x)
    close(dx, expected.x.values)
    y, pull, *_ = vjp(lambda x: layer(x, **options), x)
    close(y, expected.y.values)
    close(pull(dy)[0], expected.x.values)
    if layer.weight is not None:
        own = {name: p.detach() for name, p in layer.named_parameters()}
        found = grad(lambda own: (functional_call(layer, own, (x,)) * dy).sum())(own)
        assert expected.weight is not None
        close(found["weight"], expected.weight.values)


@ALL
def test_jvp_is_the_transposed_of_the_references_gradient(case: Case) -> None:
    """⟨dy, J·dx⟩ = ⟨Jᵀ·dy, dx⟩, with Jᵀ·dy the reference's."""
    layer = layer_for_transforms(case)
    x, tangent, dy = torch.randn(3, *case.shape, dtype=torch.float64)
    options = case.options(case.shape)
    expected = expect(case, layer, x, dy, options)
    _, pushed, *_ = jvp(lambda x: layer(x, **options), (x,), (tangent,))
    close((dy * pushed).sum(), (expected.x.values * array(tangent)).sum())


@ALL
def test_vmap_is_a_loop(case: Case) -> None:
    layer = layer_for_transforms(case)
    x = torch.stack([seeded_input(case.shape, torch.float64, seed) for seed in range(3)])
    dy = torch.randn_like(x)
    options = case.options(case.shape)
    expected = [expect(case, layer, *pair, options) for pair in zip(x, dy, strict=True)]
    y = vmap(lambda x: layer(x, **options))(x)
    gradient = vmap(grad(lambda x, dy: (layer(x, **options) * dy).sum()))(x, dy)
    for k, one in enumerate(expected):
        close(y[k], one.y.values)
        close(gradient[k], one.x.values)
    # Along another axis.
    moved = vmap(lambda x: layer(x, **options), in_dims=1, out_dims=1)(x.movedim(0, 1))
    close(moved.movedim(1, 0), array(y))


def test_vmap_over_parameters_is_an_ensemble() -> None:
    layer = evenorm.LayerNorm(6).double()
    weights = {k: torch.randn(3, 6, dtype=torch.float64) for k in ("weight", "bias")}
    x = torch.randn(5, 6, dtype=torch.float64)
    y = vmap(lambda own: functional_call(layer, own, (x,)))(weights)
    for k in range(3):
        normal = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        close(y[k], array(normal * weights["weight"][k] + weights["bias"][k]))


def test_per_sample_gradients() -> None:
    """The gradient of each sample alone, which a fused backward cannot give."""
    layer = evenorm.GroupNorm(2, 6).double()
    x, dy = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    own = {k: p.detach() for k, p in layer.named_parameters()}

    def loss(own: dict[str, Tensor], x: Tensor, dy: Tensor) -> Tensor:
        return (functional_call(layer, own, (x[None],)) * dy).sum()

    found = vmap(grad(loss), in_dims=(None, 0, 0))(own, x, dy)["weight"]
    for k in range(4):
        alone = torch.autograd.grad(layer(x[k : k + 1]), layer.weight, dy[k : k + 1])[0]
        close(found[k], array(alone))


def test_hessian_is_symmetric_and_torchs() -> None:
    weight = torch.randn(6, dtype=torch.float64)

    def loss(layer: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: (layer(x).tanh() * weight).sum()

    mine = loss(evenorm.LayerNorm(6, dtype=torch.float64))
    torchs = loss(torch.nn.LayerNorm(6, dtype=torch.float64))
    x = torch.randn(6, dtype=torch.float64)
    found = hessian(mine)(x)
    close(found, array(found.T))
    close(found, array(hessian(torchs)(x)))
    close(found, array(jacrev(jacrev(mine))(x)))


@pytest.mark.parametrize("kernel", AVAILABLE)
@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm_2", "LayerNorm", "RMSNorm_offset"])
def test_gradient_penalty(name: str, kernel: str) -> None:
    """A second derivative through backward(), as a penalty on the gradient takes it."""
    layer = case(name).layer(kernel=kernel)
    x = seeded_input(case(name).shape, torch.float64).requires_grad_()

    def penalty(x: Tensor) -> Tensor:
        (dx,) = torch.autograd.grad((layer(x).tanh()).sum(), x, create_graph=True)
        return dx.square().sum()

    (found,) = torch.autograd.grad(penalty(x), x)
    step, direction = 1e-5, torch.randn_like(x)
    change = (penalty(x + step * direction) - penalty(x - step * direction)) / (2 * step)
    torch.testing.assert_close((found * direction).sum(), change, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kernel", AVAILABLE)
def test_gradients_only_where_asked(kernel: str) -> None:
    layer = case("BatchNorm2d").layer(kernel=kernel)
    x = seeded_input((4, 6, 5, 3), torch.float64)
    dy = torch.randn_like(x)
    whole = torch.autograd.grad(layer(x.requires_grad_()), [x, layer.weight, layer.bias], dy)
    for wanted in ([0], [1], [2], [0, 2], [1, 2]):
        leaves = [x.detach().clone(), *(p.detach().clone() for p in (layer.weight, layer.bias))]
        for k in wanted:
            leaves[k].requires_grad_()
        y = evenorm.normalize(leaves[0], "[n] c [...]", leaves[1], leaves[2], affine="c", kernel=kernel)
        y.backward(dy)
        for k, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (k in wanted)
            if leaf.grad is not None:
                close(leaf.grad, array(whole[k]))
    with torch.no_grad():
        assert not layer(x).requires_grad


@pytest.mark.parametrize("kernel", AVAILABLE)
def test_backward_sees_an_input_changed_in_place(kernel: str) -> None:
    """What backward needs is saved: torch notices when it was overwritten."""
    layer = case("LayerNorm").layer(kernel=kernel)
    base = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    x = base * 1
    y = layer(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def close(actual: Tensor, expected: object) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected).reshape(actual.shape), rtol=1e-9, atol=1e-10)
