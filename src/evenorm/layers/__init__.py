"""The layers. Each has torch's constructor and state dict, and is one recipe.

Where torch has a layer of the same name ours derives from it, so ``isinstance`` holds and torch's
initializers, optimizers and exporters know it.
"""

from evenorm.layers.batch import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from evenorm.layers.feature import LayerNorm, LayerNorm2d, RMSNorm, RMSNorm2d
from evenorm.layers.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from evenorm.layers.group import GroupNorm
from evenorm.layers.instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from evenorm.layers.layer import Layer
from evenorm.layers.norm import Norm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Layer",
    "LayerNorm",
    "LayerNorm2d",
    "Norm",
    "RMSNorm",
    "RMSNorm2d",
    "SyncBatchNorm",
]
