"""Two populations that take turns in one batch norm.

What it finds:
    A loop in which each step runs several training passes over inputs of different populations (a two-sample test
    over samples), and whose model is later evaluated.

Why it matters:
    Each pass is normalized with its own statistics and leaves its share in one running average: the last pass 0.1,
    the one before 0.09. Evaluation normalizes each population with the mixture.

Instead:
    One pass over the concatenation, or running statistics per population (``evenorm.convert(model,
    PerDomain(...))``). Separate passes of real and generated images are usual for a critic that is never evaluated,
    and are left alone.

Fix:
    None: the loop has to change.

References:
    IsoNet-cryoET/IsoNet2#33, PatrickHua/SimSiam#1, carpedm20/DCGAN-tensorflow#266,
    eriklindernoren/PyTorch-GAN#135; for separate passes: soumith/ganhacks#9
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim import Optimizer

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.populations import Difference, largest_difference
from evenorm.doctor.record import Measured
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject
from evenorm.doctor.trace import Call

severity: Severity = "warning"


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare the passes of each measured step."""
    record = subject.record
    if record is None or not any(not f.training for step in record for f in step.forwards):
        return
    found: dict[str, tuple[int, Difference]] = {}
    for path, steps in record.measured.items():
        for calls in map(_passes, steps):
            worst = largest_difference([call.x for call in calls])
            if worst is not None and (path not in found or worst.evidence > found[path][1].evidence):
                found[path] = (len(calls), worst)
    for path, (passes, worst) in found.items():
        yield Symptom(
            path,
            f"{passes} training passes per step see different populations: {worst}",
            "one pass over the concatenation, or running statistics per population (PerDomain)",
            {"passes": passes, **worst.to_dict()},
        )


def _passes(measured: Measured) -> list[Call]:
    """The training calls of a batch norm in one step, the first of each pass."""
    found: dict[int, Call] = {}
    for noted, call in measured.calls:
        trained = noted.training and noted.gradients and not noted.recomputed and call.site.remembers
        if trained and noted.forward is not None and call.site.kind == "batch":
            found.setdefault(noted.forward, call)
    return list(found.values())


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _trained(model: nn.Module, optimizer: Optimizer, gain: float, passes: int) -> None:
    for _ in range(3):
        first = torch.randn(8, 3, 8, 8)
        second = gain * torch.randn(8, 3, 8, 8)
        batches = [first, second] if passes == 2 else [torch.cat([first, second])]
        sum(model(batch).square().mean() for batch in batches).backward()
        optimizer.step()
        optimizer.zero_grad()


def _evaluated(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model(torch.randn(4, 3, 8, 8))
    model.train()


def _two(model: nn.Module, optimizer: Optimizer) -> None:
    _trained(model, optimizer, 4.0, passes=2)
    _evaluated(model)


def _concatenated(model: nn.Module, optimizer: Optimizer) -> None:
    _trained(model, optimizer, 4.0, passes=1)
    _evaluated(model)


def _pairs(model: nn.Module, optimizer: Optimizer) -> None:
    _trained(model, optimizer, 1.0, passes=2)
    _evaluated(model)


def _critic(model: nn.Module, optimizer: Optimizer) -> None:
    _trained(model, optimizer, 4.0, passes=2)


def ailing() -> Iterator[Specimen]:
    """By turns."""
    yield Specimen("two domains in two passes", _network(), loop=_two)


def healthy() -> Iterator[Specimen]:
    """Together, alike, or never evaluated."""
    yield Specimen("two domains in one pass", _network(), loop=_concatenated)
    yield Specimen("two views of the same images", _network(), loop=_pairs)
    yield Specimen("a critic's real and generated images", _network(), loop=_critic)
