"""A setting for the verbs on a GPU, and their results beside the plain operations'."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import evenorm
from evenorm import Affine, Epilogue, Pattern
from evenorm.kernels import Finish, eager, triton
from gpu import there

__all__ = ["EPS", "SETTINGS", "Setting", "assert_near", "assert_sums", "assert_verbs", "tensors"]

EPS = 1e-5


class Setting(NamedTuple):
    """A pattern, its affine, and a small shape."""

    pattern: str
    affine: str
    shape: tuple[int, ...]

    @property
    def parsed(self) -> Pattern:
        return Pattern.parse(self.pattern)

    def finish(self, activation: str = "identity", residual: bool = False, **options: Any) -> Finish:
        axes = Affine(self.affine, **options)
        size = self.parsed.bind(self.shape).sizes(axes.axes)
        weight, bias = (there(torch.randn(size) + 0.5) for _ in range(2))
        beside = there(torch.randn(self.shape)) if residual else None
        return Finish(axes, Epilogue(activation, 0.2), weight, bias, beside)


SETTINGS = {
    "batch": Setting("[n] c [...]", "c", (3, 4, 5)),
    "layer": Setting("... [d]", "d", (5, 6)),
    "group": Setting("n (g=2 [c]) [...]", "g c", (2, 4, 3)),
    "channels": Setting("n [c] h w", "c", (2, 4, 2, 3)),
    "instance": Setting("n c [...]", "c", (2, 3, 5)),
}


def assert_near(found: Any, expected: Any, what: str) -> None:
    """Within some float32 roundings of the largest value, of sums of at most 60."""
    if expected is None:
        assert found is None, what
        return
    wide = expected.double()
    bound = 64 * torch.finfo(torch.float32).eps * wide.abs().max()
    assert ((found.double() - wide).abs() <= bound).all(), f"{what}: {(found.double() - wide).abs().max()} > {bound}"


def assert_sums(setting: Setting, finish: Finish, x: Tensor, dy: Tensor) -> None:
    """Of each group and of each parameter; the parameters' also where dx comes with them."""
    pattern = setting.parsed
    mean, m2 = eager.moments(x, pattern, True)
    count = x.numel() / mean.numel()
    rstd = (m2 / count + EPS).rsqrt()
    expected = eager.grad_sums(dy, x, pattern, mean, rstd, finish)
    found = triton.grad_sums(dy, x, pattern, mean, rstd, finish)
    for name, mine, theirs in zip(("s1", "s2", "dγ", "dβ"), found, expected, strict=True):
        assert_near(mine, theirs, name)
    _, d_weight, d_bias, _ = triton.backward(dy, x, pattern, True, EPS, mean, m2, finish)
    assert_near(d_weight, expected[2], "backward: dγ")
    assert_near(d_bias, expected[3], "backward: dβ")


def assert_verbs(setting: Setting, finish: Finish, mask: Tensor | None, x: Tensor, dy: Tensor) -> None:
    """All verbs and both pairs."""
    pattern = setting.parsed
    mean, m2 = eager.moments(x, pattern, True, mask)
    for mine, theirs in zip(triton.moments(x, pattern, True, mask), (mean, m2), strict=True):
        assert_near(mine, theirs, "moments")
    rstd = (m2 / 10 + EPS).rsqrt()
    assert_near(
        triton.apply(x, pattern, mean, rstd, finish, mask), eager.apply(x, pattern, mean, rstd, finish, mask), "y"
    )
    for mine, theirs in zip(
        triton.forward(x, pattern, True, EPS, finish, mask),
        eager.forward(x, pattern, True, EPS, finish, mask),
        strict=True,
    ):
        assert_near(mine, theirs, "forward")
    back = (dy, x, pattern, mean, rstd, finish)
    sums = eager.grad_sums(*back, mask)
    for name, mine, theirs in zip(("s1", "s2", "dγ", "dβ"), triton.grad_sums(*back, mask), sums, strict=True):
        assert_near(mine, theirs, name)
    c1, c2 = (s / 10 for s in sums[:2])
    dx, dz = triton.grad_input(*back, c1, c2, mask)
    wanted_dx, wanted_dz = eager.grad_input(*back, c1, c2, mask)
    assert_near(dx, wanted_dx, "dx")
    assert_near(dz, wanted_dz, "dz")
    kernels = evenorm.kernels
    whole = (dy, x, pattern, True, EPS, mean, m2, finish)
    wanted = kernels.backward(eager, *whole, given=False, needs_input=True, mask=mask)
    found = kernels.backward(triton, *whole, given=False, needs_input=True, mask=mask)
    for name in wanted._fields:
        assert_near(getattr(found, name), getattr(wanted, name), f"backward: {name}")


def tensors(setting: Setting, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """An input and a cotangent, with NaN where nothing may be read."""
    x, dy = torch.randn(setting.shape) * 2 + 0.7, torch.randn(setting.shape)
    if mask is not None:
        x, dy = (t.masked_fill(~mask.cpu(), torch.nan) for t in (x, dy))
    return there(x), there(dy)
