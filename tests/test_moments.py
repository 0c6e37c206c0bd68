"""Moments: the value that merges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evenorm import Moments

# Values of very different size, and their parts, some of them empty.
VALUES = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), max_size=12)
PARTS = st.lists(VALUES, min_size=1, max_size=5).filter(lambda parts: any(parts))


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_same(actual: Moments, expected: Moments) -> None:
    """Up to the rounding of values of this size."""
    spread = float(expected.M2.abs().max() / max(int(expected.count), 1)) ** 0.5
    scale = float(expected.mean.abs().max()) + spread
    assert int(actual.count) == int(expected.count)
    torch.testing.assert_close(actual.mean, expected.mean, rtol=1e-13, atol=1e-13 * (scale + 1e6))
    torch.testing.assert_close(
        actual.M2, expected.M2, rtol=1e-11, atol=1e-13 * (1e6 + scale) ** 2 * max(int(expected.count), 1)
    )


@given(PARTS)
def test_merged_parts_are_the_whole(parts: list[list[float]]) -> None:
    """Exact for unequal counts, empty parts among them."""
    whole = [value for part in parts for value in part]
    merged = Moments.merged(Moments.of(tensor(part)) for part in parts)
    assert_same(merged, Moments.of(tensor(whole)))
    np.testing.assert_allclose(merged.mean.item(), np.mean(whole), rtol=1e-12, atol=1e-8)
    np.testing.assert_allclose(merged.variance.item(), np.var(whole), rtol=1e-10, atol=1e-3)


@given(VALUES, VALUES, VALUES)
def test_merge_is_associative_and_commutative(a: list[float], b: list[float], c: list[float]) -> None:
    one, two, three = (Moments.of(tensor(values)) for values in (a, b, c))
    assert_same(one.merge(two).merge(three), one.merge(two.merge(three)))
    assert_same(one.merge(two), two.merge(one))


@given(VALUES)
def test_an_empty_part_changes_nothing(values: list[float]) -> None:
    some, empty = Moments.of(tensor(values)), Moments.of(tensor([]))
    for merged in (some.merge(empty), empty.merge(some)):
        assert torch.equal(merged.mean, some.mean)
        assert torch.equal(merged.M2, some.M2)


def test_merge_is_exact_where_floats_are() -> None:
    """Small integers: no rounding at all, so any mistake in a weight shows."""
    merged = Moments.of(tensor([1, 1, 1])).merge(Moments.of(tensor([5])))
    assert (merged.count, merged.mean.item(), merged.M2.item()) == (4, 2.0, 12.0)


def test_a_far_mean_keeps_its_variance() -> None:
    """Where E[x²] − E[x]² has no digit left."""
    values = 1e9 + torch.arange(1000, dtype=torch.float64) % 7
    whole = Moments.merged(Moments.of(part) for part in values.split(13))
    torch.testing.assert_close(whole.variance, values.var(correction=0), rtol=1e-8, atol=0)


def test_groups_merge_with_counts_of_their_own() -> None:
    """A mask leaves every channel another count."""
    x = torch.randn(9, 3, dtype=torch.float64)
    rows = (2, 5, 9)
    counts = torch.tensor([float(k) for k in rows], dtype=torch.float64)
    first = [Moments.of(x[:k, c]) for c, k in enumerate(rows)]
    rest = [Moments.of(x[k:, c]) for c, k in enumerate(rows)]
    one, other = (
        Moments(count, torch.stack([m.mean for m in part]), torch.stack([m.M2 for m in part]))
        for count, part in ((counts, first), (9 - counts, rest))
    )
    merged = one.merge(other)
    torch.testing.assert_close(merged.mean, x.mean(0))
    torch.testing.assert_close(merged.variance, x.var(0, correction=0))
    torch.testing.assert_close(merged.unbiased, x.var(0))


def test_biased_and_unbiased() -> None:
    x = torch.randn(7, 4, dtype=torch.float64)
    moments = Moments.of(x)
    torch.testing.assert_close(moments.variance, x.var(0, correction=0))
    torch.testing.assert_close(moments.unbiased, x.var(0))
    torch.testing.assert_close(moments.rstd(0.1), (x.var(0, correction=0) + 0.1).rsqrt())
    # One value has no spread: 0, and not 0/0.
    assert Moments.of(x[:1]).unbiased.tolist() == [0, 0, 0, 0]


def test_values_of_any_dtype_are_taken_in_float64() -> None:
    x = torch.randn(100, 3).bfloat16()
    moments = Moments.of(x)
    assert moments.mean.dtype == moments.M2.dtype == torch.float64
    torch.testing.assert_close(moments.mean, x.double().mean(0))


def test_average_has_no_term_between_the_groups() -> None:
    """What an instance norm keeps of its samples: means averaged, unbiased variances averaged."""
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    mean, variance = Moments.of(x).averaged((0,))
    torch.testing.assert_close(mean, x.mean((0, 1)))
    torch.testing.assert_close(variance, x.var(0).mean(0))
    alone, spread = Moments.of(x).averaged(())
    torch.testing.assert_close(alone, x.mean(0))
    torch.testing.assert_close(spread, x.var(0))


def test_average_of_chunks_weighs_by_count() -> None:
    x = torch.randn(10, 3, dtype=torch.float64)
    chunks = x.split(4)
    parts = [Moments(len(c), c.mean(0)[None], (c - c.mean(0)).square().sum(0)[None]) for c in chunks]
    joined = Moments.concatenated(parts)
    assert joined.mean.shape == (3, 3)
    mean, variance = joined.averaged((0,))
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(variance, sum(len(c) / 10 * c.var(0) for c in chunks))


def test_nothing_has_no_moments() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        Moments.merged([])
