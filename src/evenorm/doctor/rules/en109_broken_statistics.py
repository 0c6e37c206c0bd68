"""Running statistics that are no numbers.

What it finds:
    NaN, infinite or negative running statistics, in the model or in a checkpoint.

Why it matters:
    Training goes on, since it does not read them; evaluation gives NaN. One batch with an overflow is enough: a
    gradient scaler skips the optimizer's step for it, but the batch norm has taken it in.

Instead:
    Update the statistics only from finite batches; then gather them again.

Fix:
    None without data: ``evenorm.recalibrate(model, loader)``.

References:
    pytorch/pytorch#1206 #90342 #11991, facebookresearch/SparseConvNet#190 #105
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evenorm.doctor.checkpoint import Checkpoint
from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Count the channels."""
    checkpoint = None if subject.state_dict is None else Checkpoint.of(subject.model, subject.state_dict)
    for site in subject.sites:
        if not site.remembers:
            continue
        held = (site.running_mean, site.running_var) if checkpoint is None else checkpoint.history(site)
        bad = broken(*held)
        if bad:
            where = "the model" if checkpoint is None else "the checkpoint"
            yield Symptom(
                site.path,
                f"{bad} channels of the running statistics in {where} are not finite, or of negative variance",
                "reset them and gather them again; let only finite batches in",
                {"channels": bad},
            )


def broken(mean: Tensor | None, variance: Tensor | None) -> int:
    """Channels whose statistics cannot be used."""
    if mean is None or variance is None or mean.is_meta:
        return 0
    return int((~mean.isfinite() | ~variance.isfinite() | (variance < 0)).sum())


def _net(mean: float, variance: float) -> nn.Sequential:
    norm = nn.BatchNorm2d(4)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean[1], norm.running_var[2] = mean, variance
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm)


def ailing() -> Iterator[Specimen]:
    """One bad batch."""
    yield Specimen("an overflow", _net(torch.nan, torch.inf), torch.randn(2, 3, 5, 5))
    yield Specimen("a negative variance", _net(0.0, -1e-3))
    good = _net(0.0, 1.0)
    bad = _net(torch.nan, 1.0)

    def spoiled(model: nn.Module) -> dict[str, object]:
        values = bad.state_dict()
        ends = {
            name: next((v for k, v in values.items() if name.endswith(k)), t) for name, t in model.state_dict().items()
        }
        return {"state_dict": ends}

    yield Specimen("in the checkpoint", good, options=spoiled)


def healthy() -> Iterator[Specimen]:
    """Numbers, small ones too."""
    yield Specimen("a variance of zero: a channel that is always the same", _net(0.0, 0.0))
    yield Specimen("large values", _net(1e6, 1e12))
