"""The state as a value: ensembles, meta-learning, compiled functions, gradients of a history."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

import evenorm
from evenorm import Accumulated, Cumulative, History, Norm, PerDomain, Renorm, Running, normalize
from evenorm.statistics import Statistics, Window

DOUBLE = torch.float64


def batch_norm(*settings: Any, **options: Any) -> Any:
    """With buffers that are there."""
    return evenorm.BatchNorm1d(*settings, **options)


def rows(count: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, dtype=DOUBLE) * 2 + 1


def stacked(state: History, members: int) -> History:
    """As many states, one upon the other."""
    return History(*(None if t is None else t.expand(members, *t.shape) for t in state[:5]))  # type: ignore[arg-type]


def observed(x: Tensor, state: History, statistics: Statistics | None = None) -> tuple[Tensor, History]:
    return normalize(x, "[n] c", statistics=statistics or Running(0.5), history_axes="c", state=state, training=True)


@pytest.mark.parametrize(
    "statistics", [Running(0.5), Cumulative(), Renorm(2.0, 1.0, schedule=None, of=Running(0.5))], ids=str
)
def test_state_is_a_value(statistics: Statistics) -> None:
    """y and state as the layer's, and nothing is written."""
    layer = Norm("[n] c", c=3, statistics=statistics, affine=None).double()
    state = History.fresh(3, dtype=DOUBLE)
    for _ in range(3):
        x, before = rows(), state.copied()
        y, after = observed(x, state, statistics)
        torch.testing.assert_close(y, layer(x))
        assert all(torch.equal(a, b) for a, b in zip(before[:5], state[:5], strict=True))  # type: ignore[arg-type]
        state = after
    torch.testing.assert_close(state.mean, layer.running_mean)
    torch.testing.assert_close(state.variance, layer.running_var)
    y, same = normalize(rows(), "[n] c", statistics=statistics, history_axes="c", state=state, training=False)
    assert same is state


def test_state_in_an_ensemble() -> None:
    """vmap over members, each with its own state and its own data; gradients through it."""
    x = torch.randn(4, 8, 3, dtype=DOUBLE)
    fresh = History.fresh(3, dtype=DOUBLE)
    states = stacked(fresh, 4)
    ys, after = vmap(observed)(x, states)
    for k in range(4):
        y, state = observed(x[k], fresh)
        torch.testing.assert_close(ys[k], y)
        torch.testing.assert_close(after.mean[k], state.mean)
    weights = torch.randn(8, 3, dtype=DOUBLE)

    def loss(x: Tensor, state: History) -> Tensor:
        y, _ = observed(x, state)
        return (y * weights).sum()

    found = vmap(grad(loss))(x, states)
    single = x[1].clone().requires_grad_()
    loss(single, fresh).backward()
    torch.testing.assert_close(found[1], single.grad)


def test_state_compiled() -> None:
    function = torch.compile(observed, fullgraph=True, backend="aot_eager")
    x, state = rows(), History.fresh(3, dtype=DOUBLE)
    y, after = function(x, state)
    expected, kept = observed(x, state)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(after.mean, kept.mean)
    assert after.updates is not None
    assert after.updates.item() == 1


def test_an_ensemble_of_layers() -> None:
    """functional_call under vmap moves the stacked buffers of each member."""
    members = [batch_norm(3).double() for _ in range(3)]
    apart = copy.deepcopy(members)
    parameters, buffers = stack_module_state(members)
    x = torch.randn(3, 8, 3, dtype=DOUBLE)
    base = members[0]
    ys = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)))(parameters, buffers, x)
    for k, member in enumerate(apart):
        torch.testing.assert_close(ys[k], member(x[k]))
        torch.testing.assert_close(buffers["running_mean"][k], member.running_mean)
    assert buffers["num_batches_tracked"].tolist() == [1, 1, 1]


def test_not_finite_under_compilation_and_vmap() -> None:
    """No warning there, but the same numbers."""
    layer = batch_norm(3)
    torch.compile(layer, fullgraph=True, backend="eager")(torch.full((4, 3), torch.nan))
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert layer.num_batches_skipped.item() == 1
    assert layer.num_batches_tracked.item() == 0
    x = torch.randn(2, 4, 3)
    x[1, 0, 0] = torch.nan
    states = stacked(History.fresh(3), 2)
    after = vmap(lambda x, state: observed(x, state)[1])(x, states)
    assert after.skipped is not None
    assert after.skipped.tolist() == [0, 1]
    assert after.mean[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(after.mean[0], x[0].mean(0) / 2)


def test_history_and_state_at_once() -> None:
    fresh = History.fresh(3)
    both: Any = {"history": fresh, "state": fresh}
    with pytest.raises(ValueError, match="and not both"):
        normalize(torch.randn(4, 3), "[n] c", history_axes="c", **both)


Pair = tuple[Tensor, Tensor]


def longhand(x: Tensor, past: Pair, training: bool) -> tuple[Tensor, Pair]:
    """Batch normalization and its average in torch's own operations; the average carries no gradient."""
    mean, variance = past
    if training:
        mean, variance = x.mean(0), x.var(0, correction=0)
        count = x.shape[0]
        new = (mean.detach(), (variance * count / (count - 1)).detach())
        past = (past[0].lerp(new[0], 0.5), past[1].lerp(new[1], 0.5))
    return (x - mean) / (variance + 1e-5).sqrt(), past


def ours(x: Tensor, past: Pair, training: bool) -> tuple[Tensor, Pair]:
    y, state = normalize(x, "[n] c", statistics=Running(0.5), history_axes="c", state=History(*past), training=training)
    return y, (state.mean, state.variance)


def test_meta_learning() -> None:
    """The gradient through two inner steps and an evaluation with the state they leave, for each of three tasks."""
    x, target = torch.randn(3, 3, 8, 4, dtype=DOUBLE), torch.randn(3, 3, 8, 2, dtype=DOUBLE)
    weight, past = torch.randn(4, 2, dtype=DOUBLE), (torch.zeros(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE))

    def outer(norm: Any, weight: Tensor, x: Tensor, target: Tensor) -> Tensor:
        def loss(weight: Tensor, k: int, state: Pair, training: bool) -> tuple[Tensor, Pair]:
            y, state = norm(x[k] @ weight, state, training)
            return (y - target[k]).square().mean(), state

        state = past
        for k in range(2):
            step, state = grad(loss, has_aux=True)(weight, k, state, True)
            weight = weight - 0.1 * step
        return loss(weight, 2, state, False)[0]

    found, expected = (
        vmap(grad(lambda w, x, t, norm=norm: outer(norm, w, x, t)), in_dims=(None, 0, 0))(weight, x, target)
        for norm in (ours, longhand)
    )
    assert found.abs().max() > 0.01
    torch.testing.assert_close(found, expected)


def masked(x: Tensor, mask: Tensor, state: History) -> tuple[Tensor, History]:
    return normalize(
        *(x, "[n] c [l]"), affine="c", statistics=Running(0.5), history_axes="c", state=state, mask=mask, training=True
    )


def test_masks_in_an_ensemble_and_compiled() -> None:
    x, masks = torch.randn(2, 4, 3, 5, dtype=DOUBLE), torch.rand(2, 4, 5) > 0.4
    masks[1] = False
    fresh = History.fresh(3, dtype=DOUBLE)
    alone = [masked(x[k], masks[k], fresh) for k in range(2)]
    ys, after = vmap(masked)(x, masks, stacked(fresh, 2))
    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    for k, (y, state) in enumerate(alone):
        torch.testing.assert_close(ys[k], y)
        torch.testing.assert_close(after.mean[k], state.mean)
        torch.testing.assert_close(after.variance[k], state.variance)
        found, kept = compiled(x[k], masks[k], fresh)
        torch.testing.assert_close(found, y)
        torch.testing.assert_close(kept.variance, state.variance)
    # Nothing valid in the second: its state is as it was.
    assert after.updates is not None
    assert after.updates.tolist() == [1, 0]
    assert torch.equal(after.mean[1], fresh.mean)


def test_lengths_in_an_ensemble() -> None:
    layer, x = evenorm.LayerNorm(5), torch.randn(2, 4, 3, 5)
    lengths = torch.tensor([[3, 0, 1, 2], [1, 1, 2, 0]])
    ys = vmap(lambda x, lengths: layer(x, lengths=lengths))(x, lengths)
    for k in range(2):
        torch.testing.assert_close(ys[k], layer(x[k], lengths=lengths[k]))
    with pytest.raises(ValueError, match=r"LayerNorm\(\(5,\).*from 0 to the 3 positions there are, got 4"):
        vmap(lambda x, lengths: layer(x, lengths=lengths))(x, lengths + 1)


def test_lengths_beyond_the_padding_in_a_compiled_graph() -> None:
    layer = batch_norm(3)
    function = torch.compile(lambda x, lengths: layer(x, lengths=lengths), fullgraph=True, backend="aot_eager")
    function(torch.randn(2, 3, 5), torch.tensor([5, 0]))
    kept = layer.running_mean.clone()
    for wrong in (6, -1):
        with pytest.raises(RuntimeError, match="lengths from 0 to the 5 positions"):
            function(torch.randn(2, 3, 5), torch.tensor([5, wrong]))
    assert torch.equal(layer.running_mean, kept)


@pytest.mark.parametrize("form", ["layer", "again", "compiled", "state"])
def test_a_history_that_asks_for_a_gradient_gets_it(form: str) -> None:
    """In evaluation, where torch's layer raises: statistics may be learned."""
    layer, x, dy = batch_norm(3).double().eval(), rows(), rows()
    if form == "again":
        layer(x)
    mean, variance = torch.randn(3, dtype=DOUBLE), torch.rand(3, dtype=DOUBLE) + 0.5

    def function(mean: Tensor, variance: Tensor) -> Tensor:
        if form == "state":
            return normalize(
                x, "[n] c", statistics=Running(0.5), history_axes="c", state=History(mean, variance), training=False
            )[0]
        return functional_call(layer, {"running_mean": mean, "running_var": variance}, (x,))

    called = torch.compile(function, fullgraph=True, backend="aot_eager") if form == "compiled" else function
    found, expected = (
        torch.autograd.grad(f(*leaves), leaves, dy)
        for f, leaves in (
            (called, [t.clone().requires_grad_() for t in (mean, variance)]),
            (lambda m, v: (x - m) / (v + 1e-5).sqrt(), [t.clone().requires_grad_() for t in (mean, variance)]),
        )
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("again", [False, True])
def test_a_history_that_is_written_asks_for_no_gradient(again: bool) -> None:
    layer, x = batch_norm(3), torch.randn(8, 3)
    if again:
        layer(x)
    mean = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"BatchNorm1d\(3.*no gradient flows into running statistics in training"):
        functional_call(layer, {"running_mean": mean}, (x,))
    assert mean.tolist() == [0, 0, 0]


def test_a_state_with_a_window() -> None:
    """The history moves once per window, by the window's moments."""
    statistics, parts = Accumulated(2, "approximate", of=Running(1.0)), rows(9).split([4, 5])
    fresh = History.fresh(3, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"normalize: the history has no window .*window=Window\.empty\(\(3,\)\)"):
        observed(parts[0], fresh, statistics)
    state = fresh._replace(window=Window.empty((3,)))
    for k, part in enumerate(parts):
        _, state = observed(part, state, statistics)
        assert state.updates is not None
        assert state.updates.item() == k
    torch.testing.assert_close(state.mean, torch.cat(parts).mean(0))
    torch.testing.assert_close(state.variance, torch.cat(parts).var(0))


def test_a_state_is_of_one_domain() -> None:
    with pytest.raises(ValueError, match=r"normalize: a call has one history: give the statistics of one domain"):
        observed(rows(), History.fresh(3, dtype=DOUBLE), PerDomain({"a": Running(0.1)}))
