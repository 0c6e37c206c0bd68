"""Activation checkpointing that updates the statistics twice.

What it finds:
    A batch norm whose running statistics one training pass moves twice, the second time when the backward pass
    computes the checkpointed part again.

Why it matters:
    Each batch enters twice, with momentum 1 − (1 − m)² in effect: a shorter, noisier average. Checkpointed and plain
    training differ, in evaluation alone.

Instead:
    Leave batch norms out of the checkpointed part, or set their momentum to 1 − √(1 − m).

Fix:
    None: whether to move the layer or the momentum is the author's to say.

References:
    pytorch/pytorch#96136 #62471, gpleiss/efficient_densenet_pytorch#73, deepinsight/insightface#2053,
    pfnet/pytorch-pfn-extras#117, facebookresearch/fairscale#1035, m2lines/Samudra#572
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from evenorm.doctor.finding import Severity, Symptom, counted
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "warning"


def check(subject: Subject) -> Iterator[Symptom]:
    """Count the updates of one training pass, or of a step that was watched."""
    updated: dict[str, tuple[int, int]] = {}
    if subject.record is not None:
        for step in subject.record.steps:
            again = [call.path for call in step.calls if call.recomputed]
            updated |= {path: (step.updates.get(path, 0), again.count(path)) for path in again}
    elif subject.trains and subject.trace is not None:
        again = [call.site.path for call in subject.trace.calls if call.recomputed]
        updated = {path: (subject.trace.updates.get(path, 0), again.count(path)) for path in again}
    kept = {site.path: site for site in subject.sites if site.kind == "batch" and site.remembers}
    guilty = {path: n for path, n in updated.items() if path in kept and n[0] > n[1] > 0}
    if guilty:
        path, (updates, repeated) = next(iter(guilty.items()))
        yield Symptom(
            path,
            f"one training step moves the statistics of {counted(len(guilty), 'checkpointed batch norm')} {updates} "
            f"times, {repeated} of them in the backward pass",
            f"leave them out of the checkpointed part, or set momentum={_momentum(kept[path]):.4g}",
            {"batch norms": len(guilty), "updates": updates, "in the backward pass": repeated},
        )


def _momentum(site: Site) -> float:
    """The momentum that, applied twice, is the one that stands."""
    return 1 - math.sqrt(1 - (0.1 if site.momentum is None else site.momentum))


class _Checkpointed(nn.Module):
    """A network whose first part is computed again for the backward pass."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = part, nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.part, x, use_reentrant=False)
        return self.head(y)


def _part(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 8), nn.ReLU())


def _train(model: nn.Module, optimizer: Optimizer) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def ailing() -> Iterator[Specimen]:
    """A batch norm inside."""
    yield Specimen("batch norm in the checkpointed part", _Checkpointed(_part(nn.BatchNorm1d(8))), torch.randn(8, 4))
    yield Specimen("the same, in a loop", _Checkpointed(_part(nn.BatchNorm1d(8))), loop=_train)


def healthy() -> Iterator[Specimen]:
    """Nothing that counts inside."""
    yield Specimen("layer norm in the checkpointed part", _Checkpointed(_part(nn.LayerNorm(8))), torch.randn(8, 4))
    frozen = nn.BatchNorm1d(8).eval()
    yield Specimen("a frozen batch norm in it", _Checkpointed(_part(frozen)), torch.randn(8, 4))
    yield Specimen("no checkpointing", _part(nn.BatchNorm1d(8)), loop=_train)
