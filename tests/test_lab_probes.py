"""What the lab's probes read: each against the same thing computed another way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

pytest.importorskip("sklearn", reason="the extra evenorm[lab] is not installed")

import evenorm
from evenorm.lab.experiments.batchmates import coupling, gradient_spread
from evenorm.lab.experiments.regularization import statistics_noise
from evenorm.lab.experiments.shift_is_not_the_reason import NoisyBatchNorm
from evenorm.lab.fit import descent, falling, fit
from evenorm.lab.landscape import Landscape
from evenorm.lab.networks import Network, perceptron
from evenorm.lab.setting import Setting
from evenorm.lab.shift import GradientChange, LayerInputs
from evenorm.lab.training import Watch

RATE = 0.3


def small() -> Network:
    return perceptron(6, (5, 4), 3, evenorm.BatchNorm1d, activation=nn.Tanh, seed=1)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 6), torch.randint(3, (12,))


def gradient(network: nn.Module, weight: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(cross_entropy(network(x), labels), weight)
    return found


def test_gradient_change_is_that_of_the_layers_before_alone() -> None:
    x, labels = batch()
    network, probe = small(), GradientChange(every=1)
    start, end = copy.deepcopy(network), network
    fit(end, [(x, labels)], descent(RATE), probes=[probe])
    mixed = copy.deepcopy(start).train()
    (_, first), (_, second) = mixed.hidden()
    (_, moved), _ = end.hidden()
    first.load_state_dict(moved.state_dict())
    start.train()
    weights = [[block.linear.get_parameter("weight") for _, block in one.hidden()][1] for one in (start, mixed)]
    before, after = gradient(start, weights[0], x, labels), gradient(mixed, weights[1], x, labels)
    assert probe.changes == {"hidden 2": [pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)]}
    assert probe.mean > 1e-3
    assert second is not first


def test_the_walk_sees_the_losses_and_gradients_on_the_way() -> None:
    x, labels = batch()
    network, probe = small(), Landscape(every=1, lengths=(0.1, 0.7))
    start = copy.deepcopy(network).train()
    fit(network, [(x, labels)], descent(RATE), probes=[probe])
    parameters = list(start.parameters())
    here = torch.autograd.grad(cross_entropy(start(x), labels), parameters)
    losses, changes = [], []
    for length in (0.1, 0.7):
        there = copy.deepcopy(start)
        with torch.no_grad():
            for parameter, slope in zip(there.parameters(), here, strict=True):
                parameter.sub_(length * slope)
        loss = cross_entropy(there(x), labels)
        slopes = torch.autograd.grad(loss, list(there.parameters()))
        losses.append(float(loss.detach()))
        changes.append(sum(float((a - b).square().sum()) for a, b in zip(slopes, here, strict=True)) ** 0.5)
    walked = sum(float(slope.square().sum()) for slope in here) ** 0.5
    assert probe.ranges == [pytest.approx(abs(losses[0] - losses[1]), rel=1e-3)]
    assert probe.changes == [pytest.approx(max(changes), rel=1e-3)]
    assert probe.smoothness == [pytest.approx(max(changes[0] / 0.1, changes[1] / 0.7) / walked, rel=1e-3)]


def test_drift_is_in_widths_of_the_distribution() -> None:
    probe = LayerInputs(torch.zeros(1, 6), every=1)
    percentiles = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    probe.seen["hidden 1"] = [percentiles, percentiles + 0.5, percentiles]
    assert probe.drift("hidden 1") == pytest.approx(0.25)
    assert LayerInputs(torch.zeros(1, 6), every=1).seen == {}


def test_layer_inputs_are_percentiles_of_each_unit() -> None:
    x, labels = batch()
    network, probe = small(), LayerInputs(x, every=1)
    fit(network, [(x, labels)] * 2, descent(RATE), probes=[probe])
    _, last = (block for _, block in network.hidden())
    seen: list[Tensor] = []
    handle = last.activation.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(x)
    handle.remove()
    assert probe.steps == [1, 2]
    for row, level in enumerate((0.15, 0.5, 0.85)):
        torch.testing.assert_close(probe.seen["hidden 2"][-1][row], torch.quantile(seen[0].detach(), level, dim=0))


def test_the_rate_falls_to_zero_and_the_watch_stops_when_it_is_reached() -> None:
    network = nn.Linear(2, 2, bias=False)
    start = network.weight.detach().clone()
    x = torch.tensor([[1.0, 0.0]])
    fit(network, [(x, x)] * 2, descent(1.0), pace=falling(2), loss=lambda y, target: (y * target).sum())
    # The gradient is constant: a whole step and half a one.
    torch.testing.assert_close(start - network.weight, torch.tensor([[1.5, 0.0], [0.0, 0.0]]))
    watch = Watch(Setting().images, every=2, until=0.5)
    assert [step for step in range(6) if watch.due(step)] == [1, 3, 5]
    watch.steps, watch.shares = [2, 4], [0.2, 0.6]
    assert not watch.due(5)
    assert (watch.reached(0.5), watch.reached(0.9)) == (4, None)


class Mean(nn.Module):
    """y = x + mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(0)


@pytest.mark.parametrize("size", [2, 5])
def test_coupling_of_a_known_jacobian(size: int) -> None:
    expected = (size - 1) ** 0.5 / size / (1 + 1 / size)
    assert coupling(Mean(), torch.randn(size, 3)) == pytest.approx(expected, rel=1e-5)
    assert coupling(nn.Identity(), torch.randn(size, 3)) == 0


def test_only_batch_statistics_make_a_gradient_depend_on_batch_mates() -> None:
    x, labels = torch.randn(12, 6), torch.randint(3, (12,))
    assert gradient_spread(small(), x, labels) > 0.05
    assert gradient_spread(perceptron(6, (5, 4), 3, evenorm.LayerNorm, seed=1), x, labels) < 1e-6


def test_the_noise_of_a_mean_falls_with_the_root_of_the_batch() -> None:
    few, many = (statistics_noise(Setting(), size, seed=0) for size in (4, 64))
    assert few / many == pytest.approx(4.0, rel=0.1)
    assert few == pytest.approx(0.5, rel=0.1)


def test_noise_on_purpose_moves_every_unit_and_stays_out_of_evaluation() -> None:
    torch.manual_seed(0)
    layer = NoisyBatchNorm(200)
    y = layer(torch.randn(1000, 200)).detach()
    shift, scale = y.mean(0), y.std(0)
    assert shift.abs().max() <= 0.55
    assert float(shift.std()) == pytest.approx(1 / 12**0.5, rel=0.15)
    assert float(scale.min()) >= 0.95
    assert float(scale.max()) <= 1.35
    layer.eval()
    x = torch.randn(10, 200)
    assert torch.equal(layer(x), layer.layer(x))
