"""State dicts both ways with torch's layers, and attributes that are assigned later."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import evenorm
from cases import CASES, Case, case
from evenorm import Running
from evenorm.layers import Layer
from properties import seeded_input

TWINS = pytest.mark.parametrize("case", [c for c in CASES if c.twin], ids=str)
# Of these layers, unlike Norm, there are checkpoints older than the counter.
OLD = pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.make().history is not None and isinstance(c.make(), nn.modules.batchnorm._NormBase)],
    ids=str,
)


def twin_of(case: Case) -> nn.Module:
    assert case.twin is not None
    return case.twin().double()


@TWINS
def test_state_dict_loads_strictly_both_ways(case: Case) -> None:
    ours, theirs = case.layer(), twin_of(case)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict())
    again = case.layer()
    again.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(again.state_dict(), ours.state_dict())
    if type(ours) is not evenorm.Norm:
        assert ours._version == theirs._version


@TWINS
def test_a_network_loads_torchs_checkpoint(case: Case) -> None:
    ours = nn.Sequential(nn.Identity(), case.layer())
    theirs = nn.Sequential(nn.Identity(), twin_of(case))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = seeded_input(case.shape, torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@TWINS
def test_initial_state_is_torchs(case: Case) -> None:
    torch.testing.assert_close(case.make().double().state_dict(), twin_of(case).state_dict())
    moved, twin = case.layer(), twin_of(case)
    for layer in (moved, twin):
        layer.reset_parameters()  # type: ignore[operator]
    torch.testing.assert_close(moved.state_dict(), twin.state_dict())


@OLD
def test_old_checkpoint_without_a_counter(case: Case) -> None:
    """Written before torch 0.4.1: version 1 or none, and no num_batches_tracked."""
    layer = case.make().double()
    state = case.layer().state_dict()
    counted = layer.get_buffer("num_batches_tracked").clone()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = None  # type: ignore[attr-defined]
    layer.load_state_dict(state, strict=True)
    assert layer.get_buffer("running_mean").equal(state["running_mean"])
    assert layer.get_buffer("num_batches_tracked").equal(counted)
    # A plain dictionary has no version at all.
    layer.load_state_dict(dict(state), strict=True)
    layer(seeded_input(case.shape, torch.float64), **case.options(case.shape))


@TWINS
def test_is_the_torch_layer_it_is_named_after(case: Case) -> None:
    ours, theirs = case.make(), twin_of(case)
    if type(ours) is not evenorm.Norm:
        assert isinstance(ours, type(theirs))
        assert type(ours).__name__ == type(theirs).__name__


@TWINS
def test_repr_is_torchs(case: Case) -> None:
    if type(case.make()) is not evenorm.Norm:
        assert repr(case.make()) == repr(twin_of(case))


def test_repr_of_what_torch_lacks() -> None:
    assert "virtual_batch_size=4" in repr(evenorm.GhostBatchNorm1d(6, 4))
    assert "weight_offset=1" in repr(evenorm.RMSNorm(6, weight_offset=1.0))
    assert "cast='before'" in repr(evenorm.RMSNorm(6, cast="before"))
    assert repr(evenorm.Norm("n (g [c]) l", g=2, c=3)) == "Norm('n (g=2 [c=3]) l', affine='g c')"
    assert "statistics=Running(momentum=0.1)" in repr(evenorm.Norm("[n] c", c=3, statistics=Running(0.1)))


def test_ghost_is_no_batch_norm_of_torchs() -> None:
    """Other people's converters rebuild every _BatchNorm as a bare one."""
    assert not isinstance(evenorm.GhostBatchNorm2d(6, 4), nn.modules.batchnorm._BatchNorm)
    state = evenorm.GhostBatchNorm2d(6, 4).state_dict()
    nn.BatchNorm2d(6).load_state_dict(state, strict=True)


def pair() -> tuple[Layer, nn.BatchNorm2d]:
    ours, theirs = case("BatchNorm2d").layer(), nn.BatchNorm2d(6).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    ("name", "value"),
    [("momentum", 0.5), ("momentum", None), ("eps", 0.5), ("track_running_stats", False)],
)
def test_attribute_set_later_takes_effect(name: str, value: object) -> None:
    ours, theirs = pair()
    x = seeded_input((4, 6, 5, 3), torch.float64)
    ours(x)
    theirs(x)
    for layer in (ours, theirs):
        setattr(layer, name, value)
    for training in (True, False):
        mine, torchs = ours.train(training)(x), theirs.train(training)(x)
        torch.testing.assert_close(mine, torchs)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_buffers_taken_away_later(training: bool) -> None:
    """Without running averages a batch norm uses the batch, in evaluation too."""
    ours, theirs = pair()
    x = seeded_input((4, 6, 5, 3), torch.float64)
    for layer in (ours, theirs):
        layer.running_mean = layer.running_var = None
    torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))


def test_weight_taken_away_or_replaced_later() -> None:
    ours, theirs = pair()
    x = seeded_input((4, 6, 5, 3), torch.float64)
    for layer in (ours, theirs):
        layer.weight = nn.Parameter(torch.full((6,), 3.0).double())
    torch.testing.assert_close(ours(x), theirs(x))
    for layer in (ours, theirs):
        layer.weight = layer.bias = None
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["GroupNorm_2", "LayerNorm", "RMSNorm"])
def test_eps_set_later_takes_effect(name: str) -> None:
    ours, theirs = case(name).layer(), twin_of(case(name))
    theirs.load_state_dict(ours.state_dict())
    x = seeded_input(case(name).shape, torch.float64)
    ours(x)
    ours.eps = theirs.eps = 0.5  # type: ignore[assignment]
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["GroupNorm_2", "LayerNorm"])
def test_geometry_set_later_takes_effect(name: str) -> None:
    """Attributes are the truth: torch reads num_groups and normalized_shape at each call."""
    ours, theirs = case(name).layer(), twin_of(case(name))
    x = torch.randn(4, 6, 12, dtype=torch.float64)
    for layer in (ours, theirs):
        layer.weight = layer.bias = None  # type: ignore[assignment]
        if name == "LayerNorm":
            layer.normalized_shape = (6, 12)  # type: ignore[assignment]
        else:
            layer.num_groups = 3  # type: ignore[assignment]
    torch.testing.assert_close(ours(x), theirs(x))


def test_update_bn() -> None:
    """torch's recalibration: it resets, sets momentum to None, and puts it back."""
    torch.manual_seed(0)
    loader = [torch.randn(8, 6, 3, 3) for _ in range(5)]
    ours, theirs = nn.Sequential(evenorm.BatchNorm2d(6)), nn.Sequential(nn.BatchNorm2d(6))
    for model in (ours, theirs):
        update_bn(loader, model)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert ours[0].momentum == 0.1


def test_initializers_and_optimizers_of_others_find_the_layers() -> None:
    """They ask isinstance, and for parameters by name."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), evenorm.BatchNorm2d(6), evenorm.GroupNorm(2, 6), evenorm.RMSNorm(4))
    plain = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    decayed = {n for n, m in model.named_modules() if n and not isinstance(m, plain)}
    assert decayed == {"0"}
    for module in model.modules():
        if isinstance(module, plain):
            nn.init.constant_(module.weight, 0.5)
    assert model.get_parameter("1.weight").tolist() == [0.5] * 6


def test_freezing_by_eval_or_requires_grad() -> None:
    model = nn.Sequential(evenorm.BatchNorm2d(6), nn.Conv2d(6, 6, 1))
    model.train()
    model[0].eval().requires_grad_(False)
    before = {k: v.clone() for k, v in model[0].state_dict().items()}
    model(torch.randn(4, 6, 3, 3)).sum().backward()
    assert model[0].weight.grad is None
    torch.testing.assert_close(model[0].state_dict(), before, rtol=0, atol=0)


def test_half_and_double_move_parameters_and_history() -> None:
    layer = evenorm.BatchNorm2d(6).half()
    assert {t.dtype for t in layer.state_dict().values()} == {torch.float16, torch.int64}
    assert evenorm.BatchNorm2d(6).double().running_var.dtype == torch.float64  # type: ignore[union-attr]
