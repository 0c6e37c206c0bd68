"""evenorm: every normalization layer out of one engine.

>>> import torch, evenorm
>>> evenorm.BatchNorm2d(8)(torch.randn(4, 8, 5, 5)).shape
torch.Size([4, 8, 5, 5])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from evenorm.pattern import Pattern, PatternError
from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.moments import Moments
from evenorm.statistics import (
    Accumulated,
    Batch,
    Cumulative,
    Frozen,
    History,
    PerDomain,
    Ramp,
    Renorm,
    Running,
    Synced,
    SyncError,
    lockstep,
)
from evenorm.recipe import Recipe
from evenorm.functional import normalize
from evenorm.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LayerNorm2d,
    Norm,
    RMSNorm,
    RMSNorm2d,
    SyncBatchNorm,
)
from evenorm.weights import spectral_norm, weight_norm
from evenorm.explain import Explanation, explain

if TYPE_CHECKING:
    from evenorm.surgery.accelerate import accelerate, revert
    from evenorm.surgery.convert import convert
    from evenorm.surgery.fold import fold
    from evenorm.surgery.freeze import freeze, unfreeze
    from evenorm.surgery.proof import Proof, ProofError
    from evenorm.surgery.recalibrate import recalibrate
    from evenorm.surgery.report import SurgeryReport
    from evenorm.surgery.tidy import drop_dead_bias, fix_momentum, split_weight_decay
    from evenorm.doctor.examination import Examination
    from evenorm.doctor.examine import examine
    from evenorm.doctor.finding import Finding
    from evenorm.doctor.monitor import Monitor

__all__ = [
    "Accumulated",
    "Affine",
    "Batch",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Cumulative",
    "Epilogue",
    "Examination",
    "Explanation",
    "Finding",
    "Frozen",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "GroupNorm",
    "History",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm2d",
    "Moments",
    "Monitor",
    "Norm",
    "Pattern",
    "PatternError",
    "PerDomain",
    "Proof",
    "ProofError",
    "RMSNorm",
    "RMSNorm2d",
    "Ramp",
    "Recipe",
    "Renorm",
    "Running",
    "SurgeryReport",
    "SyncBatchNorm",
    "SyncError",
    "Synced",
    "accelerate",
    "convert",
    "drop_dead_bias",
    "examine",
    "explain",
    "fix_momentum",
    "fold",
    "freeze",
    "lockstep",
    "normalize",
    "recalibrate",
    "revert",
    "spectral_norm",
    "split_weight_decay",
    "unfreeze",
    "weight_norm",
]

# What works on whole models is loaded when it is first asked for, so that a layer costs no more than a layer.
_LATER = ("surgery", "doctor")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return import_module(f"evenorm.{name}")
    if name in __all__:
        for room in (import_module(f"evenorm.{later}") for later in _LATER):
            if name in room.__all__:
                return getattr(room, name)
    raise AttributeError(f"module 'evenorm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
