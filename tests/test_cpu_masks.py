"""Masks in the extension's verbs: every layout, every set of axes on which a mask may vary, in each instruction set.

What is hidden holds NaN and infinities, memory that a call takes is filled with NaN, and torch in float64 says what
comes out.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from evenorm import Affine, Epilogue, Pattern
from evenorm.epilogue import ACTIVATIONS
from evenorm.kernels import Finish, cpu, eager
from evenorm.kernels import mask as masks
from test_cpu_instruction_sets import DTYPES, PLACES, assert_near, isa, laid, operands, poisoned, wide

__all__ = ["isa", "poisoned"]

VARIES = {
    place: [axes for k in range(len(shape) + 1) for axes in combinations(range(len(shape)), k)]
    for place, (_, _, shape, _) in PLACES.items()
}
ALL = pytest.mark.parametrize(
    ("place", "axes"),
    [pytest.param(place, axes, id=f"{place}, {axes}") for place, sets in VARIES.items() for axes in sets],
)


def some(shape: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """A mask that varies on these axes, in stretches and singly; its first index hides all, its last nothing."""
    sizes = [n if k in axes else 1 for k, n in enumerate(shape)]
    mask = torch.rand(sizes) > (0.4 if axes else -1)
    if axes:
        last = mask.movedim(axes[-1], 0)
        last[: len(last) // 2] |= torch.rand(last[: len(last) // 2].shape) > 0.05
        first = mask.movedim(axes[0], 0)
        first[0], first[-1] = False, True
    return mask


def hide(values: Tensor, valid: Tensor, *held: float) -> Tensor:
    """The same, laid as it was, with one of these where nothing is valid."""
    odd = torch.tensor(held).to(values.dtype)[torch.randint(len(held), values.shape)]
    return torch.empty_like(values).copy_(torch.where(valid, values, odd))


def junk(values: Tensor, valid: Tensor) -> Tensor:
    """No number where nothing is valid."""
    return hide(values, valid, torch.nan, torch.inf)


def check(
    pattern: Pattern,
    x: Tensor,
    dy: Tensor,
    finish: Finish,
    mask: Tensor,
    by_output: bool = False,
    centered: bool = True,
) -> None:
    """Every verb and both fused pairs."""
    valid, dtype, binding = mask.expand(x.shape), x.dtype, pattern.bind(x.shape)
    count, terms = max(binding.count, x.shape[0]), x.numel()
    counts = masks.counts(mask, binding)
    x, dy = junk(x, valid), junk(dy, valid)
    if finish.residual is not None:
        finish = replace(finish, residual=junk(finish.residual, valid))
    y, mean, m2 = cpu.forward(x, pattern, centered, 1e-5, finish, mask)
    moments = eager.moments(x.double(), pattern, centered, mask)
    for pair in ((mean, m2), cpu.moments(x, pattern, centered, mask)):
        for found, expected, what in zip(pair, moments, ("mean", "M2"), strict=True):
            if centered or what == "M2":
                assert_near(found, expected, torch.float32, count, what)
            nothing = counts == 0 if centered or what == "M2" else counts >= 0
            assert not found[nothing].any()
    exact = (pattern, moments[0], (moments[1] / counts.clamp_min(1) + 1e-5).rsqrt())
    expected_y = eager.apply(x.double(), *exact, wide(finish), mask)
    for found in (y, cpu.apply(x, *exact, finish, mask)):
        assert_near(found, expected_y, dtype, count, "y")
        assert not found[~valid].any()
    if by_output:
        finish = replace(finish, residual=None, output=y)
    s1, s2, *parameters = eager.grad_sums(dy.double(), x.double(), *exact, wide(finish), mask)
    c1, c2 = (s1 / counts.clamp_min(1) if centered else None), s2 / counts.clamp_min(1)
    dx, dz = eager.grad_input(dy.double(), x.double(), *exact, wide(finish), c1, c2, mask)
    fused_dx, *fused, fused_dz = cpu.backward(dy, x, pattern, centered, 1e-5, *moments, finish, mask)
    sums = cpu.grad_sums(dy, x, *exact, finish, mask)
    for found, expected in zip((*sums, *fused), (s1, s2, *parameters, *parameters), strict=True):
        assert_near(found, expected, torch.float32, terms, "sums")
    for found_dx, found_dz in ((fused_dx, fused_dz), cpu.grad_input(dy, x, *exact, finish, c1, c2, mask)):
        assert_near(found_dx, dx, dtype, count, "dx")
        assert not found_dx[~valid].any()
        assert (found_dz is None) == (dz is None)
        if found_dz is not None:
            assert_near(found_dz, dz, dtype, 1, "residual's gradient")  # type: ignore[arg-type]
            assert not found_dz[~valid].any()


@ALL
def test_every_layout(isa: str, place: str, axes: tuple[int, ...]) -> None:
    """By the output and by slopes."""
    pattern, affine, given = operands(place, torch.float32)
    x, dy, residual = (given.pop(name) for name in ("x", "dy", "residual"))
    mask = some(tuple(x.shape), axes)
    for activation in ("relu", "silu"):
        finish = Finish(affine, Epilogue(activation), residual=residual, **given)
        check(pattern, x, dy, finish, mask, by_output=activation == "relu")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(isa: str, dtype: torch.dtype, place: str) -> None:
    """Centered and not, on what a batch of sequences has: a mask without the affine's axis."""
    pattern, affine, given = operands(place, dtype)
    x, dy, residual = (given.pop(name) for name in ("x", "dy", "residual"))
    own = pattern.bind(x.shape)
    affine_axes = {own.axes[own.names.index(name)] for name in affine.axes}
    mask = some(tuple(x.shape), tuple(k for k in range(x.dim()) if k not in affine_axes))
    for activation, centered in (("identity", True), ("silu", True), ("relu", False)):
        finish = Finish(affine, Epilogue(activation), residual=residual, **given)
        check(pattern, x, dy, finish, mask, centered=centered)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("place", ["short runs", "rows", "channels last", "columns by row", "one by one"])
def test_every_activation(isa: str, place: str, activation: str) -> None:
    pattern, affine, given = operands(place, torch.float32)
    x, dy, residual = (3 * given.pop(name) for name in ("x", "dy", "residual"))
    finish = Finish(affine, Epilogue(activation, 0.2), residual=residual, **given)
    check(pattern, x, dy, finish, some(tuple(x.shape), (0, x.dim() - 1)))


def results(pattern: Pattern, x: Tensor, dy: Tensor, finish: Finish, mask: Tensor) -> list[Tensor]:
    """All that the fused pairs give."""
    y, mean, m2 = cpu.forward(x, pattern, True, 1e-5, finish, mask)
    found = cpu.backward(dy, x, pattern, True, 1e-5, mean, m2, finish, mask)
    return [t for t in (y, mean, m2, *found) if t is not None]


@ALL
def test_what_is_hidden_changes_no_bit(isa: str, place: str, axes: tuple[int, ...]) -> None:
    pattern, affine, given = operands(place, torch.float32)
    x, dy, residual = (given.pop(name) for name in ("x", "dy", "residual"))
    mask = some(tuple(x.shape), axes)
    found = []
    for held in ((torch.nan, torch.inf), (0.0, 1e30)):
        finish = Finish(affine, Epilogue("gelu"), residual=hide(residual, mask, *held), **given)
        found.append(results(pattern, hide(x, mask, *held), hide(dy, mask, *held), finish, mask))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("place", ["rows", "wide rows", "tiny rows", "columns by row"])
def test_rows_that_are_there_have_the_same_bits(isa: str, place: str) -> None:
    """As without a mask, which hides whole rows here."""
    pattern, affine, given = operands(place, torch.float32)
    x, dy, residual = (given.pop(name) for name in ("x", "dy", "residual"))
    binding = pattern.bind(x.shape)
    mask = some(tuple(x.shape), tuple(binding.axes[i] for i in binding.kept))
    finish = Finish(affine, Epilogue("silu"), residual=residual, **given)
    everything = torch.ones_like(mask)
    y, mean, m2 = cpu.forward(x, pattern, True, 1e-5, finish)
    dx, *_ = cpu.backward(dy, x, pattern, True, 1e-5, mean, m2, finish)
    for valid in (mask, everything):
        found = results(pattern, hide(x, valid, torch.nan), dy, finish, valid)
        assert torch.equal(found[0], y.where(valid, 0))
        assert torch.equal(found[3], dx.where(valid, 0))


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@ALL
def test_nothing_valid(isa: str, place: str, axes: tuple[int, ...], eps: float) -> None:
    """All zeros, without eps too."""
    pattern, affine, given = operands(place, torch.float32)
    x, dy, residual = (torch.full_like(given.pop(name), torch.nan) for name in ("x", "dy", "residual"))
    mask = torch.zeros_like(some(tuple(x.shape), axes))
    finish = Finish(affine, Epilogue("silu"), residual=residual, **given)
    y, mean, m2 = cpu.forward(x, pattern, True, eps, finish, mask)
    endless = torch.full_like(m2, torch.inf)
    found = (y, mean, m2, *cpu.backward(dy, x, pattern, True, eps, mean, m2, finish, mask))
    sums = cpu.grad_sums(dy, x, pattern, mean, endless, finish, mask)
    for zeros in (*found, *sums, cpu.apply(x, pattern, mean, endless, finish, mask)):
        assert zeros is not None
        assert not zeros.any()


LARGE: dict[str, tuple[str, str, tuple[int, ...], tuple[int, ...] | None]] = {
    "runs": ("[n] c [l]", "c", (9, 5, 3000), None),
    "long rows": ("... [d]", "d", (4, 70_000), None),
    "rows": ("... [d]", "d", (600, 200), None),
    "columns": ("[n] c [l]", "c", (6, 70, 800), (0, 2, 1)),
    "groups": ("n (g=2 [c]) [l]", "g c", (3, 8, 9000), (0, 2, 1)),
    "one by one": ("n [c] l", "l", (30, 40, 70), None),
}


@pytest.mark.parametrize("place", LARGE)
def test_threads_give_the_same_bits(isa: str, place: str) -> None:
    """And a mean far off costs no accuracy."""
    text, names, shape, order = LARGE[place]
    pattern, affine = Pattern.parse(text), Affine(names)
    x, dy = laid(torch.randn(shape) + 1e4, order), laid(torch.randn(shape), order)
    mask = some(shape, tuple(range(len(shape))) if place == "one by one" else (0, len(shape) - 1))
    sizes = pattern.bind(shape).sizes(affine.axes)
    finish = Finish(affine, Epilogue("relu"), torch.rand(sizes), torch.rand(sizes))
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(results(pattern, x, dy, finish, mask))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    mean, m2 = eager.moments(x.double(), pattern, True, mask)
    deviation = (m2 / masks.counts(mask, pattern.bind(shape)).clamp_min(1)).sqrt()
    assert ((found[0][1] - mean).abs() <= 1e-6 * deviation).all()
    assert ((found[0][2] - m2).abs() <= 1e-5 * m2).all()
