"""An instance norm that takes a batch for one sample.

What it finds:
    An instance norm that gets one axis fewer than its batched input has, and the first of them is the model's batch:
    (N, C) where (N, C, L) was meant.

Why it matters:
    Since torch 1.11 such an input is one unbatched sample (C, L). The samples are taken for channels, and each is
    normalized over its features: another layer than the one that was written, and at most a warning.

Instead:
    ``LayerNorm`` for vectors; or ``unsqueeze(-1)`` if there is an axis to come.

Fix:
    None: it changes the model.

References:
    pytorch/pytorch#11991 #65323 #71371 #4170, arcchang1236/CA-NoiseGAN#3
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare the axes that came with those of the class."""
    if subject.trace is None or subject.inputs is None:
        return
    samples, seen = subject.inputs.samples, set()
    for call in subject.trace.calls:
        site = call.site
        if site.kind != "instance" or site.axes is None or len(call.shape) != site.axes - 1 or site.path in seen:
            continue
        features = getattr(site.module, "num_features", None)
        # A sample alone, without its batch axis, is a legitimate input; its first axis has the channels.
        if samples > 1 and call.shape[0] == samples and features != samples:
            seen.add(site.path)
            yield Symptom(
                site.path,
                f"{site.label} takes the input {call.shape} for one sample with {samples} channels: each sample is "
                f"normalized over its features",
                "use LayerNorm for vectors, or give the input the axis that it lacks",
                {"shape": call.shape, "samples": samples, "channels": features},
            )


def ailing() -> Iterator[Specimen]:
    """Vectors."""
    vectors = nn.Sequential(nn.Linear(4, 8), nn.InstanceNorm1d(8), nn.ReLU())
    yield Specimen("instance norm on vectors", vectors, torch.randn(6, 4))


def healthy() -> Iterator[Specimen]:
    """All axes, or one sample on purpose."""
    yield Specimen("a batch of sequences", nn.InstanceNorm1d(8), torch.randn(6, 8, 5))
    yield Specimen("one image without a batch axis", nn.InstanceNorm2d(3), torch.randn(3, 8, 8))
