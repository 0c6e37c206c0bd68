"""Normalizers as people write them by hand: the specimens that no class name gives away."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ActivatedBatchNorm2d", "FrozenBatchNorm2d", "HandLayerNorm", "HandRMSNorm"]


class HandRMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · (offset + w) over the last axis, computed in ``dtype`` (as it comes, if ``None``)."""

    def __init__(self, size: int, eps: float = 1e-6, *, dtype: torch.dtype | None = None, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset))
        self.eps, self.dtype, self.offset = eps, dtype, offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        wide = x.to(self.dtype or x.dtype)
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (self.offset + self.weight)).to(x.dtype)


class HandLayerNorm(nn.Module):
    """(x − mean) / √(var + ε) · γ + β over the last axis, computed in ``dtype`` (as it comes, if ``None``)."""

    def __init__(self, size: int, eps: float = 1e-5, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.eps, self.dtype = eps, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        wide = x.to(self.dtype or x.dtype)
        centered = wide - wide.mean(-1, keepdim=True)
        y = centered / (centered.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        return (y * self.gamma + self.beta).to(x.dtype)


class ActivatedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with an activation inside, as timm has it."""

    def __init__(self, channels: int, activation: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.act = nn.ReLU() if activation is None else activation

    def forward(self, input: Tensor) -> Tensor:
        """Normalize and activate."""
        y: Tensor = self.act(nn.BatchNorm2d.forward(self, input))
        return y


class FrozenBatchNorm2d(nn.Module):
    """A frozen batch norm: all four of its tensors are buffers."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift."""
        weight, bias, mean, var = (self.get_buffer(n) for n in ("weight", "bias", "running_mean", "running_var"))
        scale = weight * (var + self.eps).rsqrt()
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]
