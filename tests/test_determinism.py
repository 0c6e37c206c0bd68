"""The same bits: for any number of threads, whatever stands beside a row, wherever memory begins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import evenorm
from cases import CASES, Case, case
from evenorm.layers import Layer
from kernels_here import AVAILABLE, WITHOUT_EXTENSION
from layouts import lay
from properties import seeded_input, step

BEFORE = evenorm.Epilogue("silu", residual="before")
FUSED = pytest.mark.skipif(WITHOUT_EXTENSION, reason="the C++ extension is not built")
KERNELS = pytest.mark.parametrize("kernel", AVAILABLE)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_same_bits(one: object, other: object) -> None:
    """Of tensors, of several, or of none."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        for mine, theirs in zip(one, other, strict=True):
            assert_same_bits(mine, theirs)
    elif isinstance(one, Tensor) and isinstance(other, Tensor):
        assert torch.equal(one, other), f"{(one != other).sum()} of {one.numel()} differ"
    else:
        assert one is None
        assert other is None


# Enough values for more than one thread, in every family, along every level of a plan.
LARGE = {
    "BatchNorm2d": (16, 6, 61, 59),
    "BatchNorm1d": (40_000, 6),
    "GhostBatchNorm2d": (9, 6, 61, 59),
    "InstanceNorm2d_affine": (16, 6, 61, 59),
    "GroupNorm_2": (16, 6, 61, 59),
    "GroupNorm_1": (2, 6, 161, 159),
    "LayerNorm": (33_000, 12),
    "LayerNorm_wide": (67, 4099),
    "RMSNorm_wide": (67, 4099),
    "LayerNorm2d": (16, 6, 61, 59),
    "RMSNorm_offset": (33_000, 12),
    "BatchNorm2d_given": (16, 6, 61, 59),
    "Norm_heads": (16, 500, 3, 8),
    "Norm_everything": (400, 1001),
}


@FUSED
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", LARGE)
def test_threads_do_not_change_a_bit(name: str, training: bool, layout: str, threads: None) -> None:
    """Output, gradients and history."""
    shape = LARGE[name]
    x = lay(seeded_input(shape, torch.float32), layout, case(name).pattern)
    dy = torch.randn(shape)
    options = case(name).options(shape, torch.float32)
    first = case(name).layer(torch.float32, "cpu").train(training)
    state = {k: v.clone() for k, v in first.state_dict().items()}
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        layer = case(name).layer(torch.float32, "cpu").train(training)
        layer.load_state_dict(state)
        results.append(step(layer, x, dy, options))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


SUMS: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "rows": (evenorm.LayerNorm(12, activation=BEFORE), (33_000, 12)),
    "wide rows": (evenorm.RMSNorm(4099, activation=BEFORE), (67, 4099)),
    "runs": (evenorm.GroupNorm(2, 6, activation=BEFORE), (16, 6, 61, 59)),
    "few long runs": (evenorm.GroupNorm(1, 6, activation=BEFORE), (2, 6, 161, 159)),
    "columns": (evenorm.BatchNorm1d(6, track_running_stats=False, activation=BEFORE), (40_000, 6)),
}


@FUSED
@pytest.mark.parametrize("name", SUMS)
def test_threads_do_not_change_a_bit_of_a_sum(name: str, threads: None) -> None:
    layer, shape = SUMS[name]
    x, residual, dy, d_total = (torch.randn(shape) for _ in range(4))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        leaves = [x.clone().requires_grad_(), residual.clone().requires_grad_(), *layer.parameters()]
        outputs = layer(leaves[0], residual=leaves[1])
        results.append((*outputs, *torch.autograd.grad(outputs, leaves, (dy, d_total))))
    assert torch.equal(results[0][1], x + residual)
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@FUSED
@DTYPES
@pytest.mark.parametrize("width", [7, 100, 1031, 20_011])
def test_a_row_of_a_sum_does_not_depend_on_its_neighbors(width: int, dtype: torch.dtype) -> None:
    layer = evenorm.LayerNorm(width, activation=BEFORE).to(dtype)
    x, residual = (torch.randn(19, width).to(dtype) for _ in range(2))
    whole = layer(x, residual=residual)
    for rows in (slice(0, 1), slice(4, 9), slice(18, 19)):
        assert_same_bits(layer(x[rows], residual=residual[rows]), tuple(t[rows] for t in whole))


@KERNELS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_call_repeats_itself(case: Case, kernel: str) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        layer = case.layer(torch.float32, kernel if case.fused else None)
        x, dy = seeded_input(case.shapes[-1], torch.float32), torch.randn(case.shapes[-1])
        results.append(step(layer, x, dy, case.options(case.shapes[-1], torch.float32)))
    assert_same_bits(*results)


# Widths on both sides of a vector and of a chunk.
WIDTHS = (1, 7, 31, 100, 1031, 20_011)


@KERNELS
@DTYPES
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", [evenorm.LayerNorm, evenorm.RMSNorm], ids=lambda make: make.__name__)
def test_a_row_does_not_depend_on_its_neighbors(
    make: type[evenorm.LayerNorm], width: int, dtype: torch.dtype, kernel: str
) -> None:
    """Nor on how many there are, one of them alone included; output and gradient of the input."""
    layer = make(width).to(dtype)
    layer.kernel = kernel
    with torch.no_grad():
        layer.weight.normal_()
    x, dy = seeded_input((19, width), dtype), torch.randn(19, width).to(dtype)
    whole = step(layer, x, dy, {})
    # Neighbors that are not finite, larger, or as many as to take another path.
    strange = x.clone()
    strange[1:] = torch.nan
    for rows, values in ((slice(0, 1), x), (slice(4, 9), x), (slice(18, 19), x), (slice(0, 1), strange)):
        part = step(layer, values[rows], dy[rows], {})
        assert_same_bits(part.y, whole.y[rows])
        assert whole.x is not None
        assert_same_bits(part.x, whole.x[rows])
    found = step(layer, strange, dy, {})
    assert_same_bits(found.y[:1], whole.y[:1])
    times = 2 + 20_000 // (19 * width)
    many = step(layer, x.repeat(times, 1), dy.repeat(times, 1), {})
    assert_same_bits(many.y[-19:], whole.y)
    # As rows of a sequence or without a batch.
    sequence = step(layer, x.reshape(1, 19, 1, width), dy.reshape(1, 19, 1, width), {})
    assert_same_bits(sequence.y.reshape(x.shape), whole.y)
    assert_same_bits(step(layer, x[0], dy[0], {}).y, whole.y[0])


@FUSED
@pytest.mark.parametrize("name", ["InstanceNorm2d_affine", "GroupNorm_2", "LayerNorm2d", "Norm_heads"])
def test_a_sample_does_not_depend_on_its_neighbors(name: str) -> None:
    layer = case(name).layer(torch.float32, "cpu")
    shape = (9, *case(name).shapes[-1][1:])
    x, dy = seeded_input(shape, torch.float32), torch.randn(shape)
    whole = step(layer, x, dy, {})
    for rows in (slice(0, 1), slice(3, 8)):
        part = step(layer, x[rows], dy[rows], {})
        assert whole.x is not None
        assert_same_bits((part.y, part.x), (whole.y[rows], whole.x[rows]))


@FUSED
@pytest.mark.parametrize("name", ["BatchNorm2d", "LayerNorm_wide", "GroupNorm_2", "RMSNorm", "BatchNorm1d"])
def test_where_memory_begins_does_not_matter(name: str) -> None:
    """A tensor that is not aligned to a vector gives the same bits."""
    shape = case(name).shapes[-1]
    layer = case(name).layer(torch.float32, "cpu").eval()
    x, dy = seeded_input(shape, torch.float32), torch.randn(shape)
    aligned = step(layer, x, dy, {})
    for offset in (1, 2, 3):
        room = torch.empty(x.numel() + offset)
        moved = room[offset:].view(shape).copy_(x)
        assert_same_bits(step(layer, moved, dy, {}), aligned)


@FUSED
def test_the_kernel_that_is_chosen_does_not_depend_on_the_number_of_rows() -> None:
    pattern, affine = evenorm.Pattern.parse("... [d]"), evenorm.Affine("d")
    chosen = {evenorm.kernels.choose(torch.ones(rows, 8), pattern, affine).name for rows in (1, 2, 1000)}
    assert len(chosen) == 1
