"""The geometry of batches, and what normalizers make of it: EN201–EN205, EN401, EN606."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from clinic.networks import Images, Rows, images, rows, sgd, step
from clinic.pair import Health, pair
from evenorm.doctor import Examination, Monitor, examine


def _data(samples: int) -> TensorDataset:
    return TensorDataset(torch.randn(samples, 6), torch.randint(4, (samples,)))


@pair("EN201", "fastai/fastai#1352")
def a_last_batch_of_one(health: Health) -> Examination:
    loader = DataLoader(_data(65), batch_size=32, shuffle=True, drop_last=health == "healed")
    return examine(Rows(), loader=loader)


@pair("EN201", "VinAIResearch/ISBNet#12")
def another_batch_size_leaves_no_rest_of_one(health: Health) -> Examination:
    return examine(Rows(), loader=DataLoader(_data(49), batch_size=24 if health == "ailing" else 20))


@pair("EN201", "meetps/pytorch-semseg#214")
def pooled_maps_with_one_image(health: Health) -> Examination:
    class Pyramid(nn.Module):
        """Pools the whole image, as pyramid pooling does."""

        def __init__(self) -> None:
            super().__init__()
            norm = nn.BatchNorm2d(8) if health == "ailing" else nn.GroupNorm(2, 8)
            self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 8, 1, bias=False), norm, nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1, keepdim=True) + self.pooled(x)

    return examine(Pyramid(), torch.randn(1, 3, 8, 8), batch_size=1)


@pair("EN201", "lukasliebel/MultiDepth#3")
def one_image_per_device(health: Health) -> Examination:
    model = nn.Sequential(Images().features, nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    return examine(model, next(images())[0], batch_size=1 if health == "ailing" else 16)


@pair("EN203", "pytorch/pytorch#45687")
def instance_norm_after_global_pooling(health: Health) -> Examination:
    norm = nn.GroupNorm(8 if health == "ailing" else 2, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), norm, nn.Flatten(), nn.Linear(8, 2))
    return examine(model, torch.randn(4, 3, 8, 8))


@pair("EN203", "meta-pytorch/opacus#567")
def a_converter_s_groups(health: Health) -> Examination:
    channels = 16
    groups = min(32, channels) if health == "ailing" else 4
    model = nn.Sequential(nn.Linear(6, channels), nn.GroupNorm(groups, channels), nn.ReLU(), nn.Linear(channels, 2))
    return examine(model, torch.randn(8, 6))


@pair("EN205", "arcchang1236/CA-NoiseGAN#3")
def instance_norm_on_vectors(health: Health) -> Examination:
    norm: nn.Module = nn.InstanceNorm1d(8) if health == "ailing" else nn.LayerNorm(8)
    return examine(nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 6))


@pair("EN205", "pytorch/pytorch#65323")
def instance_norm_behind_a_squeeze(health: Health) -> Examination:
    class Style(nn.Module):
        """Codes of images, normalized."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 8, 3), nn.InstanceNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y.mean(2) if health == "ailing" else y)

    return examine(Style(), torch.randn(6, 3, 10))


@pair("EN401", "milesial/Pytorch-UNet#325")
def a_double_convolution(health: Health) -> Examination:
    bias = health == "ailing"
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)),
    )
    return examine(model, torch.randn(4, 3, 10, 10))


@pair("EN401", "suragnair/alpha-zero-general#73")
def fully_connected_layers(health: Health) -> Examination:
    bias = health == "ailing"
    model = nn.Sequential(nn.Linear(6, 16, bias=bias), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    return examine(model, torch.randn(32, 6))


@pair("EN401", "houqb/SPNet#11")
def strips_joined_before_the_norm(health: Health) -> Examination:
    class Strips(nn.Module):
        """Two convolutions whose sum is normalized."""

        def __init__(self) -> None:
            super().__init__()
            bias = health == "ailing"
            self.rows, self.columns = nn.Conv2d(3, 8, (1, 3), bias=bias), nn.Conv2d(3, 8, (3, 1), bias=False)
            self.norm, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.rows(x)[:, :, 1:-1] + self.columns(x)[..., 1:-1]).relu())

    return examine(Strips(), torch.randn(4, 3, 8, 8))


@pair("EN606", "gpleiss/efficient_densenet_pytorch#73")
def a_bottleneck_computed_twice(health: Health) -> Examination:
    class Dense(nn.Module):
        """A dense layer whose bottleneck is computed again for the backward pass."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1)
            self.head = nn.Conv2d(8, 2, 1)

        def bottleneck(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(x).relu()).relu()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = (
                checkpoint(self.bottleneck, x, use_reentrant=False) if health == "ailing" else self.bottleneck(x)
            )
            return self.head(y)

    return examine(Dense(), next(images())[0].requires_grad_())


@pair("EN606", "pytorch/pytorch#96136")
def a_checkpointed_backbone_in_a_loop(health: Health) -> Examination:
    class Saving(nn.Module):
        """Keeps no activations of its body."""

        def __init__(self) -> None:
            super().__init__()
            self.net = Rows(norm=nn.BatchNorm1d if health == "ailing" else nn.LayerNorm)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.net.body, x, use_reentrant=False)
            return self.net.head(y)

    model = Saving()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for x, y in rows():
            step(model, optimizer, x, y)
    return monitor.examination()
