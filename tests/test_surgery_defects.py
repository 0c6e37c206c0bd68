"""Mistakes of other systems: the naive method is wrong here, ours is right or refuses.

Each test names the method and what goes wrong with it.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_eval
from torch.optim.swa_utils import update_bn

import evenorm
from graphs import randomize

WRONG = 1e-2
naive_weights: Any = fuse_conv_bn_weights


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def check_fold(model: nn.Module, x: Tensor, *, folded: int) -> Any:
    expected = model.eval()(x)
    result, report = evenorm.fold(model, x, inplace=False, report=True)
    assert report.count("folded") == folded
    assert len(report.refused) == sum(isinstance(m, nn.modules.batchnorm._NormBase) for m in result.modules())
    assert error(result(x), expected) < 1e-5
    return report


class ConvUsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.bn(self.conv(x))))


def test_reused_convolution() -> None:
    """torch.fx.experimental.optimization.fuse: folded weights leak into the other call (pytorch#104593, #197539)."""
    model, x = randomize(ConvUsedTwice()).eval(), torch.randn(2, 4, 5, 5)
    assert error(fuse(copy.deepcopy(model))(x), model(x)) > WRONG
    report = check_fold(model, x, folded=0)
    assert "output of Conv2d is used elsewhere" in report.refused[0].refusal


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_transposed_convolution_with_groups(kind: Any, groups: int) -> None:
    """torch.nn.utils.fusion.fuse_conv_bn_weights(transpose=True): crash, or wrong where shapes broadcast."""
    dims = int(kind.__name__[-2])
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](4 * groups)
    conv = kind(4 * groups, 4 * groups, 3, groups=groups, stride=2)
    model: Any = randomize(nn.Sequential(conv, norm)).eval()
    x = torch.randn(2, 4 * groups, *(5, 4, 3)[:dims])
    naive = copy.deepcopy(conv)
    statistics: Any = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    try:
        naive.weight, naive.bias = naive_weights(conv.weight, conv.bias, *statistics, transpose=True)
        assert error(naive(x), model(x)) > WRONG
    except RuntimeError as fault:
        assert "size" in str(fault)  # noqa: PT017
    check_fold(model, x, folded=1)


def test_linear_before_a_norm_of_another_axis() -> None:
    """torch.nn.utils.fusion.fuse_linear_bn_eval: Linear acts on the last axis, BatchNorm1d on axis 1 (ao#4116)."""
    model: Any = randomize(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))).eval()
    x = torch.randn(2, 6, 6)
    assert error(fuse_linear_bn_eval(model[0], model[1])(x), model(x)) > WRONG
    report = check_fold(model, x, folded=0)
    assert "another axis" in report.refused[0].refusal
    check_fold(model, torch.randn(5, 6), folded=1)


class Positions(nn.Module):
    """LeViT's: a Linear on (N, L, C), whose normalizer takes positions for samples; or with channels mixed up."""

    def __init__(self, *, mixed: bool = False) -> None:
        super().__init__()
        self.linear, self.norm, self.mixed = nn.Linear(6, 6), nn.BatchNorm1d(6), mixed

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.mixed:
            y = y.unflatten(-1, (2, 3)).transpose(-1, -2)
        return self.norm(y.reshape(-1, 6)).reshape_as(x)


def test_linear_of_positions() -> None:
    """What only moves on the way is followed, and channels that change places are not taken for the same."""
    x = torch.randn(2, 6, 6)
    check_fold(randomize(Positions()).eval(), x, folded=1)
    report = check_fold(randomize(Positions(mixed=True)).eval(), x, folded=0)
    assert "another axis" in report.refused[0].refusal


def naive_by_registration(model: nn.Module) -> nn.Module:
    """mmcv's fuse_conv_bn, in short: a norm is folded into the convolution that was registered last."""
    last: Any = None
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d) and last is not None:
            statistics: Any = (child.running_mean, child.running_var, child.eps, child.weight, child.bias)
            last.weight, last.bias = naive_weights(last.weight, last.bias, *statistics)
            setattr(model, name, nn.Identity())
        elif isinstance(child, nn.Conv2d):
            last = child
    return model


class OutOfOrder(nn.Module):
    """Registered in another order than called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))


def test_registration_order_is_no_data_flow() -> None:
    """mmcv: conv → relu → norm is folded across the activation, and branches are mixed up."""
    x = torch.randn(2, 3, 5, 5)
    across = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))).eval()
    for model, folded in ((across, 0), (randomize(OutOfOrder()).eval(), 2)):
        assert error(naive_by_registration(copy.deepcopy(model))(x), model(x)) > WRONG
        check_fold(model, x, folded=folded)


def test_no_affine() -> None:
    """mmcv: fails where the norm has no weight."""
    model: Any = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))).eval()
    norm = model[1]
    with pytest.raises(TypeError):
        norm.weight / torch.sqrt(norm.running_var + norm.eps)
    check_fold(model, torch.randn(2, 3, 5, 5), folded=1)


def test_transposed_with_as_many_inputs_as_outputs() -> None:
    """inductor's binary folding scales axis 0, which a transposed convolution has its inputs on."""
    model: Any = randomize(nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4))).eval()
    x, (conv, norm) = torch.randn(2, 4, 5, 5), model
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    naive = copy.deepcopy(conv)
    naive.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
    naive.bias = nn.Parameter((conv.bias - norm.running_mean) * scale + norm.bias)
    assert error(naive(x), model(x)) > WRONG
    check_fold(model, x, folded=1)


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.5])
def test_eps_is_the_layers_own(eps: float) -> None:
    """torchao's pattern ignores literals: another eps than the default is replaced by it."""
    model: Any = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=eps, momentum=0.3)))
    x = torch.randn(4, 3, 5, 5)
    naive = copy.deepcopy(model)
    naive[1] = nn.BatchNorm2d(4)
    naive[1].load_state_dict(model[1].state_dict())
    if eps == 0.5:
        assert error(naive.eval()(x), model.eval()(x)) > WRONG
    check_fold(model, x, folded=1)
    for operation in (evenorm.accelerate, evenorm.freeze, lambda m: evenorm.convert(m, "sync")):
        changed = operation(copy.deepcopy(model))
        assert (changed[1].eps, changed[1].momentum) == (eps, 0.3)
        assert error(changed.eval()(x), model.eval()(x)) < 1e-5


class Activated(nn.BatchNorm2d):
    """timm's BatchNormAct2d, in short."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


def test_converted_activation() -> None:
    """timm's convert_splitbn_model, torch's convert_sync_batchnorm: the activation of a subclass vanishes."""
    model: Any = randomize(nn.Sequential(Activated(4))).eval()
    x = torch.randn(2, 4, 5, 5)
    naive = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert naive(x).min() < -WRONG
    for to in ("sync", "ghost", "group"):
        converted, report = evenorm.convert(copy.deepcopy(model), to, report=True)
        assert converted(x).equal(model(x))
        assert report.refused
    accelerated, report = evenorm.accelerate(copy.deepcopy(model), x, report=True)
    assert error(accelerated(x), model(x)) < 1e-5
    assert report.count("replaced") == 1
    whole: Any = nn.Sequential(nn.Conv2d(4, 4, 1), model[0]).eval()
    expected = whole(x)
    folded, report = evenorm.fold(whole, x, report=True)
    assert report.count("folded") == 1
    assert type(folded[1]) is nn.ReLU
    assert error(folded(x), expected) < 1e-5


def test_an_activation_that_is_none_of_ours_is_not_folded() -> None:
    model: Any = randomize(nn.Sequential(nn.Conv2d(4, 4, 1), Activated(4)))
    model[1].act = nn.Sigmoid()
    _, report = evenorm.fold(model.eval(), torch.randn(2, 4, 5, 5), report=True)
    assert "more than a scale and a shift" in report.refused[0].refusal
    assert isinstance(model[1], Activated)


def test_unused_layer() -> None:
    """fvcore's update_bn_stats: a layer that is not reached gets a variance of 0."""
    model: Any = nn.ModuleDict({"used": nn.BatchNorm1d(3), "unused": nn.BatchNorm1d(3)})
    model.forward = lambda x: model["used"](x)
    evenorm.recalibrate(model, [torch.randn(8, 3)])
    assert model["unused"].running_var.equal(torch.ones(3))
    assert not model["used"].running_var.equal(torch.ones(3))


def test_layer_frozen_by_evaluation() -> None:
    """torch's update_bn puts the whole model into training: what was frozen moves."""
    model: Any = randomize(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))).train()
    model[0].eval()
    data, before = [torch.randn(8, 3) + 5], model[0].running_mean.clone()
    naive = copy.deepcopy(model)
    update_bn(data, naive)
    assert (naive[0].running_mean - before).abs().max() > 1
    evenorm.recalibrate(model, data)
    assert model[0].running_mean.equal(before)


def test_interrupted_recalibration() -> None:
    """torch's update_bn: an exception leaves momentum=None and statistics half done."""
    model: Any = randomize(nn.Sequential(nn.BatchNorm1d(3)))

    def data() -> Any:
        yield torch.randn(8, 3)
        raise RuntimeError("disk full")

    naive = copy.deepcopy(model)
    with pytest.raises(RuntimeError):
        update_bn(data(), naive)
    assert naive[0].momentum is None
    state = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        evenorm.recalibrate(model, data())
    assert model[0].momentum == 0.1
    assert all(t.equal(state[name]) for name, t in model.state_dict().items())


def test_group_norm_keeps_the_trained_affine() -> None:
    """Opacus' converter: weight and bias start anew, and eps is the default's."""
    model: Any = randomize(nn.Sequential(nn.BatchNorm2d(8, eps=0.1)))
    naive = nn.GroupNorm(4, 8)
    evenorm.convert(model, "group")
    x = torch.randn(2, 8, 5, 5)
    assert error(naive(x), model(x)) > WRONG
    expected = nn.functional.group_norm(x, 4, model[0].weight, model[0].bias, eps=0.1)
    assert error(model(x), expected) < 1e-5


def test_training_mode_is_refused() -> None:
    """mmcv folds in training, too."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"model\.eval\(\) first"):
        evenorm.fold(model, torch.randn(2, 3, 5, 5))
    model.eval()[1].train()
    _, report = evenorm.fold(model, torch.randn(2, 3, 5, 5), report=True)
    assert "in training" in report.refused[0].refusal


def test_affine_of_layer_norms_goes_into_linear() -> None:
    model: Any = randomize(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5), nn.Tanh(), nn.RMSNorm(5), nn.Linear(5, 4)))
    x = torch.randn(2, 3, 6)
    expected = model.eval()(x)
    folded, report = evenorm.fold(model, x, report=True)
    assert report.count("affines folded") == 2
    assert folded[0].weight is None
    assert error(folded(x), expected) < 1e-5
