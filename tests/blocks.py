"""Modules and networks that surgery is done on, and their bits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphs import randomize

__all__ = ["Chunked", "Functional", "Residual", "bits", "image", "images", "network", "same"]


class Residual(nn.Module):
    """ResNet's block as torchvision writes it: one activation module called twice, an addition in place."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Functional(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, width)

    def forward(self, x: Tensor, scale: float = 1.0, twice: bool = False) -> Tensor:
        y = F.silu(self.norm(x * scale))
        return y * 2 if twice else y


class Chunked(nn.Module):
    """Code that computes with lengths, which symbols alone do not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        pad = int(x.shape[-1]) % 2
        return self.act(self.norm(F.pad(x, (0, pad, 0, 0)))) if pad else self.act(self.norm(x))


def images(batch: int = 4, side: int = 6) -> Tensor:
    return torch.randn(batch, 8, side, side)


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
