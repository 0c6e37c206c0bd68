"""Statistics composed of statistics: each against its definition in the float64 reference, and what means nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import evenorm
from evenorm import (
    Accumulated,
    Affine,
    Batch,
    Cumulative,
    Frozen,
    Norm,
    Pattern,
    PerDomain,
    Ramp,
    Renorm,
    Running,
    Synced,
    SyncError,
    lockstep,
)
from evenorm.kernels import reference
from evenorm.statistics import Statistics

DOUBLE = torch.float64
PATTERN, AFFINE = Pattern.parse("[n] c [...]"), Affine("c")


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE) * 2 + 3


def layer_of(statistics: Statistics | None, momentum: float | None = 0.25) -> Any:
    layer: Any = evenorm.BatchNorm1d(3, momentum=momentum, statistics=statistics).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.running_mean.normal_(2.5, 0.5)
        layer.running_var.uniform_(2, 4)
    return layer


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(torch.as_tensor(actual).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


RENORM: dict[str, Any] = {"r_max": 1.2, "d_max": 0.2, "schedule": None}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 1))
def test_a_window_in_lockstep_is_one_big_batch(sizes: list[int]) -> None:
    """Through a deep network, for any split, empty micro-batches too: the protocol of synchronized ranks."""

    def network(statistics: Statistics | None) -> Any:
        torch.manual_seed(0)
        norms = [evenorm.BatchNorm1d(4, statistics=statistics) for _ in range(2)]
        return torch.nn.Sequential(
            torch.nn.Linear(3, 4), norms[0], torch.nn.Tanh(), norms[1], torch.nn.Linear(4, 2)
        ).double()

    mine, whole = network(Accumulated(len(sizes))), network(None)
    x, dy = numbers(sum(sizes), 3), numbers(sum(sizes), 2)
    starts = np.cumsum([0, *sizes])

    def step(k: int) -> Tensor:
        rows = slice(starts[k], starts[k + 1])
        y = mine(x[rows])
        y.backward(dy[rows])
        return y.detach()

    y = torch.cat(lockstep(step, range(len(sizes))))
    expected = whole(x)
    expected.backward(dy)
    close(y, expected.detach().numpy())
    for a, b in zip(mine.parameters(), whole.parameters(), strict=True):
        close(a.grad, b.grad.numpy())
    for name, kept in whole.state_dict().items():
        close(mine.state_dict()[name], kept.numpy())


@given(st.lists(st.integers(2, 5), min_size=1, max_size=5))
def test_an_approximate_windows_moments_are_exact(sizes: list[int]) -> None:
    """The history takes in one big batch, once; each micro-batch is normalized by itself."""
    layer, plain = layer_of(Accumulated(len(sizes), "approximate"), momentum=1.0), layer_of(None)
    plain.load_state_dict(layer.state_dict())
    x = numbers(sum(sizes), 3) + torch.arange(sum(sizes))[:, None]
    for part in x.split(sizes):
        assert layer.num_batches_tracked.item() == 0
        close(layer(part), plain(part).detach().numpy())
    assert layer.num_batches_tracked.item() == 1
    close(layer.running_mean, x.mean(0).numpy())
    close(layer.running_var, x.var(0).numpy())
    assert not layer.window_values.any()


@pytest.mark.parametrize(("parts", "off"), [(2, 0.58), (4, 0.75), (16, 1.22)])
def test_how_far_off_the_approximate_gradient_is(parts: int, off: float) -> None:
    """Lockstep is exact through a network; the cheap form is as far off as its docstring says."""
    x, target = (
        numbers(16, 3, 6, 6) * torch.linspace(0.5, 2, 16, dtype=DOUBLE)[:, None, None, None],
        torch.arange(16) % 4,
    )
    found = []
    for statistics, count in ((None, 1), (Accumulated(parts), parts), (Accumulated(parts, "approximate"), parts)):
        torch.manual_seed(0)
        layers: list[Any] = []
        for channels in (3, 6):
            norm = evenorm.BatchNorm2d(6, statistics=statistics)
            layers += [torch.nn.Conv2d(channels, 6, 3, bias=False), norm, torch.nn.ReLU()]
        network: Any = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(24, 4)).double()

        def step(k: int, network: Any = network, count: int = count) -> None:
            rows = slice(k * 16 // count, (k + 1) * 16 // count)
            torch.nn.functional.cross_entropy(network(x[rows]), target[rows], reduction="sum").backward()

        if statistics == Accumulated(parts):
            lockstep(step, range(count))
        else:
            for k in range(count):
                step(k)
        found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    whole, exact, approximate = found
    assert (exact - whole).norm() < 1e-12 * whole.norm()
    assert float((approximate - whole).norm() / whole.norm()) == pytest.approx(off, abs=0.005)


def test_lockstep_refuses_different_calls() -> None:
    layers = [evenorm.BatchNorm1d(3, statistics=Accumulated(2)) for _ in range(2)]
    before = [layer.state_dict()["running_mean"].clone() for layer in layers]

    def step(k: int) -> None:
        x = torch.randn(4, 3)
        layers[1](layers[0](x) if k == 0 else x)

    with pytest.raises(SyncError, match=r"rank 0 at BatchNorm1d.*number \d+ \(forward.*rank 1 at BatchNorm1d"):
        lockstep(step, range(2))
    for layer, kept in zip(layers, before, strict=True):
        assert torch.equal(layer.state_dict()["running_mean"], kept)

    def sooner(k: int) -> None:
        for layer in layers[: 2 - k]:
            layer(torch.randn(4, 3))

    with pytest.raises(SyncError, match="every one must call the same layers"):
        lockstep(sooner, range(2))

    def failing(k: int) -> None:
        if k == 1:
            raise KeyError("the second")
        layers[0](torch.randn(4, 3))

    with pytest.raises(KeyError, match="the second"):
        lockstep(failing, range(2))


def test_exact_gradients_need_lockstep() -> None:
    layer = layer_of(Accumulated(2))
    with pytest.raises(ValueError, match=r"BatchNorm1d\(3.*run the step in evenorm\.lockstep.*'approximate'"):
        layer(numbers(4, 3))
    with pytest.raises(ValueError, match="the window has 2 micro-batches, lockstep brought 3"):
        lockstep(lambda x: layer(x), numbers(6, 3).chunk(3))
    assert layer.num_batches_tracked.item() == 0
    with pytest.raises(ValueError, match="at least one micro-batch"):
        lockstep(lambda x: layer(x), [])


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6))
def test_cumulative_is_the_population(sizes: list[int]) -> None:
    layer = layer_of(Cumulative())
    layer.reset_running_stats()
    x = numbers(sum(sizes), 3) + torch.arange(sum(sizes))[:, None]
    for part in x.split(sizes):
        layer(part)
    close(layer.running_mean, x.mean(0).numpy())
    close(layer.running_var, x.var(0).numpy())


def test_debiased_forgets_the_initial_value() -> None:
    layer, decay, seen = layer_of(Running(decay=0.9, variance="debiased")), 0.9, numbers(5, 8, 3)
    for part in seen:
        layer(part)
    weights = torch.tensor([decay ** (4 - k) for k in range(5)], dtype=DOUBLE)
    weights /= weights.sum()
    close(layer.running_mean, (weights[:, None] * seen.mean(1)).sum(0).numpy())
    close(layer.running_var, (weights[:, None] * seen.var(1)).sum(0).numpy())


def test_renorm_shut_is_batch_normalization_and_opens() -> None:
    """The article's schedule: r_max from 1 to 3 over updates 5,000 to 40,000, d_max from 0 to 5 by 25,000."""
    layer, plain, x = layer_of(Renorm()), layer_of(None), numbers(8, 3)
    plain.load_state_dict(layer.state_dict())
    close(layer(x), plain(x).detach().numpy())
    ramp = Ramp()
    for updates, wide_r, wide_d in (
        (0, 0, 0),
        (5_000, 0, 0),
        (22_500, 0.5, 0.875),
        (25_000, 20 / 35, 1),
        (50_000, 1, 1),
    ):
        steps = torch.tensor(updates)
        assert ramp.opened(steps, ramp.r_end).item() == pytest.approx(wide_r)
        assert ramp.opened(steps, ramp.d_end).item() == pytest.approx(wide_d)
    layer.num_batches_tracked.fill_(50_000)
    before = (layer.running_mean.numpy().copy(), layer.running_var.numpy().copy())
    mean, m2 = reference.moments(x, PATTERN)
    r, d = reference.correction(mean, m2 / 8, before, 1e-5, 3, 5)
    operands = (layer.weight.detach().numpy(), layer.bias.detach().numpy())
    close(layer(x), reference.forward(x, PATTERN, *operands, affine=AFFINE, corrected=(r, d)))


def test_renorm_differentiates_twice() -> None:
    """Where both clamps hold: elsewhere a difference quotient sees r and d move, which are constants."""
    layer = layer_of(Renorm(**RENORM))
    layer.momentum = 0.0
    layer.running_mean.fill_(-50)
    layer.running_var.fill_(0.01)
    x = numbers(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(layer, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, x, fast_mode=True)


MEANINGLESS: dict[str, tuple[Any, str]] = {
    "synced twice": (lambda: Synced(of=Accumulated(2, of=Synced())), "the same twice"),
    "window twice": (lambda: Accumulated(2, of=Accumulated(3)), "the same twice"),
    "renorm twice": (lambda: Renorm(of=Renorm()), "the same twice"),
    "renorm of a batch": (lambda: Renorm(of=Batch()), "no history to correct toward"),
    "renorm without a history": (lambda: Norm("[n] c", c=3, statistics=Renorm()), "no history to correct toward"),
    "frozen, synced": (lambda: Synced(of=Frozen()), r"Synced\(of=Frozen\(…\)\) means nothing: frozen statistics"),
    "frozen, renorm": (lambda: Renorm(of=Synced(of=Frozen())), "frozen statistics do not come from a batch"),
    "renorm inside": (lambda: Synced(of=Renorm()), r"it stands outside: Renorm\(of=Synced\(\)\)"),
    "renorm inside a window": (lambda: Accumulated(2, of=Renorm()), r"it stands outside: Renorm\(of=Accumulated\(\)\)"),
    "domains inside": (lambda: Synced(of=PerDomain(["a"])), "so it stands outermost"),
    "domains twice": (lambda: PerDomain({"a": PerDomain(["b"])}), "the same twice"),
    "no domain": (lambda: PerDomain([]), "expected keys, each once"),
    "one domain twice": (lambda: PerDomain(["a", "a"]), "expected keys, each once"),
    "a text": (lambda: PerDomain("ab"), "expected several keys, got the text 'ab'"),
    "a window of 0": (lambda: Accumulated(0), "window must be a positive number of micro-batches, got 0"),
    "a window of a half": (lambda: Accumulated(0.5), "got 0.5"),  # type: ignore[arg-type]
    "gradients": (lambda: Accumulated(2, "cheap"), "'exact' or 'approximate', got 'cheap'"),  # type: ignore[arg-type]
    "r_max": (lambda: Renorm(0.5), "r_max ≥ 1"),
    "ramp": (lambda: Ramp(9, 5, 20), "0 ≤ start"),
    "variance": (lambda: Running(0.1, "corrected"), "must be one of 'unbiased'"),  # type: ignore[arg-type]
    "nonfinite": (lambda: Cumulative(nonfinite="keep"), "nonfinite must be"),  # type: ignore[arg-type]
    "no statistics": (lambda: Synced(of=0.1), "expected statistics to be made of"),  # type: ignore[arg-type]
    "a ghost": (lambda: evenorm.GhostBatchNorm1d(3, 2, statistics=Synced()), "a ghost batch is one that shares"),
}


@pytest.mark.parametrize(("make", "words"), MEANINGLESS.values(), ids=MEANINGLESS)
def test_what_means_nothing_is_refused_when_it_is_made(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_sentences() -> None:
    composed = Renorm(2.0, 1.0, None, of=Synced(of=Accumulated(4)))
    assert repr(composed) == "Renorm(r_max=2.0, d_max=1.0, schedule=None, of=Synced(of=Accumulated(window=4)))"
    assert "all processes together, a window of 4 micro-batches" in str(composed)
    assert "renormalized" in str(layer_of(Renorm()).recipe)
    assert eval(repr(composed), {"Renorm": Renorm, "Synced": Synced, "Accumulated": Accumulated}) == composed
