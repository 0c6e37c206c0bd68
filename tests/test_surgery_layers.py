"""freeze, convert, recalibrate and the small repairs: what they change, what they keep, what they take back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import evenorm
from blocks import bits, image, network, same
from graphs import randomize

STATISTICS = ("batch", "ghost", "renorm", "frozen", "sync")


# Freezing.


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_frozen_statistics_survive_train(dims: int) -> None:
    model = network(dims)
    before = bits(model)
    expected = model.eval()(image(dims))
    frozen = evenorm.freeze(model).train()
    torch.manual_seed(0)
    assert frozen is model
    x = image(dims)
    torch.testing.assert_close(frozen.train()(x), copy.deepcopy(model).eval()(x))
    assert expected.shape == frozen(x).shape
    assert same(bits(model), before)
    assert model[1].momentum == 0.3
    assert not model[1].weight.requires_grad
    # A converter of torch's would drop what it does not know; it must not find these.
    assert not isinstance(model[1], nn.modules.batchnorm._BatchNorm)
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    torch.testing.assert_close(model.train()(x), copy.deepcopy(model).eval()(x))

    evenorm.unfreeze(model)
    assert [type(m) for m in model] == [type(m) for m in network(dims)]
    assert model[1].weight.requires_grad
    assert "chosen" not in model[1].__dict__
    model.train()(x)
    assert not model[1].running_mean.equal(before["1.running_mean"])


def test_parts_are_frozen_separately() -> None:
    model = evenorm.freeze(network(), "affine")
    before = bits(model)
    model.train()(image())
    assert not model[1].weight.requires_grad
    assert not model[1].running_mean.equal(before["1.running_mean"])
    model = evenorm.freeze(network(), "statistics", where=lambda path, layer: path == "1").train()
    before = bits(model)
    model(image())
    assert model[1].weight.requires_grad
    assert model[1].running_mean.equal(before["1.running_mean"])
    assert not model[4].running_mean.equal(before["4.running_mean"])


def test_freezing_keeps_what_was_frozen_already() -> None:
    model = network()
    model[1].weight.requires_grad_(False)
    evenorm.unfreeze(evenorm.freeze(model))
    assert not model[1].weight.requires_grad
    assert model[1].bias.requires_grad


def test_freezing_an_accelerated_model_and_back() -> None:
    model = evenorm.accelerate(network())
    evenorm.unfreeze(evenorm.freeze(model))
    assert type(model[1]) is evenorm.BatchNorm2d
    assert type(evenorm.revert(model)[1]) is nn.BatchNorm2d


def test_reverting_what_is_frozen() -> None:
    model = evenorm.revert(evenorm.freeze(evenorm.accelerate(network())))
    assert [type(m) for m in model] == [type(m) for m in network()]
    assert all(p.requires_grad for p in model.parameters())
    evenorm.unfreeze(model)


def test_frozen_layers_are_not_converted() -> None:
    model, report = evenorm.convert(evenorm.freeze(network()), "ghost", report=True)
    assert "unfreeze() it first" in report.refused[0].refusal
    assert type(evenorm.unfreeze(model)[1]) is nn.BatchNorm2d


def test_no_statistics_to_freeze() -> None:
    _, report = evenorm.freeze(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), report=True)
    assert "running statistics" in report.refused[0].refusal


# Converting.


@pytest.mark.parametrize("to", STATISTICS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_statistics_are_converted_and_back(to: Any, dims: int) -> None:
    model = network(dims)
    before, kinds, x = bits(model), [type(m) for m in model], image(dims)
    parameters = list(model.parameters())
    expected = model.eval()(x)
    model, report = evenorm.convert(model, to, x, report=True)
    assert report.count("converted") == 2
    assert report.proof is not None
    assert report.proof.holds
    torch.testing.assert_close(model(x), expected)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert same(bits(model), before)
    evenorm.revert(model)
    assert [type(m) for m in model] == kinds
    assert same(bits(model), before)
    assert not any(name.startswith("_evenorm") for m in model.modules() for name in m.__dict__)


def test_what_is_trained_after_converting_stays() -> None:
    model = evenorm.convert(network(), "renorm").train()
    model(image())
    trained = bits(model)
    evenorm.revert(model)
    assert same(bits(model), trained)


def test_ghost_batches_are_of_the_size_asked_for() -> None:
    model = evenorm.convert(nn.Sequential(nn.BatchNorm1d(3)), "ghost", virtual_batch_size=4)
    x = torch.randn(8, 3)
    chunks = torch.cat([nn.BatchNorm1d(3)(part) for part in x.split(4)])
    torch.testing.assert_close(model(x), chunks)


@pytest.mark.parametrize("to", ["batch", "renorm"])
def test_no_ghost_stays_behind(to: Any) -> None:
    """From one kind to the next: the whole batch shares its statistics again."""
    x = torch.randn(8, 3)
    model = evenorm.convert(evenorm.convert(nn.Sequential(nn.BatchNorm1d(3)), "ghost", virtual_batch_size=2), to)
    torch.testing.assert_close(model.train()(x), nn.BatchNorm1d(3)(x))
    native = evenorm.convert(nn.Sequential(evenorm.GhostBatchNorm1d(3, 2)), to)
    torch.testing.assert_close(native.train()(x), nn.BatchNorm1d(3)(x))


@pytest.mark.parametrize(("to", "kind"), [("group", evenorm.GroupNorm), ("layer", evenorm.LayerNorm2d)])
def test_batch_independent_kinds_keep_the_affine(to: Any, kind: type[nn.Module]) -> None:
    model = network()
    before = bits(model)
    weight = model[1].weight
    evenorm.convert(model, to)
    assert type(model[1]) is kind
    assert model[1].weight is weight
    assert model[1].eps == 1e-5
    assert set(model.state_dict()) == {n for n in before if "running" not in n and "tracked" not in n}
    x = image()
    expected = nn.GroupNorm(4, 8) if to == "group" else nn.GroupNorm(1, 8)
    if to == "group":
        expected.load_state_dict({"weight": weight, "bias": model[1].bias})
        y = model[0](x)
        torch.testing.assert_close(model[1](y), expected(y))
    evenorm.revert(model)
    assert same(bits(model), before)


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 12, 48, 320])
def test_no_group_of_one_value(channels: int) -> None:
    model, report = evenorm.convert(nn.Sequential(nn.BatchNorm1d(channels)), "group", report=True)
    if channels == 1:
        assert report.refused
        return
    assert channels // model[0].num_groups >= 2
    # One value would be normalized to 0 whatever it is.
    assert model.train()(torch.randn(2, channels)).abs().min() > 0


def test_groups_that_do_not_divide_are_refused() -> None:
    model, report = evenorm.convert(network(), "group", groups=4, report=True)
    assert [row.path for row in report.refused] == ["4"]
    assert type(model[4]) is nn.BatchNorm2d


def test_synchronized_back_to_batch() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    before = bits(model)
    _, report = evenorm.convert(model, "batch", report=True)
    assert len(report.refused) == 2
    assert "example_inputs" in report.refused[0].refusal
    x = image()
    evenorm.convert(model.eval(), "batch", x)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert same(bits(model), before)
    torch.testing.assert_close(model(x), network().eval()(x))
    assert type(evenorm.revert(model)[1]) is nn.SyncBatchNorm


def test_an_activation_survives_converting() -> None:
    model: Any = nn.Sequential(evenorm.BatchNorm2d(3, activation="relu"))
    for to in ("sync", "ghost", "renorm", "frozen", "batch", "group"):
        converted: Any = evenorm.convert(model, to, inplace=False)
        assert converted.eval()(image()).min() >= 0
    # Torch's own converter, which knows nothing of it, must leave it alone.
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()(image()).min() >= 0


def test_subclass_with_a_forward_of_its_own_is_left() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return torch.relu(super().forward(input))

    for to in ("sync", "group"):
        model, report = evenorm.convert(nn.Sequential(Activated(3)), to, report=True)
        assert type(model[0]) is Activated
        assert "own" in report.refused[0].refusal


WEIGHTS: dict[str, Any] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "ours, weight_norm": evenorm.weight_norm,
    "ours, spectral_norm": evenorm.spectral_norm,
    "hooks, spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_made_plain_and_back(name: str) -> None:
    model: Any = nn.Sequential(WEIGHTS[name](nn.Conv1d(3, 4, 3)), nn.ReLU(), nn.Conv1d(4, 2, 3)).eval()
    before, x = bits(model), image(1)
    expected = model(x)
    evenorm.convert(model, "weights")
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    torch.testing.assert_close(model(x), expected)
    assert type(model[0]) is nn.Conv1d
    evenorm.revert(model)
    assert same(bits(model), before)
    torch.testing.assert_close(model(x), expected)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of batch, sync.*got 'bacth'"):
        evenorm.convert(network(), "bacth")  # type: ignore[arg-type]


# Small repairs.


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.InstanceNorm2d(4), evenorm.GhostBatchNorm2d(4, 2)])
def test_dead_biases_are_dropped(norm: nn.Module) -> None:
    model: Any = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()))
    x = image()
    plain = copy.deepcopy(model)
    evenorm.drop_dead_bias(model, x)
    assert model[0].bias is None
    assert model[3].bias is not None
    for mode in (False, True):
        torch.testing.assert_close(model.train(mode)(x), plain.train(mode)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.GroupNorm(1, 4)])
def test_living_biases_stay(norm: nn.Module) -> None:
    model = evenorm.drop_dead_bias(nn.Sequential(nn.Conv2d(3, 4, 3), norm), image())
    assert model[0].bias is not None


def test_momenta_are_turned_and_back() -> None:
    model: Any = nn.Sequential(
        nn.BatchNorm1d(3, momentum=0.99), nn.BatchNorm1d(3, momentum=0.1), nn.BatchNorm1d(3, momentum=None)
    )
    evenorm.fix_momentum(model)
    assert [m.momentum for m in model] == [0.01, 0.1, None]
    evenorm.revert(model)
    assert [m.momentum for m in model] == [0.99, 0.1, None]


def test_groups_for_weight_decay_hold_each_parameter_once() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[2].weight = model[0].weight
    model[3].bias.requires_grad_(False)
    decayed, spared = evenorm.split_weight_decay(model, 0.1)
    assert decayed["params"] == [model[0].weight]
    assert len(spared["params"]) == 5
    torch.optim.AdamW([decayed, spared])
