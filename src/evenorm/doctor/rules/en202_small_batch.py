"""Batch statistics of very few values.

What it finds:
    A batch norm whose mean and variance come from fewer than sixteen values in training, on one process. Counted
    are values per channel (batch × positions), not samples. Where the batch size of the training is not known, the
    batch given is counted, and it is an info.

Why it matters:
    The standard error of a mean of n values is σ/√n; of a standard deviation σ/√(2n). At n = 4 every batch is
    normalized with a scale that is wrong by a third, and evaluation with another than training.

Instead:
    Larger batches; normalization within the sample (group, layer); running statistics that are frozen.

Fix:
    None: every way out trains another model. ``evenorm.convert(model, "group")`` keeps γ and β.

References:
    open-mmlab/mmdetection#3621, apple/ml-cvnets#20, jwyang/faster-rcnn.pytorch#170, arXiv:1803.08494
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.geometry import is_synchronized, processes, values_per_statistic
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "warning"

FEW = 16


def check(subject: Subject) -> Iterator[Symptom]:
    """Count values per statistic."""
    counts = subject.probe(values_per_statistic)
    world = processes(subject)
    for site in subject.sites:
        synced = is_synchronized(site)
        values = counts.get(site.path, FEW) * (world if synced else 1)
        # One value is EN201's, and several processes are EN301's.
        if not 1 < values < FEW or (world > 1 and not synced):
            continue
        known = subject.batch_size is not None
        of = f"at batch size {subject.batch_size}" if known else "in this batch"
        yield Symptom(
            site.path,
            f"each mean and variance comes from {values} values {of}: the scale is off by {(2 * values) ** -0.5:.0%}",
            'larger batches, or evenorm.convert(model, "group")',
            {"values per statistic": values, "batch size": subject.batch_size, "processes": world},
            severity=severity if known else "info",
        )


def _size(batch_size: int) -> Any:
    return lambda model: {"batch_size": batch_size}


def ailing() -> Iterator[Specimen]:
    """Few values per channel."""
    rows = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    yield Specimen("four rows at a time", rows, torch.randn(32, 4), options=_size(4))
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(8))
    yield Specimen("two images, pooled to four positions", pooled, torch.randn(2, 3, 9, 9), options=_size(2))


def healthy() -> Iterator[Specimen]:
    """Enough values, or none needed."""
    images = torch.randn(2, 3, 9, 9)
    yield Specimen("two images with many positions", nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), images)
    rows = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    yield Specimen("a small probe for a large batch", rows, torch.randn(4, 4), options=_size(64))
    frozen = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()
    yield Specimen("for inference", frozen, torch.randn(2, 4), options=lambda model: {"intent": "infer"})
    yield Specimen("a layer norm", nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), torch.randn(2, 4), options=_size(2))
