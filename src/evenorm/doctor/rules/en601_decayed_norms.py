"""Weight decay on the normalizers' parameters.

What it finds:
    An optimizer that decays the weights of all normalizers, by the same rule as the matrices.

Why it matters:
    Decay pulls a layer norm's weight towards zero, not towards its neutral value 1. The harm is small and disputed:
    decaying suitable batch norm weights helped in one study (arXiv:2205.07260), so there it is an info. A weight
    that is kept as 1 + w decays to neutral.

Instead:
    No decay for parameters of one axis: ``evenorm.split_weight_decay(model)``.

Fix:
    They go into a group without decay.

References:
    huggingface/transformers#35927 #42754 #10598 #4360, karpathy/minGPT#23, ServiceNow/Fast-LLM#542,
    CyberZHG/keras-bert#60; both sides: arXiv:2205.07260, autrainer/autrainer#166
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.optim import SGD, AdamW

from evenorm.doctor.decay import Decayed, decays, undecay
from evenorm.doctor.finding import Fix, Severity, Symptom, counted
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "warning"


def check(subject: Subject) -> Iterator[Symptom]:
    """Count the decayed ones; where others are spared, EN602 speaks."""
    if subject.optimizer is None:
        return
    found = [d for d in decays(subject.model, subject.sites, subject.optimizer) if d.role == "weight"]
    decayed = [d for d in found if d.decay > 0]
    if not decayed or any(d.decay == 0 and d.own_group for d in found):
        return
    parameters = [d.parameter for d in decayed]
    yield Symptom(
        decayed[0].site.path,
        f"weight decay {decayed[0].decay:g} pulls the weights of {counted(len(decayed), 'normalizer')} towards 0",
        "leave them out of the decay: evenorm.split_weight_decay(model)",
        {"normalizers": len(decayed), "weight decay": decayed[0].decay},
        Fix(
            "optimizer = type(optimizer)(evenorm.split_weight_decay(model), ...)",
            partial(undecay, subject.optimizer, parameters),
        ),
        severity=None if any(_harmed(d) for d in decayed) else "info",
    )


def _harmed(decayed: Decayed) -> bool:
    """Whether zero is far from neutral: not in batch norms, and not where the weight is kept as 1 + w."""
    near_zero = bool(decayed.parameter.detach().abs().median() < 0.5)
    return decayed.site.kind in ("layer", "rms", "group") and not near_zero


def _net(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 2))


def ailing() -> Iterator[Specimen]:
    """One group for everything."""
    yield Specimen(
        "AdamW's default", _net(nn.LayerNorm(8)), options=lambda model: {"optimizer": AdamW(model.parameters())}
    )
    yield Specimen(
        "batch norm, as an info",
        _net(nn.BatchNorm1d(8)),
        options=lambda model: {"optimizer": SGD(model.parameters(), lr=0.1, weight_decay=1e-4)},
    )


def healthy() -> Iterator[Specimen]:
    """No decay on vectors."""
    yield Specimen(
        "no decay at all", _net(nn.LayerNorm(8)), options=lambda m: {"optimizer": SGD(m.parameters(), lr=0.1)}
    )

    def split(model: nn.Module) -> dict[str, object]:
        vectors = [p for p in model.parameters() if p.dim() < 2]
        matrices = [p for p in model.parameters() if p.dim() > 1]
        groups: list[dict[str, object]] = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0},
        ]
        return {"optimizer": AdamW(groups)}

    yield Specimen("vectors in a group of their own", _net(nn.LayerNorm(8)), torch.randn(3, 4), split)
