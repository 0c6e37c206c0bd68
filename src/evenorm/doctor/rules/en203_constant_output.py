"""A normalizer whose output is constant.

What it finds:
    Statistics over one single value: instance norm on maps of 1 × 1, group norm with as many groups as channels on
    vectors, layer norm over one feature; and that another input gives the same output.

Why it matters:
    x − mean is 0 for one value, so the output is the bias alone. What follows learns nothing from the input.

Instead:
    Fewer groups, another axis, or no normalizer there.

Fix:
    None: it changes the model.

References:
    pytorch/pytorch#19250 #45687 #108956 #12968, meta-pytorch/opacus#567, ml-explore/mlx#3653
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.constant_output import constant_outputs
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Give it another input."""
    seen = set()
    for call in subject.probe(constant_outputs):
        if call.site.path not in seen:
            seen.add(call.site.path)
            yield Symptom(
                call.site.path,
                f"each statistic is over one value of the input {call.shape}: the output is always the bias",
                "use fewer groups, normalize over another axis, or leave the normalizer out",
                {"values per statistic": call.values, "shape": call.shape},
            )


def ailing() -> Iterator[Specimen]:
    """One value per statistic."""
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.GroupNorm(8, 8))
    yield Specimen("group norm by channel after global pooling", pooled, torch.randn(4, 3, 8, 8))
    yield Specimen(
        "group norm by channel on vectors", nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(8, 8)), torch.randn(4, 4)
    )
    yield Specimen("layer norm over one feature", nn.Sequential(nn.Linear(4, 1), nn.LayerNorm(1)), torch.randn(4, 4))


def healthy() -> Iterator[Specimen]:
    """More than one value."""
    yield Specimen("group norm by channel on maps", nn.GroupNorm(8, 8), torch.randn(4, 8, 5, 5))
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.GroupNorm(2, 8))
    yield Specimen("groups of four after global pooling", pooled, torch.randn(4, 3, 8, 8))
    yield Specimen("an RMS norm over one feature keeps its sign", nn.RMSNorm(1), torch.randn(4, 1))
