"""A normalizer that divides by zero.

What it finds:
    A normalizer whose eps is zero, or is not used: a constant input (a channel without variance, where running
    statistics normalize) gives NaN or infinity in float32.

Why it matters:
    Dead channels, padding and blank images are constant. The first of them makes every weight NaN; a frozen
    normalizer gives 1e21. Torch refuses an eps of zero since 2.10.

Instead:
    1e-5 inside the root: ``x / sqrt(var + eps)``.

Fix:
    eps becomes 1e-5 in place, where the module names one.

References:
    torchcvnn/torchcvnn#32, pytorch/vision#1947, pytorch/vision#2190, pytorch/pytorch#173337
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.handwritten import FrozenBatchNorm2d, HandLayerNorm, HandRMSNorm
from evenorm.doctor.mending import with_eps
from evenorm.doctor.probes.precision import precision
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"

SAFE = 1e-5


def check(subject: Subject) -> Iterator[Symptom]:
    """Give each normalizer a constant input."""
    results = subject.probe(precision)
    for site in subject.sites:
        seen, eps = results.get(site.path), site.eps
        # Torch's own layers refuse to run with it.
        refused = site.kind == "batch" and site.found == "class" and eps is not None and eps <= 0
        if not refused and (seen is None or seen.constant):
            continue
        if any(value is not None and not value.isfinite().all() for value in (site.running_mean, site.running_var)):
            # What it gives says nothing about eps then.
            continue
        input_ = "a constant input" if site.uses_batch() else "a channel without variance"
        cause = "eps is not used" if eps is None or eps > 0 else f"eps is {eps:g}"
        yield Symptom(
            site.path,
            f"{cause}: {'torch refuses to train with it' if refused else f'{input_} gives NaN or infinity'}",
            f"use eps={SAFE:g} inside the root: x / sqrt(var + eps)",
            {"eps": eps, "measured eps": seen.eps if seen is not None else None},
            with_eps(site, SAFE) if eps == 0 else None,
        )


class Unit(nn.Module):
    """Rows of length √d, guarded against zero by torch."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        return functional.normalize(x, dim=-1) * x.shape[-1] ** 0.5


def ailing() -> Iterator[Specimen]:
    """Without eps."""
    yield Specimen("an RMSNorm by hand", nn.Sequential(nn.Linear(4, 8), HandRMSNorm(8, eps=0.0)), torch.randn(2, 4))
    yield Specimen("a frozen batch norm", nn.Sequential(nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8, eps=0.0)))
    yield Specimen("torch's layer", nn.LayerNorm(8, eps=0.0))


def healthy() -> Iterator[Specimen]:
    """With one, or with another guard."""
    yield Specimen("by hand", HandLayerNorm(8, eps=1e-12))
    yield Specimen("frozen", nn.Sequential(nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8, eps=1e-5)))
    yield Specimen("a length that is clamped", nn.Sequential(nn.Linear(4, 16), Unit()))
    yield Specimen("torch's RMSNorm, whose eps is None until it runs", nn.RMSNorm(8))
