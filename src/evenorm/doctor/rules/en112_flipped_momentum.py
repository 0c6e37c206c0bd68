"""A momentum that was copied from the other convention.

What it finds:
    Running statistics with a momentum from 0.9 to just under 1.

Why it matters:
    In torch momentum is the share of the new batch: running = (1 − momentum)·running + momentum·new. TensorFlow,
    Keras and JAX count the share of the past. Copied over, 0.99 keeps one percent of the past: evaluation uses
    the statistics of about one batch, noisily.

Instead:
    ``momentum=0.01`` where the other framework had 0.99; with evenorm's layers, ``decay=0.99``.

Fix:
    ``1 − momentum``, in place; statistics that were gathered before need new batches or a recalibration.

References:
    pytorch/vision#8250 (shipped in MaxViT), kazuto1011/deeplab-pytorch#79, Cadene/pretrained-models.pytorch#44,
    huggingface/transformers#19454
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from evenorm.doctor.finding import Fix, Severity, Symptom, counted
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject
from evenorm.surgery import fix_momentum

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Ask each running average for its share of the past."""
    flipped: dict[float, list[Site]] = {}
    for site in subject.sites:
        if site.remembers and site.momentum is not None and 0.9 <= site.momentum < 1:
            flipped.setdefault(site.momentum, []).append(site)
    for momentum, sites in flipped.items():
        meant = float(f"{1 - momentum:.6g}")
        yield Symptom(
            sites[0].path,
            f"momentum={momentum:g} keeps {meant:.3g} of the past at each step, in torch's convention, in "
            f"{counted(len(sites), 'layer')}",
            f"write momentum={meant:g} if {momentum:g} of the past should stay",
            {"momentum": momentum, "past kept per step": meant, "layers": len(sites)},
            Fix("evenorm.fix_momentum(model)", partial(fix_momentum, subject.model)),
            # Where nothing trains, nothing is averaged.
            severity=None if subject.trains else "info",
        )


def ailing() -> Iterator[Specimen]:
    """Momenta of TensorFlow."""
    yield Specimen("Keras' default", nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.99)))
    yield Specimen("MaxViT's", nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.9997)), torch.randn(8, 4))


def healthy() -> Iterator[Specimen]:
    """Torch's momenta, and the two that mean something else."""
    yield Specimen("torch's default", nn.BatchNorm2d(8))
    yield Specimen("the last batch alone, as recalibrations set it", nn.BatchNorm2d(8, momentum=1.0))
    yield Specimen("the plain average of all batches", nn.BatchNorm2d(8, momentum=None))
    yield Specimen("a large share of the new batch, on purpose", nn.BatchNorm2d(8, momentum=0.5))
