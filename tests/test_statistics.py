"""Where statistics come from: this batch, a running average, the whole past, a constant."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import evenorm
from evenorm import Batch, Cumulative, Frozen, History, Norm, Running, normalize
from evenorm.statistics import Statistics


def history(dtype: torch.dtype = torch.float64) -> History:
    return History(torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype), torch.tensor(0))


def batches(count: int) -> Tensor:
    return torch.randn(count, 8, 3, dtype=torch.float64) * 2 + 1


def observe(statistics: Statistics, kept: History, batch: Tensor, training: bool = True) -> Tensor:
    return normalize(batch, "[n] c", training=training, statistics=statistics, history=kept, history_axes="c")


@given(st.floats(0, 1))
def test_decay_is_the_other_convention(momentum: float) -> None:
    assert Running(decay=1 - momentum).momentum == pytest.approx(momentum, abs=1e-14)
    assert Running(decay=0.99) == Running(0.01)
    assert Running(decay=0.9) == Running(0.1)


def test_running_is_torchs_average() -> None:
    kept, twin = history(), nn.BatchNorm1d(3, momentum=0.3, affine=False).double()
    for batch in batches(4):
        observe(Running(0.3), kept, batch)
        twin(batch)
    torch.testing.assert_close(kept.mean, twin.running_mean)
    torch.testing.assert_close(kept.variance, twin.running_var)
    assert kept.updates is not None
    assert kept.updates.item() == 4


def test_cumulative_is_the_plain_average() -> None:
    kept = history()
    seen = batches(5)
    for batch in seen:
        observe(Cumulative("unbiased"), kept, batch)
    torch.testing.assert_close(kept.mean, seen.mean((0, 1)))
    torch.testing.assert_close(kept.variance, seen.var(1).mean(0))


def test_cumulative_needs_a_counter() -> None:
    kept = history()._replace(updates=None)
    with pytest.raises(ValueError, match=r"Cumulative: .*num_batches_tracked"):
        observe(Cumulative("unbiased"), kept, batches(1)[0])
    assert kept.mean.tolist() == [0, 0, 0]


def test_frozen_normalizes_with_the_history_and_never_moves() -> None:
    kept = History(torch.randn(3).double(), torch.rand(3).double() + 0.5, torch.tensor(7))
    before = [t.clone() for t in kept[:3] if t is not None]
    x = batches(1)[0]
    for training in (True, False):
        y = observe(Frozen(), kept, x, training)
        torch.testing.assert_close(y, (x - kept.mean) / (kept.variance + 1e-5).sqrt())
    assert all(torch.equal(a, b) for a, b in zip(before, kept[:3], strict=True) if b is not None)


def test_batch_ignores_the_history() -> None:
    kept, x = history(), batches(1)[0]
    y = observe(Batch(), kept, x, training=False)
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64))
    assert kept.mean.tolist() == [0, 0, 0]


def test_evaluation_reads_and_does_not_write() -> None:
    kept = history()
    for statistics in (Running(0.5), Cumulative()):
        x = batches(1)[0]
        torch.testing.assert_close(observe(statistics, kept, x, training=False), x / (1 + 1e-5) ** 0.5)
        assert kept.mean.tolist() == [0, 0, 0]


def test_a_history_in_half_is_blended_in_float64_and_rounded_once() -> None:
    """Not the new statistics first and the average again: among many channels some would round otherwise."""
    half = torch.bfloat16
    kept = History(torch.randn(500).to(half), torch.rand(500).to(half) + 1, torch.tensor(0))
    batch = torch.randn(8, 500)
    exact = torch.lerp(kept.variance.double(), batch.double().var(0), 0.5).to(half)
    observe(Running(0.5), kept, batch)
    assert torch.equal(kept.variance, exact)


def test_biased_normalizes_and_unbiased_is_stored() -> None:
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    kept = History(torch.zeros(1).double(), torch.zeros(1).double(), torch.tensor(0))
    y = normalize(x, "[n] c", eps=0.0, statistics=Running(1.0), history=kept, history_axes="c")
    assert y.tolist() == [[-1.0], [1.0]]
    assert kept.variance.item() == 2.0


def test_history_averages_over_the_kept_axes_it_does_not_lie_on() -> None:
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    layer = Norm("n c [l]", c=6, statistics=Running(1.0), affine=None).double()
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2)))
    torch.testing.assert_close(layer.running_var, x.var(2).mean(0))
    grouped = Norm("n (g [c]) [l]", g=2, c=3, statistics=Running(1.0), affine=None).double()
    grouped(x)
    split = x.reshape(4, 2, 15)
    torch.testing.assert_close(grouped.running_mean, split.mean((0, 2)))
    torch.testing.assert_close(grouped.running_var, split.var(2).mean(0))


def test_history_of_an_uncentered_norm_is_a_mean_square() -> None:
    x = torch.randn(64, 3, dtype=torch.float64) + 2
    layer = Norm("[n] c", c=3, centered=False, statistics=Running(1.0), affine=None, eps=0.0).double()
    layer(x)
    assert layer.running_mean is not None
    assert layer.running_mean.tolist() == [0, 0, 0]
    # Evaluated on the same data it is nearly the same function.
    torch.testing.assert_close(layer.eval()(x), layer.train()(x), rtol=0.01, atol=0)


def test_momentum_none_and_zero_and_one() -> None:
    seen = batches(3)
    for momentum, mean in ((0.0, torch.zeros(3)), (1.0, seen[-1].mean(0)), (None, seen.mean((0, 1)))):
        layer = evenorm.BatchNorm1d(3, momentum=momentum).double()
        for batch in seen:
            layer(batch)
        torch.testing.assert_close(layer.running_mean, mean.double())


def test_no_gradient_flows_into_the_history() -> None:
    layer = evenorm.BatchNorm1d(3)
    x = torch.randn(8, 3, requires_grad=True)
    layer(x).sum().backward()
    assert layer.running_mean is not None
    assert not layer.running_mean.requires_grad
    with torch.inference_mode():
        layer(x.detach())
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.item() == 2


def test_sentences() -> None:
    assert "momentum 0.1" in str(Running(0.1))
    assert {str(s) for s in (Batch(), Frozen())} == {"this batch", "frozen"}
    assert repr(Running(decay=0.75)) == "Running(momentum=0.25)"
