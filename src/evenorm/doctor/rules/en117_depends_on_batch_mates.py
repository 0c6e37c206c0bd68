"""An answer that depends on the other samples of the batch.

What it finds:
    A model in evaluation mode in which a sample's answer changes when other samples stand beside it, though no
    batch norm that the other rules know of is to blame; and the first module in which it does.

Why it matters:
    Results change with the batch size and with shuffling, and nobody can reproduce one prediction alone.

Instead:
    Statistics from the running averages, or per sample. Models that compare samples on purpose (retrieval, sets)
    say so with ``ignore``.

Fix:
    None: the report names the module.

References:
    facebookarchive/C3D#277, pyg-team/pytorch_geometric#9647
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.batch_mates import batch_mates_in_evaluation
from evenorm.doctor.probes.first_divergence import first_divergence
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Change a sample's neighbors."""
    known = [s for s in subject.sites if s.kind == "batch" and s.found == "class" and s.uses_batch(training=False)]
    functional = subject.evaluation.functional if subject.evaluation is not None else []
    told = any(call.name == "batch_norm" and call.arguments.get("training") for call in functional)
    if known or told:
        return
    found = subject.probe(batch_mates_in_evaluation)
    if found is None or not found.depends:
        return
    path = subject.probe(first_divergence)
    norms = {site.path for site in subject.sites}
    yield Symptom(
        path or "",
        f"in evaluation mode a sample's answer moves by {found.change:.2g} of its size with its neighbors, "
        f"first in {path or 'the model'}",
        "take statistics per sample, or from running averages; ignore this where samples are compared on purpose",
        {"change of a sample's answer": found.change, "tolerance": found.tolerance},
        # Elsewhere than in a normalizer it may be what the model is for.
        severity=None if path in norms else "info",
    )


class _Standardized(nn.Module):
    """Features by hand over an axis too many."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes, self.weight = axes, nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, self.axes, keepdim=True)
        return (x - mean) * (variance + 1e-5).rsqrt() * self.weight


class _Drawn(nn.Module):
    """A model that draws at random, in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def ailing() -> Iterator[Specimen]:
    """A normalizer that looks at its neighbors."""
    batch = torch.randn(4, 6, 5) * torch.arange(1, 5).view(4, 1, 1)
    yield Specimen("batch statistics by hand", nn.Sequential(nn.Linear(5, 8), _Standardized((0, 1))), batch)


def healthy() -> Iterator[Specimen]:
    """Each sample for itself."""
    batch = torch.randn(4, 6, 5)
    yield Specimen("the same per position", nn.Sequential(nn.Linear(5, 8), _Standardized((2,))), batch)
    yield Specimen("random answers are no dependence", nn.Sequential(nn.Linear(5, 8), _Drawn()), batch)
    yield Specimen("dropout in training mode", nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Dropout(0.5)), batch)
