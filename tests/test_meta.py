"""The tests, tested: kernels with a planted fault are caught by the very functions that every layer passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import case
from evenorm import Pattern, kernels
from evenorm.kernels import eager
from properties import agrees_with_reference

FLOATS = torch.float64, torch.float32, torch.bfloat16


def wrong_axis(verbs: SimpleNamespace) -> None:
    """Normalizes over the batch and the first axis after the channels, and forgets the last."""
    right = verbs.forward

    def forward(x: Tensor, pattern: Pattern, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        _, mean, m2 = right(x, pattern, *rest)
        y, *_ = right(x, Pattern.parse("[n] c [h] w"), *rest)
        return y, mean, m2

    verbs.forward = forward


def missing_term(verbs: SimpleNamespace) -> None:
    """Forgets that the variance depends on x."""
    right = verbs.grad_input

    def grad_input(*arguments: Any) -> tuple[Tensor, Tensor | None]:
        *operands, c1, _, mask = arguments
        return right(*operands, c1, None, mask)

    verbs.grad_input = grad_input


def missing_mean_term(verbs: SimpleNamespace) -> None:
    """Forgets that the mean depends on x."""
    right = verbs.grad_input

    def grad_input(*arguments: Any) -> tuple[Tensor, Tensor | None]:
        *operands, _, c2, mask = arguments
        return right(*operands, None, c2, mask)

    verbs.grad_input = grad_input


def unbiased_where_biased(verbs: SimpleNamespace) -> None:
    """Normalizes by M2 / (n − 1)."""
    right = verbs.forward

    def forward(x: Tensor, pattern: Pattern, centered: bool, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        _, mean, m2 = right(x, pattern, centered, *rest)
        eps, finish, _ = rest
        rstd = (m2 / (pattern.bind(x.shape).count - 1) + eps).rsqrt()
        return verbs.apply(x, pattern, mean, rstd, finish), mean, m2

    verbs.forward = forward


def small_m2(verbs: SimpleNamespace) -> None:
    """Hands the history and the backward pass an M2 that is too small by (n − 1)/n."""
    right = verbs.forward

    def forward(x: Tensor, pattern: Pattern, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, m2 = right(x, pattern, *rest)
        count = pattern.bind(x.shape).count
        return y, mean, m2 * ((count - 1) / count)

    verbs.forward = forward


def half_statistics(verbs: SimpleNamespace) -> None:
    """Rounds the mean to the input's dtype before it is subtracted."""
    right = verbs.forward

    def forward(x: Tensor, pattern: Pattern, centered: bool, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        _, mean, m2 = right(x, pattern, centered, *rest)
        eps, finish, _ = rest
        rstd = (m2 / pattern.bind(x.shape).count + eps).rsqrt()
        rounded = (mean.bfloat16().double(), rstd.bfloat16().double())
        return verbs.apply(x, pattern, *rounded, finish), mean, m2

    verbs.forward = forward


def affine_on_the_wrong_axis(verbs: SimpleNamespace) -> None:
    """Sums the gradient of γ in another order of the channels."""
    right = verbs.grad_sums

    def grad_sums(*arguments: Any) -> tuple[Tensor, ...]:
        s1, s2, d_weight, d_bias = right(*arguments)
        return s1, s2, d_weight.flip(0), d_bias

    verbs.grad_sums = grad_sums


FAULTS: dict[str, tuple[Callable[[SimpleNamespace], None], str]] = {
    "wrong axis": (wrong_axis, "y: "),
    "missing term in dx": (missing_term, "dx: "),
    "missing term of the mean in dx": (missing_mean_term, "dx: "),
    "unbiased where biased": (unbiased_where_biased, "y: "),
    "M2 too small": (small_m2, "dx: "),
    "statistics in half": (half_statistics, "y: "),
    "channels in the wrong order": (affine_on_the_wrong_axis, "dγ: "),
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A kernel like the eager one, asked for by the name 'planted'."""
    names = ("declines", "moments", "apply", "forward", "grad_sums", "grad_input")
    verbs = SimpleNamespace(name="planted", **{name: getattr(eager, name) for name in names})
    # Which kernel a call gets is remembered.
    kernels.choice.cache_clear()
    monkeypatch.setattr(kernels, "KERNELS", (verbs, *kernels.KERNELS))
    yield verbs
    kernels.choice.cache_clear()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_sound_kernel_passes(planted: SimpleNamespace, dtype: torch.dtype) -> None:
    agrees_with_reference(case("BatchNorm2d"), "planted", dtype, training=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(planted: SimpleNamespace, fault: str, dtype: torch.dtype) -> None:
    plant, where = FAULTS[fault]
    plant(planted)
    with pytest.raises(AssertionError, match=f"BatchNorm2d contiguous .*{where}.* out of bounds"):
        agrees_with_reference(case("BatchNorm2d"), "planted", dtype, training=True)
