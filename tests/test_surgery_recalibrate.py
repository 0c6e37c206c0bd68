"""recalibrate: the population's moments, whatever goes wrong; nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import evenorm
from blocks import bits, image, network, same
from evenorm import Moments
from graphs import randomize
from ranks import run_ranks


def test_population_moments_with_exact_counts() -> None:
    """Batches of different sizes: an average of averages would be wrong."""
    data = torch.randn(23, 3, 5) * 2 + 7
    model: Any = nn.Sequential(nn.BatchNorm1d(3))
    model, report = evenorm.recalibrate(model, data.split(9), report=True)
    population = Moments.of(data.movedim(1, -1).flatten(0, 1))
    torch.testing.assert_close(model[0].running_mean.double(), population.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(model[0].running_var.double(), population.unbiased, rtol=1e-6, atol=0)
    assert model[0].num_batches_tracked == 3
    assert "moved" in report.rows[0].after
    # The naive one: torch's average of the batches' averages.
    naive: Any = nn.Sequential(nn.BatchNorm1d(3))
    update_bn(data.split(9), naive)
    assert (naive[0].running_var - population.unbiased).abs().max() > 1e-3


class Branching(nn.Module):
    """A layer that no batch reaches, one that is frozen by evaluation, a dropout, keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.frozen = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.still, self.dropout = nn.BatchNorm1d(3, momentum=0.0), nn.Dropout(0.5)

    def forward(self, *, x: Tensor) -> Tensor:
        assert not self.dropout.training
        return self.frozen(self.still(self.used(self.dropout(x))))


def test_what_is_not_to_move_stays() -> None:
    model: Any = randomize(Branching()).train()
    model.frozen.eval()
    data = [{"x": torch.randn(4, 3)}] * 2
    before, modes, generator = bits(model), [m.training for m in model.modules()], torch.get_rng_state()
    model, report = evenorm.recalibrate(model, data, report=True)
    after = bits(model)
    changed = {name for name in after if not after[name].equal(before[name])}
    assert changed == {"used.running_mean", "used.running_var", "used.num_batches_tracked"}
    assert [m.training for m in model.modules()] == modes
    assert torch.get_rng_state().equal(generator)
    assert {row.path for row in report.refused} == {"unused", "frozen", "still"}
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_frozen_by_freeze_stays() -> None:
    model = evenorm.freeze(network())
    before = bits(model)
    evenorm.recalibrate(model, [image()])
    assert same(bits(model), before)


def broken_loader() -> Any:
    yield image()
    raise RuntimeError("disk full")


def interrupted_loader() -> Any:
    yield image()
    raise KeyboardInterrupt


def not_finite() -> Any:
    yield image()
    yield image() * torch.inf


@pytest.mark.parametrize(
    ("loader", "error"),
    [
        (list, ValueError),
        (broken_loader, RuntimeError),
        (interrupted_loader, KeyboardInterrupt),
        (not_finite, FloatingPointError),
        (lambda: [image(), torch.zeros(1)], Exception),
    ],
)
def test_bad_data_leaves_the_model_as_it_was(loader: Any, error: type[BaseException]) -> None:
    model = network().train()
    model[4].eval()
    before, modes = bits(model), [m.training for m in model.modules()]
    with pytest.raises(error):
        evenorm.recalibrate(model, loader())
    assert same(bits(model), before)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model[1].momentum == 0.3


def test_the_naive_recalibration_resets_on_an_empty_loader() -> None:
    model = network()
    update_bn([], model)
    assert not model[1].running_mean.any()


def test_any_call() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(2))
    evenorm.recalibrate(model, ["ab", "bcd"], lambda m, text: m(torch.tensor([[ord(c), 1.0] for c in text])))
    assert model[0].running_mean[0] == sum(map(ord, "abbcd")) / 5


@pytest.mark.dist
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_moments_of_all_ranks(count: int) -> None:
    run_ranks(count, "recalibrated")
