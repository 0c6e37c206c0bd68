"""Dropout whose variance a batch norm learns.

What it finds:
    A batch norm whose input varies at least a quarter more with dropout than without, measured on the batch.

Why it matters:
    Dropout keeps the mean and raises the variance, in training alone. The running variance learns the raised one;
    evaluation divides by it and every activation comes out too small. Wide layers hide it, deep ones add it up.

Instead:
    Dropout after the last batch norm, or a normalization without running statistics.

Fix:
    None: where dropout belongs is the network's design.

References:
    arXiv:1801.05134, luigibonati/mlcolvar#205
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.dropout_shift import dropout_shift
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "warning"

SHIFT = 1.25


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare each batch norm's input with and without dropout."""
    if not subject.trains:
        return
    ratios = subject.probe(dropout_shift)
    for site in subject.sites:
        ratio = ratios.get(site.path, 1.0)
        if ratio < SHIFT or not site.remembers or not site.training:
            continue
        yield Symptom(
            site.path,
            f"dropout multiplies the variance of its input by {ratio:.2f} in training, so that evaluation divides by a "
            f"standard deviation {ratio**0.5 - 1:.0%} too large",
            "move dropout behind the last batch norm",
            {"variance with dropout over without": ratio},
        )


def _network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), *layers, nn.ReLU(), nn.Linear(32, 2))


def ailing() -> Iterator[Specimen]:
    """Dropout on the way to a batch norm."""
    about = "half of the inputs dropped before a linear layer"
    yield Specimen(about, _network(nn.Dropout(0.5), nn.Linear(32, 32), nn.BatchNorm1d(32)), torch.randn(128, 8))
    yield Specimen("directly before it", _network(nn.Dropout(0.4), nn.BatchNorm1d(32)), torch.randn(128, 8))


def healthy() -> Iterator[Specimen]:
    """Dropout elsewhere, little of it, or none that shifts."""
    rows = torch.randn(128, 8)
    yield Specimen("behind the batch norm", _network(nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Identity()), rows)
    yield Specimen("a little", _network(nn.Dropout(0.05), nn.Linear(32, 32), nn.BatchNorm1d(32)), rows)
    yield Specimen("before a layer norm", _network(nn.Dropout(0.5), nn.Linear(32, 32), nn.LayerNorm(32)), rows)
    frozen = nn.BatchNorm1d(32).eval()
    yield Specimen("before a batch norm that is frozen", _network(nn.Dropout(0.5), frozen), rows)
