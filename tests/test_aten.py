"""Torch's own functions among the kernels: where they keep the contract, and what is said where they do not."""

from __future__ import annotations

import pytest
import torch

import evenorm
from evenorm import Affine, Epilogue, Pattern
from evenorm.kernels import Finish, KernelError, Signature, aten, candidates, reference

PATTERN = Pattern.parse("... [d]")
DOUBLE = torch.float64


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_the_reference(activation: str, offset: float) -> None:
    """Far from zero, with an epilogue; gradients too."""
    x = (torch.randn(3, 5, 7, dtype=DOUBLE) + 1e4).requires_grad_()
    weight, bias, dy = torch.randn(7).requires_grad_(), torch.randn(7).requires_grad_(), torch.randn(3, 5, 7).double()
    found = []
    for kernel in ("aten", "eager"):
        y = evenorm.normalize(
            x, "... [d]", weight, bias, affine=Affine("d", offset), activation=activation, kernel=kernel
        )
        found.append((y, *torch.autograd.grad(y, (x, weight, bias), dy)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    mean, m2 = aten.forward(x.detach(), PATTERN, True, 1e-5, Finish(Affine(), Epilogue()))[1:]
    for one, exact in zip((mean, m2), reference.moments(x.detach(), PATTERN), strict=True):
        torch.testing.assert_close(one, torch.from_numpy(exact), rtol=1e-9, atol=0)


def test_it_stands_between_the_others_and_rows_do_not_count() -> None:
    for rows in (1, 40_000):
        answers = candidates(Signature.of(torch.ones(rows, 8, dtype=DOUBLE)), PATTERN, Affine("d"))
        assert [a.name for a in answers if a.name != "triton"] == ["cpu", "aten", "eager"]
        assert answers[[a.name for a in answers].index("aten")].reason is None


DECLINES = {
    "float32": (torch.ones(4, 8), "... [d]", None, "it keeps mean and variance in float32, not in float64"),
    "batch norm": (torch.ones(4, 8, dtype=DOUBLE), "[n] c", None, "on any number of threads"),
    "gaps": (torch.ones(4, 8, dtype=DOUBLE)[:, ::2], "... [d]", None, "has gaps"),
    "mask": (torch.ones(4, 8, dtype=DOUBLE), "... [d]", torch.ones(4, 1, dtype=torch.bool), "no mask"),
}


@pytest.mark.parametrize(("x", "pattern", "mask", "words"), DECLINES.values(), ids=DECLINES)
def test_where_it_would_break_the_contract(
    x: torch.Tensor, pattern: str, mask: torch.Tensor | None, words: str
) -> None:
    with pytest.raises(KernelError, match="'aten' cannot take this call.*" + words):
        evenorm.normalize(x, pattern, mask=mask, kernel="aten")


def test_a_row_alone_has_the_same_bits() -> None:
    x = torch.randn(9, 1031, dtype=DOUBLE)
    y = evenorm.normalize(x, "... [d]", kernel="aten")
    assert torch.equal(evenorm.normalize(x[4:5], "... [d]", kernel="aten"), y[4:5])


def test_a_mean_far_off_is_why_float32_is_left_out() -> None:
    """Torch's layer norm, where ours is exact to 1e-5 (docs/numerics.md)."""
    x = (torch.randn(64, 256, dtype=DOUBLE) + 1e4).float()
    exact = torch.nn.functional.layer_norm(x.double(), (256,))
    assert (torch.nn.functional.layer_norm(x, (256,)) - exact).abs().max() > 1e-4
    assert (evenorm.normalize(x, "... [d]") - exact).abs().max() < 1e-5
