"""Tracking that was switched off after the running statistics were there.

What it finds:
    ``track_running_stats=False`` on a normalizer that still holds running statistics. What each mode then uses is
    tried out.

Why it matters:
    The flag is read when the layer is built. Set afterwards, training normalizes with the batch and no longer
    updates, evaluation goes on with the old statistics (in an instance norm: with the sample's), and torch has
    changed which several times. It is neither frozen nor batch-only.

Instead:
    To freeze, keep the layer in evaluation: ``evenorm.freeze``, or ``eval()`` after each ``train()``. To use batches
    only, build it with ``track_running_stats=False``.

Fix:
    A batch norm's statistics are frozen properly, whatever the mode; an instance norm's flag becomes true again.

References:
    pytorch/pytorch#20967, pytorch/pytorch#37823, pytorch/pytorch#38084, pytorch/pytorch#60624,
    Lightning-AI/pytorch-lightning#15063
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Fix, Severity, Symptom
from evenorm.doctor.mending import assigned
from evenorm.doctor.probes.alone import alone, answer, sample
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Run each such layer in both modes."""
    for site in subject.sites:
        if getattr(site.module, "track_running_stats", True) or not site.remembers:
            continue
        training, evaluation = (_uses(site, subject, mode) for mode in (True, False))
        if training is None or evaluation is None or (training.updates and not evaluation.updates):
            # It takes no such input, or never asks for the flag.
            continue
        yield Symptom(
            site.path,
            f"track_running_stats was set to False afterwards: training uses {training}, evaluation uses {evaluation}",
            "freeze the layer with evenorm.freeze, or build it with track_running_stats=False",
            {"training": str(training), "evaluation": str(evaluation)},
            _freezing(site) if site.kind == "batch" else assigned(site, "track_running_stats", True),
        )


def _freezing(site: Site) -> Fix:
    return Fix('evenorm.freeze(model, "statistics")', partial(_freeze, site))


def _freeze(site: Site) -> None:
    from evenorm.surgery import freeze

    module: Any = site.module
    module.track_running_stats = True
    freeze(module, "statistics")


@dataclass(frozen=True)
class Use:
    """What normalizes in a mode, and whether running statistics move."""

    source: str
    updates: bool

    def __str__(self) -> str:
        return f"{self.source} and {'moves' if self.updates else 'keeps'} the running ones"


def _uses(site: Site, subject: Subject, training: bool) -> Use | None:
    """Moving the running mean by one shows what normalizes."""
    lone, x = alone(site), sample(site, subject)
    if lone is None or x is None or lone.running_mean is None:
        return None
    lone.module.train(training)
    kept = lone.running_mean.clone()
    before = answer(lone, x)
    updates = not torch.equal(kept, lone.running_mean)
    lone.running_mean.copy_(kept + 1)
    after = answer(lone, x)
    if before is None or after is None:
        return None
    return Use("the batch's statistics" if torch.equal(before, after) else "running statistics", updates)


def _switched_off(norm: Any) -> Any:
    norm.track_running_stats = False
    return norm


class Indifferent(nn.BatchNorm2d):
    """A layer that never asks for the flag."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize."""
        mean, var = self.running_mean, self.running_var
        return nn.functional.batch_norm(input, mean, var, self.weight, self.bias, self.training, 0.1, self.eps)


def ailing() -> Iterator[Specimen]:
    """Switched off afterwards."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), _switched_off(nn.BatchNorm2d(8)))
    yield Specimen("a backbone to be frozen", model, torch.randn(2, 3, 8, 8))
    yield Specimen("an instance norm", _switched_off(nn.InstanceNorm2d(8, track_running_stats=True)))


def healthy() -> Iterator[Specimen]:
    """Built without tracking, or frozen in another way."""
    yield Specimen("built so", nn.BatchNorm2d(8, track_running_stats=False))
    yield Specimen("frozen by its mode", nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    bare = _switched_off(nn.BatchNorm2d(8))
    bare.running_mean = bare.running_var = None
    yield Specimen("its statistics were taken away as well", bare)
    yield Specimen("a layer that never asks for the flag", _switched_off(Indifferent(8)))
