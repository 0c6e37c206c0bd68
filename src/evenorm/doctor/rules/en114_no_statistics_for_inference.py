"""A batch norm that keeps no running statistics.

What it finds:
    Batch norms with ``track_running_stats=False``, in a model in which a sample's answer depends on the samples
    beside it in evaluation mode.

Why it matters:
    ``eval()`` cannot help: predictions change with the batch, a single sample raises or comes out wrong, and an
    export keeps the layer in training.

Instead:
    ``track_running_stats=True`` and a recalibration; or a normalizer that does not look at the batch.

Fix:
    None in place: the statistics need data.

References:
    xu-ji/IIC#49, pytorch/pytorch#75252; on purpose in meta-learning and image generation
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from evenorm.doctor.finding import Severity, Symptom, counted
from evenorm.doctor.probes.batch_mates import batch_mates_in_evaluation
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "warning"


def check(subject: Subject) -> Iterator[Symptom]:
    """Find them, and see whether samples depend on each other."""
    # One by hand that cannot keep any is EN117's.
    norms = [s for s in subject.sites if s.kind == "batch" and s.found == "class"]
    sites = [s for s in norms if not s.remembers and s.uses_batch(training=False)]
    if not sites:
        return
    found = subject.probe(batch_mates_in_evaluation)
    if found is not None and not found.depends:
        return
    yield Symptom(
        sites[0].path,
        f"{counted(len(sites), 'batch norm')} without running statistics: evaluation uses the batch's"
        + ("" if found is None else f", and a sample's answer moves by {found.change:.2g} of its size with it"),
        "keep running statistics, or use a normalizer that does not look at the batch",
        {"batch norms": len(sites)} | ({} if found is None else {"change of a sample's answer": found.change}),
        # In training it is a choice; it hurts where the model answers.
        severity="info" if subject.trains else None,
    )


def _net(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU())


def ailing() -> Iterator[Specimen]:
    """The batch's statistics, always."""
    batch = torch.randn(4, 3, 6, 6) * torch.arange(1, 5).view(4, 1, 1, 1)
    own = nn.BatchNorm2d(4, track_running_stats=False)
    yield Specimen("served without statistics", _net(own).eval(), batch, lambda model: {"intent": "infer"})
    yield Specimen("in training", _net(nn.BatchNorm2d(4, track_running_stats=False)), batch)


def healthy() -> Iterator[Specimen]:
    """Statistics that are kept, or need not be."""
    batch = torch.randn(4, 3, 6, 6)
    yield Specimen("batch norm", _net(nn.BatchNorm2d(4)).eval(), batch, lambda model: {"intent": "infer"})
    yield Specimen("instance norm keeps none by default", _net(nn.InstanceNorm2d(4)), batch)
