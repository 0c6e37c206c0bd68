"""The oracle itself: against autograd of the plain formula, and its two backwards against each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from evenorm import Affine, Pattern
from evenorm.kernels import reference


class Formula(NamedTuple):
    """A pattern, and the same said in torch: over which axes of the split tensor, and how γ broadcasts."""

    pattern: str
    affine: str
    shape: tuple[int, ...]
    split: tuple[int, ...]
    reduced: tuple[int, ...]
    wide: tuple[int, ...]


FORMULAS = [
    Formula("[n] c [...]", "c", (4, 6, 5), (4, 6, 5), (0, 2), (6, 1)),
    Formula("n c [...]", "c", (4, 6, 5), (4, 6, 5), (2,), (6, 1)),
    Formula("... [d]", "d", (3, 4, 6), (3, 4, 6), (2,), (6,)),
    Formula("n (g=2 [c]) [...]", "g c", (4, 6, 5), (4, 2, 3, 5), (2, 3), (2, 3, 1)),
    Formula("n [c] h w", "c", (4, 6, 5, 3), (4, 6, 5, 3), (1,), (6, 1, 1)),
    Formula("(k=2 [n]) c", "c", (4, 6), (2, 2, 6), (1,), (6,)),
    # The affine against the order of the pattern.
    Formula("n [c] [h] w", "h c", (2, 3, 4, 5), (2, 3, 4, 5), (1, 2), (4, 3)),
]
ALL = pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.pattern)


def numbers(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


class Plain:
    """The formula in torch, longhand, with every intermediate value kept for its gradient."""

    def __init__(self, formula: Formula, eps: float = 1e-3, centered: bool = True) -> None:
        self.pattern, self.affine, self.eps = Pattern.parse(formula.pattern), Affine(formula.affine), eps
        sizes = self.pattern.bind(formula.shape).sizes(self.affine.axes)
        self.x, self.dy = numbers(formula.shape).requires_grad_(), numbers(formula.shape)
        self.weight, self.bias = numbers(sizes).requires_grad_(), numbers(sizes).requires_grad_()
        x = self.x.reshape(formula.split)
        self.mean = x.mean(formula.reduced, keepdim=True) if centered else numbers((1,)) * 0
        self.variance = (x - self.mean).square().mean(formula.reduced, keepdim=True)
        self.x_hat = (x - self.mean) / (self.variance + eps).sqrt()
        gamma, beta = (self.broadcast(p.reshape(formula.wide)) for p in (self.weight, self.bias))
        self.y = (gamma * self.x_hat + beta).reshape(formula.shape)

    def broadcast(self, parameter: Tensor) -> Tensor:
        return parameter.T[:, :, None] if self.affine.axes == ("h", "c") else parameter

    def gradient(self, of: Tensor) -> Any:
        (found,) = torch.autograd.grad(self.y, of, self.dy, retain_graph=True)
        return found.numpy()


@ALL
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "not centered"])
def test_forward_and_backward(formula: Formula, centered: bool) -> None:
    plain = Plain(formula, centered=centered)
    x, weight, bias = (t.detach() for t in (plain.x, plain.weight, plain.bias))
    arguments: dict[str, Any] = {"affine": plain.affine, "eps": plain.eps, "centered": centered}
    y = reference.forward(x, plain.pattern, weight, bias, **arguments)
    np.testing.assert_allclose(y, plain.y.detach(), rtol=1e-12, atol=1e-12)
    found = reference.backward(plain.dy, x, plain.pattern, weight, bias, **arguments)
    for gradient, of in zip(found, (plain.x, plain.weight, plain.bias), strict=True):
        assert gradient is not None
        np.testing.assert_allclose(gradient, plain.gradient(of), rtol=1e-10, atol=1e-11)


@ALL
def test_the_five_gradients_term_by_term(formula: Formula) -> None:
    """∂ℓ/∂x̂, ∂ℓ/∂σ², ∂ℓ/∂μ, ∂ℓ/∂γ, ∂ℓ/∂β, and ∂ℓ/∂x that they add up to."""
    plain = Plain(formula)
    x, weight = plain.x.detach(), plain.weight.detach()
    found = reference.five_gradients(plain.dy, x, plain.pattern, weight, affine=plain.affine, eps=plain.eps)
    wanted = {
        "x_hat": plain.x_hat,
        "variance": plain.variance,
        "mean": plain.mean,
        "weight": plain.weight,
        "bias": plain.bias,
        "x": plain.x,
    }
    assert found.keys() == wanted.keys()
    for name, of in wanted.items():
        gradient = plain.gradient(of)
        mine = found[name].reshape(gradient.shape)
        np.testing.assert_allclose(mine, gradient, rtol=1e-9, atol=1e-10, err_msg=name)


@ALL
def test_the_two_backwards_are_one(formula: Formula) -> None:
    plain = Plain(formula)
    arguments = (plain.dy, plain.x.detach(), plain.pattern, plain.weight.detach())
    terms = reference.five_gradients(*arguments, affine=plain.affine)
    fused = reference.backward(*arguments, plain.bias.detach(), affine=plain.affine)
    np.testing.assert_allclose(terms["x"], fused.x, rtol=1e-10, atol=1e-12)
    assert fused.weight is not None
    assert fused.bias is not None
    np.testing.assert_allclose(terms["weight"], fused.weight, rtol=1e-12)
    np.testing.assert_allclose(terms["bias"], fused.bias, rtol=1e-12)


@ALL
def test_given_statistics_carry_no_gradient(formula: Formula) -> None:
    plain = Plain(formula)
    mean, variance = plain.mean.detach() + 0.5, plain.variance.detach() * 2
    x = plain.x.detach().requires_grad_()
    split = x.reshape(plain.x_hat.shape)
    y = ((split - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    (dx,) = torch.autograd.grad(y, x, plain.dy)
    given = (mean.numpy(), variance.numpy())
    found = reference.forward(x.detach(), plain.pattern, given=given)
    np.testing.assert_allclose(found, y.detach(), rtol=1e-12)
    gradient = reference.backward(plain.dy, x.detach(), plain.pattern, given=given)
    np.testing.assert_allclose(gradient.x, dx, rtol=1e-12)
    assert gradient.weight is None
    assert gradient.bias is None


def test_offset_scales_and_has_no_gradient_of_its_own() -> None:
    pattern, x, dy = Pattern.parse("n [d]"), numbers((3, 4)), numbers((3, 4))
    weight = numbers((4,))
    moved = Affine("d", offset=1.0)
    mine = reference.forward(x, pattern, weight, affine=moved)
    np.testing.assert_allclose(mine, reference.forward(x, pattern, weight + 1, affine=Affine("d")), rtol=1e-12)
    found = reference.backward(dy, x, pattern, weight, affine=moved)
    plain = reference.backward(dy, x, pattern, weight + 1, affine=Affine("d"))
    np.testing.assert_allclose(found.x, plain.x, rtol=1e-12)
    assert found.weight is not None
    assert plain.weight is not None
    np.testing.assert_allclose(found.weight, plain.weight, rtol=1e-12)


@ALL
def test_a_table_lays_and_lifts(formula: Formula) -> None:
    plain = Plain(formula)
    table = reference.Table(plain.pattern, tuple(plain.x.shape))
    x = plain.x.detach().numpy()
    assert table.lay(x).shape == (table.rows, table.binding.count)
    np.testing.assert_array_equal(table.lift(table.lay(x)), x)
    # Gathering is the transposed of spreading.
    weight, other = plain.weight.detach().numpy(), table.lay(x)
    left = (table.spread(weight, plain.affine) * other).sum()
    right = (weight * table.gather(other, plain.affine, weight)).sum()
    np.testing.assert_allclose(left, right, rtol=1e-12)


def test_moments_of_far_values_are_exact() -> None:
    """The second pass removes the rounding of the first."""
    x = np.full((1, 1000), 1e15 + 1)
    x[0, ::2] -= 2
    mean, m2 = reference.moments(x, Pattern.parse("n [d]"))
    assert mean.item() == 1e15
    assert m2.item() == 1000
