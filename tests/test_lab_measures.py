"""What experiments of the lab measure with: each number on a case whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("plotly", reason="the extra evenorm[lab] is not installed")
pytest.importorskip("sklearn", reason="the extra evenorm[lab] is not installed")

import evenorm
from evenorm.lab.experiments import (
    attention_norm,
    dropout_disharmony,
    epsilon,
    gan,
    mixed_precision,
    momentum,
    recurrent,
    saturation,
    weight_and_spectral,
    whitening,
)
from evenorm.lab.networks import identity, perceptron
from evenorm.lab.rates import attempts, lowest, soonest
from evenorm.lab.setting import Setting
from evenorm.lab.timing import seconds
from evenorm.lab.training import tensors
from evenorm.lab.transformer import Transformer

IMAGES = Setting().images


def test_of_several_rates_the_right_one_is_kept() -> None:
    made = attempts(lambda: perceptron(64, (16,), 10, identity), IMAGES, (1e-4, 0.3), steps=20, seed=0, looks=10)
    assert lowest(made).rate == soonest(made, 0.4).rate == 0.3
    assert soonest(made, 0.4).reached(0.4) < 20
    assert made[0].reached(0.4) == 20


def test_work_is_timed_in_turns() -> None:
    taken = seconds({"short": lambda: sum(range(2_000)), "long": lambda: sum(range(40_000))}, rounds=9)
    assert 4 < taken["long"] / taken["short"] < 100


def test_variance_shift_is_the_ratio_of_variances() -> None:
    network = dropout_disharmony.build(IMAGES, (), 0.5, seed=0)
    x, _ = tensors(IMAGES, IMAGES.train_pixels[:200], IMAGES.train_labels[:200])
    settled = dropout_disharmony.renewed(network, x)
    # Running variances are unbiased, what normalizes is biased: half a percent a layer.
    assert dropout_disharmony.variance_shift(settled, x) == pytest.approx([1.0] * 4, abs=0.02)
    for layer in settled.modules():
        if isinstance(layer, evenorm.BatchNorm1d):
            assert layer.running_var is not None
            layer.running_var *= 4
    # What is divided by twice the deviation comes out half as wide, in every layer but the first.
    assert dropout_disharmony.variance_shift(settled, x)[0] == pytest.approx(4.0, rel=1e-2)


def test_saturated_is_where_the_derivative_is_below_a_tenth() -> None:
    z = torch.tensor(saturation.SATURATED)
    assert float(1 - z.tanh() ** 2) == pytest.approx(0.1, abs=2e-3)


def test_maps_of_the_pixels_do_what_they_are_called() -> None:
    maps = whitening.maps(IMAGES)
    x, _ = tensors(IMAGES, IMAGES.train_pixels, IMAGES.train_labels)
    assert torch.allclose(maps["raw"](x), torch.from_numpy(IMAGES.train_pixels).flatten(1).float(), atol=1e-3)
    for name in ("standardized", "decorrelated"):
        z = maps[name](x).double()
        covariance = (z.T @ z / len(z)).numpy()
        assert abs(z.mean(0)).max() < 1e-4
        variances = np.diag(covariance)
        # Up to the ridge: pixels that vary come near 1, constant ones stay at 0.
        assert variances.max() <= 1.0
        assert np.median(variances) > 0.5
        if name == "decorrelated":
            assert abs(covariance - np.diag(variances)).max() < 0.5
            assert np.linalg.eigvalsh(covariance).max() < 1.0


def test_the_articles_average_is_computed_by_hand() -> None:
    mean, variance = momentum.remembered([torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [5.0]])], 0.5)
    assert mean.tolist() == [0.5 * 0.5 * 2 + 0.5 * 5]
    assert variance.tolist() == [0.5 * (0.5 * 1 + 0.5 * 1) + 0.5 * 0]


def test_impossible_is_beyond_the_root_of_the_count() -> None:
    # One of n values alone apart: the largest normalized value there is, √(n − 1).
    x = torch.zeros(64, 3)
    x[0] = 1
    possible = epsilon.longhand(x.double(), 1e-12)
    assert float(possible.max()) == pytest.approx(math.sqrt(63), rel=1e-6)
    assert epsilon.impossible(possible) == 0
    possible[0, 0], possible[0, 1] = 9, math.nan
    assert epsilon.impossible(possible) == pytest.approx(100 * 2 / 3)


def test_the_slope_of_a_linear_map_is_its_largest_singular_value() -> None:
    torch.manual_seed(0)
    network = perceptron(6, (), 4, identity)
    (linear,) = weight_and_spectral.every_linear(network)
    slope = weight_and_spectral.steepest(network, torch.randn(3, 6))
    assert slope == pytest.approx(float(torch.linalg.matrix_norm(linear.weight.detach(), 2)), rel=1e-5)


def test_neither_player_gets_the_others_gradient() -> None:
    torch.manual_seed(0)
    game = gan.Game(gan.network(gan.NOISE, 2, identity, identity), gan.network(2, 1, identity, identity))
    pair, nothing = next(gan.pairs(1, 0))
    gan.loss(game(pair), nothing).backward()
    made = game.generator(pair[:, : gan.NOISE])

    def same(module: nn.Module, loss: Tensor) -> bool:
        wanted = torch.autograd.grad(loss, list(module.parameters()))
        return all(
            torch.allclose(p.grad, g) for p, g in zip(module.parameters(), wanted, strict=True) if p.grad is not None
        )

    softplus = nn.functional.softplus
    critic = softplus(-game.critic(pair[:, gan.NOISE :])).mean() + softplus(game.critic(made.detach())).mean()
    assert same(game.critic, critic)
    assert same(game.generator, softplus(-game.critic(made)).mean())


def test_one_rounding_is_the_unit() -> None:
    exact = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert mixed_precision.roundings(exact.to(torch.float16), exact) == 1.0
    assert mixed_precision.roundings(exact.to(torch.float16) * (1 + 2**-8), exact) > 5
    x = torch.arange(8.0).view(1, 8)
    assert mixed_precision.total(x).tolist() == [28.0]


def test_padding_is_no_part_of_what_a_recurrent_network_says() -> None:
    torch.manual_seed(0)
    network = recurrent.Recurrent(4, 10, evenorm.LayerNorm, seed=0).eval()
    x, _ = tensors(IMAGES, IMAGES.test_pixels[:4], IMAGES.test_labels[:4])
    pieces = recurrent.sequences(IMAGES, x, torch.tensor([8, 16, 12, 10]))
    assert pieces.isfinite().all(2).sum(1).tolist() == [8, 16, 12, 10]
    assert torch.allclose(network(pieces)[:1], network(pieces[:1, :8]), atol=1e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_only_the_mask_keeps_padding_out_of_batch_statistics(masked: bool) -> None:
    transformer = Transformer(20, attention_norm.OverPositions, width=16, depth=1, heads=2, length=8, seed=0)
    network = attention_norm.Ragged(transformer, masked)
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(20, (4, 8), generator=draw)
    x[:, 5:] = attention_norm.PADDING
    alone, padded = network(x[:, :5]), network(x)[:, :5]
    assert torch.allclose(alone, padded, atol=1e-5) == masked
