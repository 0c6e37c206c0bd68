"""freeze, convert, recalibrate and the small repairs: what they change, what they keep, what they take back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import update_bn

import evenorm
from evenorm import Moments
from graphs import randomize
from ranks import run_ranks

STATISTICS = ("batch", "ghost", "renorm", "frozen", "sync")


def network(dims: int = 2) -> Any:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    return randomize(nn.Sequential(conv(3, 8, 3), norm(8, momentum=0.3), nn.ReLU(), conv(8, 6, 3), norm(6)))


def image(dims: int = 2, batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, *(9, 8, 7)[:dims])


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(t.dtype == b[n].dtype and t.equal(b[n]) for n, t in a.items())


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


# Recalibrating.


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
