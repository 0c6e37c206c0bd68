"""evenorm: every normalization layer out of one engine.

>>> import torch, evenorm
>>> evenorm.BatchNorm2d(8)(torch.randn(4, 8, 5, 5)).shape
torch.Size([4, 8, 5, 5])
"""

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
from evenorm.surgery import (
    Proof,
    ProofError,
    SurgeryReport,
    accelerate,
    convert,
    drop_dead_bias,
    fix_momentum,
    fold,
    freeze,
    recalibrate,
    revert,
    split_weight_decay,
    unfreeze,
)
from evenorm.doctor import Examination, Finding, Monitor, examine

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
