"""Running statistics that still hold a part of their start.

What it finds:
    For a model that shall not be trained further: running statistics after so few updates that more than a
    twentieth of them is the initial 0 and 1. After N updates the share is (1 − momentum)^N, exactly.

Why it matters:
    With a momentum of 0.001 a thousand steps leave a third of the start in place. Training never shows it, since it
    does not read running statistics; evaluation is off in every layer.

Instead:
    A momentum that fits the number of steps, ``momentum=None`` (the plain average), or a recalibration.

Fix:
    None without data: ``evenorm.recalibrate(model, loader)``.

References:
    vacancy/Synchronized-BatchNorm-PyTorch#5, facebookresearch/schedule_free#60, tensorflow/tensorflow#1122
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, log
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "warning"

SHARE = 0.05


def check(subject: Subject) -> Iterator[Symptom]:
    """Count the updates of each running average."""
    if subject.trains and subject.state_dict is None:
        return
    for site in subject.sites:
        momentum, variance = site.momentum, _held(subject, site, site.running_var)
        counter = _held(subject, site, getattr(site.module, "num_batches_tracked", None))
        if momentum is None or not 0 < momentum < 1 or variance is None or counter is None:
            continue
        updates = int(counter)
        left = (1 - momentum) ** updates
        # A variance below that share did not start at one: the counter was reset, or came with other numbers.
        if updates == 0 or left <= SHARE or bool((variance < 0.999 * left).any()):
            continue
        needed = ceil(log(SHARE) / log(1 - momentum))
        yield Symptom(
            site.path,
            f"{updates} updates with momentum={momentum:g} leave {left:.0%} of the initial statistics",
            f"recalibrate (evenorm.recalibrate), train {needed} steps, or raise the momentum",
            {"updates": updates, "momentum": momentum, "share of the start": left, "updates needed": needed},
        )


def _held(subject: Subject, site: Site, buffer: Tensor | None) -> Tensor | None:
    """A buffer, as the checkpoint has it where there is one."""
    if buffer is None or buffer.is_meta:
        return None
    held = (subject.state_dict or {}).get(subject.names.get(id(buffer), ""))
    return buffer if held is None else held


def _trained(steps: int, momentum: float | None, scale: float = 1.0) -> nn.Module:
    """A network after some steps."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(steps):
            model(scale * torch.randn(32, 4, generator=generator))
    return model.eval()


def _infer(model: nn.Module) -> dict[str, Any]:
    return {"intent": "infer"}


def ailing() -> Iterator[Specimen]:
    """Trained for less than the average remembers."""
    yield Specimen("twenty steps with torch's momentum", _trained(20, 0.1, scale=3.0), options=_infer)
    yield Specimen("a momentum of a thousandth", _trained(100, 0.001), options=_infer)


def healthy() -> Iterator[Specimen]:
    """Trained for longer, or counted otherwise."""
    yield Specimen("sixty steps", _trained(60, 0.1), options=_infer)
    yield Specimen("five steps of a plain average", _trained(5, None), options=_infer)
    yield Specimen("a training that has just begun", _trained(3, 0.1).train())
    loaded = nn.BatchNorm1d(8).eval()
    loaded.running_var = torch.full((8,), 0.02)
    loaded.num_batches_tracked = torch.tensor(7)
    yield Specimen("statistics of elsewhere, whose counter was reset", loaded, options=_infer)
