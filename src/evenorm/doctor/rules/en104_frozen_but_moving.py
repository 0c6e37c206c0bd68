"""A frozen part whose running statistics still move.

What it finds:
    A part of the model in which every parameter is frozen, beside parts that train, whose batch norms stand in
    training mode; and that a training pass moves their statistics.

Why it matters:
    ``requires_grad=False`` does not touch buffers. The "frozen" features drift with every batch, differ between
    training and evaluation, and cannot be reproduced.

Instead:
    ``eval()`` on the frozen batch norms after every ``model.train()``, or ``evenorm.freeze``, which survives it.

Fix:
    ``evenorm.freeze`` for the part.

References:
    pytorch/pytorch#86590, chemprop/chemprop#952, isht7/pytorch-deeplab-resnet#39; on purpose, in momentum encoders:
    lightly-ai/lightly#1438
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Fix, Severity, Symptom, counted
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject
from evenorm.surgery import freeze

severity: Severity = "warning"


def check(subject: Subject) -> Iterator[Symptom]:
    """Look for moving statistics in every part that is frozen as a whole."""
    if not subject.trains:
        return
    for path, part in frozen_parts(subject.model):
        inside = {id(module) for module in part.modules()}
        sites = [s for s in subject.sites if id(s.module) in inside and s.kind == "batch" and s.updates_history()]
        if subject.trace is not None and subject.trace.failure is None:
            sites = [site for site in sites if site.path in subject.trace.updates]
        if not sites or has_trainable_twin(subject.model, part):
            continue
        yield Symptom(
            path,
            f"all parameters are frozen, but the statistics of {counted(len(sites), 'batch norm')} still move",
            "call eval() on them after every model.train()",
            {"batch norms": len(sites), "first": sites[0].path},
            Fix(f"evenorm.freeze(model.get_submodule({path!r}))", partial(freeze, part)),
        )


def frozen_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The largest parts whose parameters, of which there are some, are all frozen, in a model that trains."""
    if not any(p.requires_grad for p in model.parameters()):
        return
    found: list[str] = []
    for path, part in model.named_modules():
        inside_found = any(path == above or path.startswith(f"{above}.") for above in found)
        own = list(part.parameters())
        if own and not inside_found and not any(p.requires_grad for p in own):
            found.append(path)
            yield path, part


def has_trainable_twin(model: nn.Module, part: nn.Module) -> bool:
    """Whether a part of the same shape trains: then this one follows it, as momentum encoders and teachers do."""
    shape = _shape(part)
    return any(
        module is not part and any(p.requires_grad for p in module.parameters()) and _shape(module) == shape
        for module in model.modules()
    )


def _shape(part: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, p.shape) for name, p in part.named_parameters()]


class _Transfer(nn.Module):
    """A frozen backbone and a head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone.requires_grad_(False), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).mean((2, 3)))


class _Momentum(nn.Module):
    """An encoder and its slow copy."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _backbone()
        self.slow = deepcopy(self.encoder).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.encoder(x) * self.slow(x)).mean((1, 2, 3))


def _backbone() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())


def ailing() -> Iterator[Specimen]:
    """``requires_grad_(False)`` and no more."""
    yield Specimen("transfer learning on a frozen backbone", _Transfer(_backbone()), torch.randn(4, 3, 8, 8))
    yield Specimen("the same, without a batch to try", _Transfer(_backbone()))


def healthy() -> Iterator[Specimen]:
    """Still, or moving on purpose."""
    still = _Transfer(_backbone())
    still.backbone.eval()
    yield Specimen("the backbone in evaluation mode", still, torch.randn(4, 3, 8, 8))
    yield Specimen("a momentum encoder, whose statistics are its own", _Momentum(), torch.randn(4, 3, 8, 8))
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
    yield Specimen("a frozen part without statistics", _Transfer(layer), torch.randn(4, 3, 8, 8))
    served = _Transfer(_backbone())
    yield Specimen("a model for inference", served, torch.randn(4, 3, 8, 8), lambda model: {"intent": "infer"})
