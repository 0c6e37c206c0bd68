"""The classes of batch normalization, by what they do and by how many axes they take."""

from __future__ import annotations

from typing import Any

from torch import nn

from evenorm.layers import batch, ghost

__all__ = ["axes_of", "fused_kind", "ghost_kind", "outside_of_torch", "plain_kind"]

_PLAIN: dict[int, type[nn.Module]] = {1: batch.BatchNorm1d, 2: batch.BatchNorm2d, 3: batch.BatchNorm3d}
_FUSED: dict[int, type[nn.Module]] = {1: batch.FusedBatchNorm1d, 2: batch.FusedBatchNorm2d, 3: batch.FusedBatchNorm3d}
_GHOST: dict[int, type[nn.Module]] = {1: ghost.GhostBatchNorm1d, 2: ghost.GhostBatchNorm2d, 3: ghost.GhostBatchNorm3d}
_TORCH: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def axes_of(layer: nn.Module | type[nn.Module]) -> int | None:
    """How many axes of positions a batch norm takes, by its class; ``None`` where the class does not say."""
    kind: Any = layer if isinstance(layer, type) else type(layer)
    for kinds in (_TORCH, _FUSED, _GHOST):
        for axes, one in kinds.items():
            if issubclass(kind, one):
                return axes
    return None


def plain_kind(axes: int) -> type[nn.Module]:
    """Batch normalization that is torch's, too."""
    return _PLAIN[axes]


def fused_kind(axes: int) -> type[nn.Module]:
    """Batch normalization that other people's converters leave alone."""
    return _FUSED[axes]


def ghost_kind(axes: int) -> type[nn.Module]:
    """Ghost batch normalization."""
    return _GHOST[axes]


def outside_of_torch(kind: type[nn.Module]) -> type[nn.Module]:
    """The class for a layer that does more than torch's batch norm, which converters would rebuild without it."""
    axes = axes_of(kind)
    return _FUSED[axes] if axes is not None and issubclass(kind, nn.modules.batchnorm._BatchNorm) else kind
