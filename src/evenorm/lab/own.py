"""A network of the user's own in a comparison, with its batch normalization converted."""

from __future__ import annotations

import copy
from typing import get_args

import torch
from torch import nn

from evenorm.lab.networks import Network
from evenorm.surgery import convert, loading
from evenorm.surgery.convert import Target

__all__ = ["build_own", "is_own", "why_not_own"]

ROWS = ("batch", "layer", "group")
"""Rows that conversion of a network's batch normalization can make."""


def is_own(model: str) -> bool:
    """Whether a model is named by ``module:factory``."""
    return ":" in model


def why_not_own(normalizer: str) -> str | None:
    """Why a row cannot be made of a network of the user's own, or none."""
    return None if normalizer in ROWS else "batch normalization of a network of your own is not converted to it"


def build_own(target: str, normalizer: str, seed: int = 0) -> Network:
    """Make the user's network; every row starts from the same weights.

    Raises:
        ValueError: the target makes no model, or the model has a batch norm that cannot be converted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = copy.deepcopy(loading.model(target, "--model"))
    if not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules()):
        raise ValueError(f"--model {target}: it has no batch normalization to convert")
    kind = next(kind for kind in get_args(Target) if kind == normalizer)
    model, report = convert(model, kind, report=True)
    if report.refused and normalizer != "batch":
        row = report.refused[0]
        raise ValueError(f"--model {target}: {row.path} ({row.before}) stays: {row.refusal}")
    return Network(model)
