"""A checkpoint without running statistics.

What it finds:
    A checkpoint that has the weights around a batch norm but not its running mean and variance.

Why it matters:
    Saved were ``parameters()``, or adapters alone; the statistics are buffers. The reloaded model is right in
    training and wrong in evaluation, where it uses the initial zeros and ones.

Instead:
    Save ``model.state_dict()``.

Fix:
    None: the numbers are not there. ``evenorm.recalibrate(model, loader)`` gathers them again.

References:
    huggingface/peft#1732 #1734 #3481, torch/nn#1165, NVIDIA/DIGITS#496, fedbiomed/fedbiomed#903
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from evenorm.doctor.checkpoint import Checkpoint
from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Look for the buffers' names."""
    if subject.state_dict is None:
        return
    checkpoint = Checkpoint.of(subject.model, subject.state_dict)
    missing = checkpoint.lacks(subject.sites)
    # Under other names: then nothing was forgotten, but EN703 speaks.
    if missing and not checkpoint.spare_history:
        yield Symptom(
            missing[0].rpartition(".")[0],
            f"the checkpoint lacks {len(missing)} running statistics, {missing[0]} first",
            "save model.state_dict(), which has the buffers too",
            {"missing": len(missing), "first": missing[0]},
        )


def _net(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU())


def ailing() -> Iterator[Specimen]:
    """Parameters alone."""
    yield Specimen("only parameters", _net(nn.BatchNorm2d(8)), options=_parameters)
    yield Specimen("only parameters, no affine", _net(nn.BatchNorm2d(8, affine=False)), options=_parameters)


def healthy() -> Iterator[Specimen]:
    """All of it, or nothing that is missed."""
    yield Specimen("the state dict", _net(nn.BatchNorm2d(8)), options=lambda model: {"state_dict": model.state_dict()})
    yield Specimen(
        "the state dict of a wrapped model",
        _net(nn.BatchNorm2d(8)),
        options=lambda model: {"state_dict": {f"module.{name}": t for name, t in model.state_dict().items()}},
    )
    yield Specimen("group norm has no statistics", _net(nn.GroupNorm(2, 8)), options=_parameters)
    own = nn.BatchNorm2d(8, track_running_stats=False)
    yield Specimen("a batch norm that keeps none", _net(own), options=_parameters)


def _parameters(model: nn.Module) -> dict[str, object]:
    return {"state_dict": dict(model.named_parameters())}
