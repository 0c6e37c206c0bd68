"""What converters, exporters and fusers do to normalizers: EN305, EN306, EN801, EN802."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import fuse_conv_bn_eval

from clinic.networks import Images, images
from clinic.pair import Health, pair
from evenorm.doctor import Examination, examine


class BatchNormAct2d(nn.BatchNorm2d):
    """Timm's: a batch norm with drop and activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class Net(nn.Module):
    """Two convolutions with a norm each, whose activation may be inside."""

    def __init__(self, norm: type[nn.Module], *, activation: type[nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, 8, 3, bias=False), norm(8), activation()
        self.conv2, self.bn2, self.act2 = nn.Conv2d(8, 8, 3, bias=False), norm(8), activation()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        return self.head(self.act2(self.bn2(self.conv2(x))).mean((2, 3)))


def estimated(model: nn.Module) -> nn.Module:
    """Running statistics of data, and weights that are not one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    for x, _ in images(40):
        model(x)
    return model.eval()


@pair("EN305", "pytorch/pytorch#187298")
def torch_s_converter_and_a_fused_activation(health: Health) -> Examination:
    model = estimated(Net(BatchNormAct2d if health == "ailing" else nn.BatchNorm2d, activation=nn.ReLU))
    return examine(nn.SyncBatchNorm.convert_sync_batchnorm(model), torch.randn(4, 3, 8, 8), intent="infer")


@pair("EN305", "pytorch/pytorch#187298")
def an_activation_in_the_forward(health: Health) -> Examination:
    class Rectified(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu_()

    original = estimated(Net(Rectified if health == "ailing" else nn.BatchNorm2d))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(original))
    return examine(converted, torch.randn(4, 3, 8, 8), reference=original, intent="infer")


class Frozen(nn.Module):
    """A frozen batch norm."""

    def __init__(self, norm: nn.BatchNorm2d, eps: float) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        w, b, m, v = (self.get_buffer(k)[:, None, None] for k in ("weight", "bias", "running_mean", "running_var"))
        scale = w * (v + self.eps).rsqrt()
        return x * scale + (b - m * scale)


@pair("EN306", "huggingface/pytorch-image-models#1631")
def freezing_loses_the_activation(health: Health) -> Examination:
    original = estimated(Net(BatchNormAct2d))
    model = copy.deepcopy(original)
    for name, norm in list(model.named_children()):
        if isinstance(norm, BatchNormAct2d):
            frozen: nn.Module = Frozen(norm, norm.eps)
            setattr(model, name, frozen if health == "ailing" else nn.Sequential(frozen, nn.ReLU()))
    return examine(model, torch.randn(4, 3, 8, 8), reference=original, intent="finetune")


@pair("EN306", "pytorch/vision#2169")
def freezing_takes_another_eps(health: Health) -> Examination:
    original = estimated(Net(nn.BatchNorm2d, activation=nn.ReLU))
    model = copy.deepcopy(original)
    for name, norm in list(model.named_children()):
        if isinstance(norm, nn.BatchNorm2d):
            setattr(model, name, Frozen(norm, 1e-3 if health == "ailing" else norm.eps))
    return examine(model, torch.randn(4, 3, 8, 8), reference=original, intent="finetune")


@pair("EN306", "SlongLiu/query2labels#39")
def groups_for_batches_without_the_activation(health: Health) -> Examination:
    original = Net(BatchNormAct2d)
    model = copy.deepcopy(original)
    for name in ("bn1", "bn2"):
        group = nn.GroupNorm(2, 8)
        setattr(model, name, group if health == "ailing" else nn.Sequential(group, nn.ReLU()))
    return examine(model, torch.randn(4, 3, 8, 8), reference=original)


@pair("EN801", "microsoft/onnxruntime#3873")
def eval_is_forgotten_before_the_export(health: Health) -> Examination:
    model = estimated(Net(nn.BatchNorm2d, activation=nn.ReLU)).train(health == "ailing")
    return examine(model, torch.randn(4, 3, 8, 8), intent="export")


@pair("EN801", "pytorch/pytorch#75252", also=("EN114",))
def an_export_without_running_statistics(health: Health) -> Examination:
    model = Net(lambda c: nn.BatchNorm2d(c, track_running_stats=health == "healed"), activation=nn.ReLU)  # type: ignore[arg-type]
    return examine(estimated(model), torch.randn(4, 3, 8, 8), intent="export")


@pair("EN801", "pytorch/pytorch#49229")
def a_graph_that_was_traced_in_training(health: Health) -> Examination:
    model = estimated(Net(nn.BatchNorm2d, activation=nn.ReLU)).train(health == "ailing")
    x = torch.randn(4, 3, 8, 8)
    traced = torch.jit.trace(model, x, check_trace=False)
    return examine(traced, intent="infer")


class Shared(nn.Module):
    """One convolution for two scales, each with its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.near, self.far = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.far(self.conv(self.near(self.conv(x)).relu()))


@pair("EN802", "pytorch/pytorch#104593")
def torch_s_fuser_and_a_shared_convolution(health: Health) -> Examination:
    original = estimated(Shared())
    fused = fuse(original) if health == "ailing" else copy.deepcopy(original)
    return examine(fused, torch.randn(4, 3, 8, 8), reference=original, intent="infer")


@pair("EN802", "ultralytics/yolov3#807")
def a_fusion_that_forgets_the_mean(health: Health) -> Examination:
    original = estimated(Images())
    fused = copy.deepcopy(original)
    layers = fused.features
    assert isinstance(layers, nn.Sequential)
    for at in (0, 3):
        conv, norm = layers[at], layers[at + 1]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        if health == "ailing":
            assert norm.running_mean is not None
            norm.running_mean.zero_()
        layers[at], layers[at + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return examine(fused, torch.randn(4, 3, 8, 8), reference=original, intent="infer")
