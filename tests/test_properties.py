"""What must hold whatever the numbers are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import evenorm
from cases import CASES, Case
from evenorm import Moments, Pattern, normalize
from kernels_here import AVAILABLE
from properties import seeded_input

KERNELS = pytest.mark.parametrize("kernel", AVAILABLE)
SEEDS = st.integers(0, 2**31)
# Patterns of every kind for images of 4 axes with 6 channels.
PATTERNS = ["[n] c [...]", "n c [...]", "n (g=2 [c]) [...]", "n [c] h w", "... [d]", "(k=2 [n]) c [...]", "[...]"]


def images(seed: int) -> Tensor:
    return seeded_input((4, 6, 5, 3), torch.float64, seed)


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol)


@KERNELS
@pytest.mark.parametrize("pattern", PATTERNS)
@given(SEEDS, st.floats(-100, 100), st.floats(0.01, 100))
def test_shift_and_scale_change_nothing(pattern: str, kernel: str, seed: int, shift: float, scale: float) -> None:
    """y(a·x + b) = y(x) for a > 0, where eps is 0; and −y(x) for −x."""
    x = images(seed)
    y = normalize(x, pattern, eps=0.0, kernel=kernel)
    close(normalize(scale * x + shift, pattern, eps=0.0, kernel=kernel), y, 1e-8)
    close(normalize(-x, pattern, eps=0.0, kernel=kernel), -y)


@KERNELS
@given(SEEDS, st.floats(0.01, 100))
def test_not_centered_a_scale_changes_nothing_and_a_shift_does(kernel: str, seed: int, scale: float) -> None:
    x = images(seed)
    y = normalize(x, "... [d]", eps=0.0, centered=False, kernel=kernel)
    close(normalize(scale * x, "... [d]", eps=0.0, centered=False, kernel=kernel), y)
    assert not torch.allclose(normalize(x + 10, "... [d]", eps=0.0, centered=False, kernel=kernel), y)


@KERNELS
@pytest.mark.parametrize("pattern", PATTERNS)
@given(SEEDS)
def test_mean_is_0_and_variance_is_1(pattern: str, kernel: str, seed: int) -> None:
    y = normalize(images(seed), pattern, eps=0.0, kernel=kernel)
    binding = Pattern.parse(pattern).bind(y.shape)
    groups = y.reshape(binding.shape)
    close(groups.mean(binding.reduced), torch.zeros(binding.statistics_shape).double())
    close(groups.var(binding.reduced, correction=0), torch.ones(binding.statistics_shape).double())


@KERNELS
@pytest.mark.parametrize("pattern", PATTERNS)
@given(SEEDS)
def test_gradient_is_orthogonal_to_what_changes_nothing(pattern: str, kernel: str, seed: int) -> None:
    """A shift and a scale change nothing, so dx sums to 0 and is orthogonal to x̂ in every group."""
    x = images(seed).requires_grad_()
    y = normalize(x, pattern, eps=0.0, kernel=kernel)
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    binding = Pattern.parse(pattern).bind(y.shape)
    zeros = torch.zeros(binding.statistics_shape).double()
    close(dx.reshape(binding.shape).sum(binding.reduced), zeros)
    close((dx * y.detach()).reshape(binding.shape).sum(binding.reduced), zeros)


@KERNELS
@given(SEEDS, st.permutations(range(4)), st.permutations(range(5)))
def test_permuting_shared_axes_changes_nothing(kernel: str, seed: int, rows: list[int], columns: list[int]) -> None:
    """Which sample and which pixel a value stands at does not matter to batch norm."""
    x = images(seed)
    y = normalize(x, "[n] c [...]", kernel=kernel)
    permuted = normalize(x[rows][:, :, columns], "[n] c [...]", kernel=kernel)
    close(permuted, y[rows][:, :, columns])
    # Nor the channel to layer norm over all of a sample, nor one of them within a group.
    order = [*columns, 5]
    close(normalize(x[:, order], "n [c] [...]", kernel=kernel), normalize(x, "n [c] [...]", kernel=kernel)[:, order])


@KERNELS
@given(SEEDS, st.permutations(range(4)))
def test_permuting_kept_axes_permutes_the_result(kernel: str, seed: int, rows: list[int]) -> None:
    x = images(seed)
    for pattern in PATTERNS[1:5]:
        y = normalize(x, pattern, kernel=kernel)
        close(normalize(x[rows], pattern, kernel=kernel), y[rows], 0.0)


@KERNELS
@given(SEEDS)
@settings(max_examples=10)
def test_families_meet(kernel: str, seed: int) -> None:
    """One group is layer norm over (C, H, W); a group per channel is instance norm; one chunk is batch norm."""
    x, dy = images(seed), torch.randn(4, 6, 5, 3, dtype=torch.float64)
    ghost, batch = evenorm.GhostBatchNorm2d(6, 4).double(), evenorm.BatchNorm2d(6).double()
    pairs = [
        (evenorm.GroupNorm(1, 6, affine=False), evenorm.LayerNorm([6, 5, 3], elementwise_affine=False)),
        (evenorm.GroupNorm(6, 6), evenorm.InstanceNorm2d(6, affine=True)),
        (ghost, batch),
        (evenorm.GhostBatchNorm2d(6, 99), evenorm.BatchNorm2d(6)),
        (evenorm.GhostBatchNorm2d(6, 1), evenorm.InstanceNorm2d(6)),
        (evenorm.LayerNorm2d(6), evenorm.Norm("n [c] h w", c=6, eps=1e-6)),
        (evenorm.BatchNorm2d(6), evenorm.Norm("[n] c [...]", c=6)),
    ]
    for one, other in pairs:
        results = []
        for layer in (one, other):
            layer.kernel = kernel
            leaf = x.clone().requires_grad_()
            y = layer.double()(leaf)
            results.append((y, torch.autograd.grad(y, leaf, dy)[0]))
        for mine, theirs in zip(*results, strict=True):
            close(mine, theirs)
    close(ghost.running_mean, batch.running_mean)  # type: ignore[arg-type]
    close(ghost.running_var, batch.running_var)  # type: ignore[arg-type]


@KERNELS
def test_layer_norm_2d_is_layer_norm_of_channels_last(kernel: str) -> None:
    x = images(0)
    layer = evenorm.LayerNorm2d(6).double()
    layer.kernel = kernel
    twin = torch.nn.LayerNorm(6, eps=1e-6).double()
    close(layer(x), twin(x.movedim(1, -1)).movedim(-1, 1))
    rms = evenorm.RMSNorm2d(6).double()
    rms.kernel = kernel
    close(rms(x), torch.nn.RMSNorm(6).double()(x.movedim(1, -1)).movedim(-1, 1))


WITHOUT_HISTORY = [c for c in CASES if c.make().history is None]


@KERNELS
@pytest.mark.parametrize("case", WITHOUT_HISTORY, ids=str)
def test_without_a_history_training_and_evaluation_are_one(case: Case, kernel: str) -> None:
    layer = case.layer(kernel=kernel if case.fused else None)
    if case.chunk:
        return
    x, dy = seeded_input(case.shape, torch.float64), torch.randn(case.shape, dtype=torch.float64)
    options = case.options(case.shape)
    results = []
    for training in (True, False):
        leaf = x.clone().requires_grad_()
        y = layer.train(training)(leaf, **options)
        results.append((y, torch.autograd.grad(y, leaf, dy)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@KERNELS
def test_ghost_is_batch_norm_of_each_chunk_and_ignores_them_in_evaluation(kernel: str) -> None:
    ghost, batch = evenorm.GhostBatchNorm1d(6, 4).double(), evenorm.BatchNorm1d(6).double()
    ghost.kernel = batch.kernel = kernel
    x = torch.randn(10, 6, dtype=torch.float64)
    close(ghost(x), torch.cat([batch(chunk) for chunk in x.split(4)]))
    batch.load_state_dict(ghost.state_dict())
    close(ghost.eval()(x), batch.eval()(x))
    close(ghost(x[:1]), batch(x[:1]))


@KERNELS
@given(SEEDS, st.integers(1, 3))
def test_moments_of_a_window_are_those_of_one_big_batch(kernel: str, seed: int, cut: int) -> None:
    """Merged over micro-batches, the statistics are those of the whole."""
    x = images(seed)
    whole = Moments.merged(Moments.of(part.movedim(1, -1).reshape(-1, 6)) for part in x.split([cut, 4 - cut]))
    y = (x - whole.mean[:, None, None]) * whole.rstd(1e-5)[:, None, None]
    close(normalize(x, "[n] c [...]", kernel=kernel), y)


@KERNELS
def test_affine_is_applied_after(kernel: str) -> None:
    x, weight, bias = images(0), torch.randn(6).double(), torch.randn(6).double()
    wide = weight[:, None, None], bias[:, None, None]
    for pattern in ("[n] c [...]", "n c [...]", "n [c] h w"):
        plain = normalize(x, pattern, kernel=kernel)
        close(normalize(x, pattern, weight, bias, affine="c", kernel=kernel), plain * wide[0] + wide[1])
        close(normalize(x, pattern, weight, affine="c", kernel=kernel), plain * wide[0])
        close(normalize(x, pattern, None, bias, affine="c", kernel=kernel), plain + wide[1])
