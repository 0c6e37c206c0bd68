"""accelerate and revert: the same objects, the same numbers, and fusions that give way where they must."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenorm
from blocks import Residual, images
from evenorm.layers import Layer
from graphs import randomize

TORCH: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(6, eps=1e-3, momentum=None),
    "BatchNorm2d": lambda: nn.BatchNorm2d(6, affine=False),
    "BatchNorm3d": lambda: nn.BatchNorm3d(6, track_running_stats=False),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(6),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "InstanceNorm3d": lambda: nn.InstanceNorm3d(6),
    "GroupNorm": lambda: nn.GroupNorm(3, 6, eps=0.1),
    "LayerNorm": lambda: nn.LayerNorm(5, bias=False),
    "RMSNorm": lambda: nn.RMSNorm(5, eps=0.1),
}
SHAPES = {"1d": (4, 6, 5), "2d": (4, 6, 3, 5), "3d": (4, 6, 2, 3, 5)}


def shape_of(name: str) -> tuple[int, ...]:
    return SHAPES.get(name[-2:], (4, 6, 5))


@pytest.mark.parametrize("name", TORCH)
def test_layers_stay_the_objects_they_are(name: str) -> None:
    layer = randomize(TORCH[name]()).double()
    layer.train()
    calls: list[str] = []
    layer.register_forward_hook(lambda *_: calls.append("called"))
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
        break
    model, twin = nn.Sequential(layer), copy.deepcopy(layer)
    tensors, keys = [*layer.parameters(), *layer.buffers()], list(model.state_dict())
    optimizer = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)

    accelerated, report = evenorm.accelerate(model, report=True)
    assert accelerated is model
    assert model[0] is layer
    assert isinstance(layer, Layer)
    assert isinstance(layer, getattr(nn, name))
    assert report.count("replaced") == 1
    assert all(a is b for a, b in zip([*layer.parameters(), *layer.buffers()], tensors, strict=True))
    assert list(model.state_dict()) == keys
    assert layer.training
    x = torch.randn(shape_of(name), dtype=torch.float64, requires_grad=True)
    y = model(x)
    calls.clear()
    torch.testing.assert_close(y, twin(x))
    assert calls == ["called"]
    if any(p.requires_grad for p in layer.parameters()):
        (y * torch.randn_like(y)).sum().backward()
        old = [p.clone() for p in layer.parameters() if p.requires_grad]
        optimizer.step()
        new = [p for p in layer.parameters() if p.requires_grad]
        assert not any(a.equal(b) for a, b in zip(old, new, strict=True))
    evenorm.revert(model)
    assert type(layer) is getattr(nn, name)
    assert not any(attribute.startswith("_evenorm") for attribute in layer.__dict__)


# Foreign classes, by structure and behavior.


class Scaled(nn.Module):
    """Llama's: rounded before it is scaled."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.weight, self.some_eps = nn.Parameter(torch.ones(size)), 1e-4

    def normalized(self, x: Tensor) -> Tensor:
        x = x.float() if x.dtype != torch.float64 else x
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.some_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normalized(x).to(x.dtype)


class OnePlus(Scaled):
    """Gemma's: 1 + weight, scaled before it is rounded."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.normalized(x) * (1 + self.weight.float())).to(x.dtype)


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ByAbsolute(Scaled):
    def normalized(self, x: Tensor) -> Tensor:
        return x / (x.abs().mean(-1, keepdim=True) + self.some_eps)


class Gated(Scaled):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * gate


@pytest.mark.parametrize(("kind", "offset", "cast"), [(Scaled, 0, "before"), (OnePlus, 1, "after")])
def test_rms_norms_are_recognized_by_what_they_compute(kind: type[nn.Module], offset: float, cast: str) -> None:
    layer: Any = randomize(kind())
    model = nn.Sequential(layer).to(torch.bfloat16)
    x = torch.randn(7, 16).to(torch.bfloat16)
    expected = model(x)
    evenorm.accelerate(model)
    assert type(layer) is evenorm.RMSNorm
    assert layer.weight_offset == offset
    assert layer.cast == cast
    assert layer.recipe.eps == 1e-4
    assert (model(x) == expected).float().mean() > 0.98
    evenorm.revert(model)
    assert type(layer) is kind
    assert model(x).equal(expected)


def test_layer_norm_over_channels_is_recognized() -> None:
    model: Any = randomize(nn.Sequential(ChannelsFirst(6, eps=1e-3)))
    x = torch.randn(2, 6, 3, 4)
    expected = model(x)
    evenorm.accelerate(model, x)
    assert type(model[0]) is evenorm.LayerNorm2d
    torch.testing.assert_close(model(x), expected)


class BatchAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a dropout and an activation inside."""

    def __init__(self, features: int, act: nn.Module) -> None:
        super().__init__(features)
        self.drop, self.act = nn.Identity(), act

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class GroupAct(nn.GroupNorm):
    """As timm's GroupNormAct: other order of arguments, flags of its own."""

    def __init__(self, channels: int, groups: int, act: nn.Module) -> None:
        super().__init__(groups, channels)
        self.drop, self.act, self.fast = nn.Identity(), act, False

    def forward(self, x: Tensor) -> Tensor:
        y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return self.act(self.drop(y))


class LayerAct(nn.LayerNorm):
    """As timm's LayerNormAct2d."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels, eps=1e-6)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return self.act(self.drop(y.permute(0, 3, 1, 2)))


class ChannelsRms(nn.Module):
    """As timm's RmsNorm2d."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normalized_shape, self.eps, self.elementwise_affine = (channels,), 1e-6, True
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps)
        return x * scale * self.weight[:, None, None]


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (BatchAct(8, nn.SiLU()), evenorm.layers.batch.FusedBatchNorm2d),
        (BatchAct(8, nn.Identity()), evenorm.BatchNorm2d),
        (GroupAct(8, 4, nn.GELU()), evenorm.GroupNorm),
        (LayerAct(8, nn.ReLU()), evenorm.LayerNorm2d),
        (ChannelsRms(8), evenorm.RMSNorm2d),
    ],
    ids=lambda p: p.__name__ if isinstance(p, type) else type(p).__name__,
)
def test_layers_with_an_activation_inside(layer: nn.Module, kind: type[nn.Module]) -> None:
    model: Any = randomize(nn.Sequential(copy.deepcopy(layer)))
    plain, x = copy.deepcopy(model), images()
    evenorm.accelerate(model, x)
    assert type(model[0]) is kind
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(x), plain.train(mode)(x))
    assert list(model.state_dict()) == list(plain.state_dict())
    # Whose converter knows nothing of the activation must leave it where it is.
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    torch.testing.assert_close(converted(x), plain.eval()(x))
    assert type(evenorm.revert(model)[0]) is type(layer)


def test_an_activation_that_is_none_of_ours_stays() -> None:
    model, report = evenorm.accelerate(nn.Sequential(BatchAct(8, nn.Sigmoid())), images(), report=True)
    assert type(model[0]) is BatchAct
    assert "layers of its own" in report.refused[0].refusal


TIMM = "LayerNorm LayerNorm2d RmsNorm RmsNorm2d BatchNormAct2d GroupNorm1 LayerNormAct LayerNormAct2d RmsNormAct2d"


@pytest.mark.parametrize("name", TIMM.split())
def test_layers_of_timm(name: str) -> None:
    timm: Any = pytest.importorskip(
        "timm", reason="timm, which needs torchvision, is not installed", exc_type=ImportError
    )
    model: Any = randomize(nn.Sequential(getattr(timm.layers, name)(8)))
    x = images() if "2d" in name or "Group" in name else images().movedim(1, -1)
    plain = copy.deepcopy(model)
    evenorm.accelerate(model, x)
    assert isinstance(model[0], Layer)
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize(("kind", "word"), [(ByAbsolute, "none of our"), (Gated, "more than one argument")])
def test_what_computes_something_else_is_left(kind: type[nn.Module], word: str) -> None:
    model, report = evenorm.accelerate(nn.Sequential(kind()), report=True)
    assert type(model[0]) is kind
    assert word in report.refused[0].refusal


# Reports.


def test_a_wrong_fusion_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof of a forward can fail: here the residual is lost."""
    from evenorm.surgery import fuse

    monkeypatch.setattr(fuse, "fused", lambda layer, x, residual, epilogue: epilogue.apply(layer(x)))
    model, report = evenorm.accelerate(randomize(Residual()), images(), report=True)
    assert report.count("adds fused") == 0
    assert "more than rounding" in report.refused[0].refusal
    assert "forward" not in model.__dict__


def test_reports_are_plain_values_and_tables() -> None:
    import json

    from rich.console import Console

    _, report = evenorm.accelerate(Residual(), images(), report=True)
    rows = json.loads(json.dumps(report.to_dict()))["rows"]
    assert {"path", "before", "after", "refusal", "proof"} <= rows[0].keys()
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report)
    assert "2 replaced, 2 activations fused, 1 adds fused" in console.export_text()
