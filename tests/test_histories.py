"""Histories that stay right: one update per call that the user wrote, finite batches alone, frozen when frozen."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evenorm
from evenorm import Cumulative, Frozen, Norm, PerDomain, Renorm, Running
from evenorm.statistics import Statistics

DOUBLE = torch.float64


def batch_norm(*settings: Any, **options: Any) -> Any:
    """With buffers that are there."""
    return evenorm.BatchNorm1d(*settings, **options)


def rows(count: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, dtype=DOUBLE) * 2 + 1


def step(layer: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Tensor:
    part = x.clone().requires_grad_()
    layer(part).backward(dy)
    assert part.grad is not None
    return part.grad


# Layers whose forward pass in training reads the history too: recomputed, it must read what it read.
RECOMPUTED: dict[str, Callable[[], Any]] = {
    "batch": lambda: batch_norm(3),
    "ghost": lambda: evenorm.GhostBatchNorm1d(3, 3),
    "renorm": lambda: batch_norm(3, statistics=Renorm(1.5, 0.3, schedule=None)),
    "window": lambda: batch_norm(3, statistics=evenorm.Accumulated(2, "approximate")),
    "pattern": lambda: Norm("[n] c", c=3, statistics=Running(0.5)),
}


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("make", RECOMPUTED.values(), ids=RECOMPUTED)
def test_recomputation_is_not_a_call(make: Callable[[], Any], reentrant: bool) -> None:
    layer = make().double()
    plain = copy.deepcopy(layer)
    for _ in range(3):
        x, dy = rows(), rows()
        found = step(lambda x: checkpoint(layer, x, use_reentrant=reentrant), x, dy)
        torch.testing.assert_close(found, step(plain, x, dy), rtol=0, atol=0)
        for mine, theirs in zip(layer.buffers(), plain.buffers(), strict=True):
            assert torch.equal(mine, theirs)


def test_two_forwards_are_two_updates() -> None:
    layer, twin = batch_norm(3).double(), nn.BatchNorm1d(3).double()
    for _ in range(2):
        x = rows()
        layer(x), twin(x)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("statistics", [None, Cumulative(), Renorm(schedule=None)], ids=str)
def test_a_batch_that_is_not_finite_is_not_taken_in(poison: float, statistics: Statistics | None) -> None:
    layer = batch_norm(3, statistics=statistics)
    layer(torch.randn(8, 3))
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    x = torch.randn(8, 3)
    x[2, 1] = poison
    with pytest.warns(RuntimeWarning, match=r"BatchNorm1d\(3.*not finite; the running statistics do not take it in"):
        layer(x)
    assert all(torch.equal(before[name], t) for name, t in layer.state_dict().items())
    assert layer.num_batches_skipped.item() == 1
    assert layer.num_batches_tracked.item() == 1
    layer(torch.randn(8, 3))
    assert layer.num_batches_tracked.item() == 2


def test_a_batch_that_is_not_finite_can_be_an_error() -> None:
    layer = batch_norm(3, statistics=Running(0.1, nonfinite="raise"))
    with pytest.raises(FloatingPointError, match="not finite"):
        layer(torch.full((4, 3), torch.nan))
    assert layer.running_mean.tolist() == [0, 0, 0]


@pytest.mark.parametrize("copied", [False, True], ids=["layer", "copy"])
def test_freezing_survives_train(copied: bool) -> None:
    layer = batch_norm(3, momentum=0.3).double()
    layer(rows())
    layer.freeze()
    frozen = copy.deepcopy(layer) if copied else layer
    kept = {name: t.clone() for name, t in frozen.state_dict().items()}
    x = rows()
    for mode in (True, False, True):
        expected = (x - kept["running_mean"]) / (kept["running_var"] + 1e-5).sqrt()
        torch.testing.assert_close(frozen.train(mode)(x), expected)
    assert all(torch.equal(kept[name], t) for name, t in frozen.state_dict().items())
    assert frozen.momentum == 0.3
    frozen.freeze()
    frozen.unfreeze()
    frozen(x)
    torch.testing.assert_close(frozen.running_mean, 0.7 * kept["running_mean"] + 0.3 * x.mean(0))
    assert frozen.num_batches_tracked.item() == 2


def test_what_can_be_frozen() -> None:
    for layer in (
        evenorm.BatchNorm2d(3),
        evenorm.BatchNorm3d(3),
        evenorm.GhostBatchNorm2d(3, 2),
        evenorm.InstanceNorm2d(3, track_running_stats=True),
        Norm("[n] c", c=3, statistics=Running(0.1)),
        evenorm.BatchNorm2d(3, statistics=Renorm()),
    ):
        layer.freeze()
        assert layer.train().statistics == Frozen()
        layer.unfreeze()
        assert layer.statistics != Frozen()
    with pytest.raises(ValueError, match=r"InstanceNorm2d\(3.*no running statistics to freeze"):
        evenorm.InstanceNorm2d(3).freeze()


def test_half_models_keep_float32_histories() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        layers: tuple[Any, ...] = (
            batch_norm(3, dtype=dtype),
            evenorm.GhostBatchNorm1d(3, 2, dtype=dtype),
            Norm("[n] c", c=3, dtype=dtype, statistics=Running(0.1)),
        )
        for layer in layers:
            assert layer.weight.dtype == dtype
            assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32
            layer(torch.randn(4, 3, dtype=dtype))
    assert batch_norm(3, dtype=DOUBLE).running_mean.dtype == DOUBLE
    # Converted ones stay as they were found.
    layer = batch_norm(3).bfloat16()
    layer(torch.randn(4, 3).bfloat16())
    assert layer.running_mean.dtype == torch.bfloat16


def test_ten_small_steps_are_not_lost_in_half() -> None:
    """A bfloat16 history would not move at all."""
    layer = batch_norm(1, momentum=1e-3, dtype=torch.bfloat16)
    x = (torch.randn(64, 1) + 1).bfloat16()
    for _ in range(10):
        layer(x)
    assert layer.running_mean.item() == pytest.approx((1 - 0.999**10) * x.double().mean().item(), rel=1e-5)


def test_the_state_dict_is_torchs() -> None:
    for layer, twin in (
        (batch_norm(3, statistics=Renorm()), nn.BatchNorm1d(3)),
        (batch_norm(3, statistics=evenorm.Accumulated(2, "approximate")), nn.BatchNorm1d(3)),
        (evenorm.SyncBatchNorm(3), nn.SyncBatchNorm(3)),
    ):
        assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in twin.state_dict().items()}
        layer.load_state_dict(twin.state_dict())


DOMAINS = {"day": Running(0.5), "night": Frozen(), "fog": None}


def test_a_history_for_each_domain() -> None:
    layer = batch_norm(3, momentum=0.25, statistics=PerDomain(DOMAINS)).double()
    alone = {"day": batch_norm(3, momentum=0.5), "fog": batch_norm(3, momentum=0.25)}
    for name in ("day", "fog", "day", "night"):
        x = rows()
        y = layer(x, domain=name)
        if name == "night":
            torch.testing.assert_close(y, x / (1 + 1e-5) ** 0.5)
        else:
            torch.testing.assert_close(y, alone[name].double()(x))
    for k, name in ((0, "day"), (2, "fog")):
        torch.testing.assert_close(layer.running_mean[k], alone[name].running_mean)
        torch.testing.assert_close(layer.running_var[k], alone[name].running_var)
    assert layer.num_batches_tracked.tolist() == [2, 0, 1]
    assert layer.running_mean[1].tolist() == [0, 0, 0]
    x = rows()
    torch.testing.assert_close(layer.eval()(x, domain="fog"), alone["fog"].eval()(x))


def test_one_history_is_given_to_every_domain() -> None:
    trained: Any = nn.BatchNorm1d(3)
    trained(torch.randn(8, 3))
    layer = batch_norm(3, statistics=PerDomain(["a", "b"]))
    layer.load_state_dict(trained.state_dict())
    assert torch.equal(layer.running_mean, trained.running_mean.expand(2, 3))
    assert layer.num_batches_tracked.tolist() == [1, 1]
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))


def test_freezing_every_domain() -> None:
    layer = batch_norm(3, statistics=PerDomain(DOMAINS)).double()
    layer(rows(), domain="day")
    kept = {name: t.clone() for name, t in layer.state_dict().items()}
    layer.freeze()
    x = rows()
    for place, domain in enumerate(DOMAINS):
        expected = (x - kept["running_mean"][place]) / (kept["running_var"][place] + 1e-5).sqrt()
        torch.testing.assert_close(layer.train()(x, domain=domain), expected)
    assert all(torch.equal(kept[name], t) for name, t in layer.state_dict().items())
    layer.unfreeze()
    layer(x, domain="day")
    assert layer.num_batches_tracked.tolist() == [2, 0, 0]


def test_a_converted_layer_counts_its_values() -> None:
    """Batches of different sizes: the population's moments need the count of each."""
    model: Any = evenorm.convert(nn.Sequential(nn.BatchNorm2d(3)).double(), Cumulative())
    x = torch.randn(9, 3, 2, 2, dtype=DOUBLE)
    for part in x.split([2, 7]):
        model(part)
    torch.testing.assert_close(model[0].running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(model[0].running_var, x.var((0, 2, 3)))


def test_an_unknown_domain_changes_nothing() -> None:
    layer = batch_norm(3, statistics=PerDomain(["a", "b"]))
    for domain, words in (("c", "there is no domain 'c'; the domains are 'a', 'b'"), (None, "expected a domain")):
        with pytest.raises(ValueError, match=r"BatchNorm1d\(3.*" + words):
            layer(torch.randn(8, 3), domain=domain)
    assert layer.num_batches_tracked.tolist() == [0, 0]
    with pytest.raises(ValueError, match="got domain='a', but the layer has one history"):
        batch_norm(3)(torch.randn(8, 3), domain="a")


class Residual(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module], channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([norm(channels), norm(channels)])
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(x + self.norms[1](self.second(y)))


def small_resnet(norm: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 6, 3, bias=False), norm(6), nn.ReLU()]
    return nn.Sequential(
        *stem, Residual(norm, 6), Residual(norm, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )


def test_a_hundred_steps_of_a_small_resnet_are_torchs() -> None:
    """The default layer, number for number: losses and buffers."""
    models = [small_resnet(norm).double() for norm in (evenorm.BatchNorm2d, nn.BatchNorm2d)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in models]
    losses: list[list[float]] = [[], []]
    for seed in range(100):
        torch.manual_seed(seed)
        x, target = torch.randn(4, 3, 8, 8, dtype=DOUBLE), torch.randint(4, (4,))
        for model, optimizer, seen in zip(models, optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=1e-7, atol=1e-7)


def test_no_warning_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch_norm(3)(torch.full((4, 3), 1e30))
