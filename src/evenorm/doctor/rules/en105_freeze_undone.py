"""A freeze that the next train() undoes.

What it finds:
    Batch norms that are frozen, in evaluation mode and without trainable parameters, in a model in training, and
    that ``model.train()`` puts back into training mode; in a loop, that it did.

Why it matters:
    ``train()`` reaches every module. A freeze made once, before the first epoch, holds for that epoch alone.

Instead:
    Freeze after every ``train()``, override ``train`` in the model, or use ``evenorm.freeze``, which survives it.

Fix:
    ``evenorm.freeze`` for these layers.

References:
    pgniewko/gt-pyg#112, poppinace/indexnet_matting#35, Lightning-AI/pytorch-lightning#21531 #20629 #14277 #13902
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evenorm.doctor.finding import Fix, Severity, Symptom, counted
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject
from evenorm.surgery import freeze

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Call ``train()`` and see who wakes; in a loop, see who woke."""
    norms = [s for s in subject.sites if s.kind == "batch" and s.remembers and s.uses_batch(training=True)]
    still = [site for site in norms if _frozen(site.module)]
    if not still or not subject.trains:
        return
    if subject.record is not None:
        seen: dict[str, list[bool]] = {site.path: [] for site in still}
        for step in subject.record.steps:
            for call in step.calls:
                if call.path in seen and call.gradients:
                    seen[call.path].append(call.training)
        woken = [path for path, modes in seen.items() if False in modes and True in modes[modes.index(False) :]]
        if woken:
            what = "in evaluation mode for some steps, and in training mode for later ones"
            yield _symptom(subject, woken, what, None)
        return
    asleep = [site for site in still if not site.training]
    if not asleep or not subject.model.training:
        return
    with subject.experiment() as model:
        model.train()
        woken = [site.path for site in asleep if site.training and site.uses_batch()]
    if woken:
        yield _symptom(subject, woken, "in evaluation mode, which the next model.train() undoes", "warning")


def _symptom(subject: Subject, paths: list[str], what: str, severity: Severity | None) -> Symptom:
    heal = partial(freeze, subject.model, where=lambda path, layer: path in paths)
    return Symptom(
        paths[0],
        f"{counted(len(paths), 'frozen batch norm')} {what}",
        "freeze them after every train(), override train(), or use evenorm.freeze",
        {"batch norms": len(paths)},
        Fix(f"evenorm.freeze(model, where=lambda path, layer: path in {paths})", heal),
        severity=severity,
    )


def _frozen(norm: nn.Module) -> bool:
    own = list(norm.parameters())
    return bool(own) and not any(p.requires_grad for p in own)


class _Net(nn.Module):
    """A network whose batch norm is frozen once, or for good."""

    def __init__(self, lasting: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8).requires_grad_(False), nn.Linear(8, 1))
        self.lasting = lasting
        self.body[1].eval()

    def train(self, mode: bool = True) -> _Net:
        nn.Module.train(self, mode)
        if self.lasting:
            self.body[1].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _epochs(model: nn.Module, optimizer: Optimizer) -> None:
    for epoch in range(2):
        if epoch:
            model.train()
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def ailing() -> Iterator[Specimen]:
    """Frozen once."""
    yield Specimen("frozen before the first epoch", _Net(lasting=False), loop=_epochs)
    yield Specimen("frozen where it was built", _Net(lasting=False), torch.randn(8, 4))


def healthy() -> Iterator[Specimen]:
    """Frozen for good."""
    yield Specimen("train() is overridden", _Net(lasting=True), torch.randn(8, 4))
    yield Specimen("train() is overridden, in a loop", _Net(lasting=True), loop=_epochs)
    yield Specimen("a whole model in evaluation", _Net(lasting=False).eval(), torch.randn(8, 4))
    trained = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    yield Specimen("nothing is frozen", trained, loop=_epochs)
