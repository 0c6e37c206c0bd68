"""Training in evaluation mode.

What it finds:
    A loop whose optimizer steps while the whole model stands in evaluation mode, though its batch norms or its
    dropout are meant to train; or a model in that state that comes with its optimizer.

Why it matters:
    Batch norms use and keep old statistics, often the initial zeros and ones, and dropout is off. The loss still
    falls; the model is worse. ``from_pretrained`` returns models in evaluation mode, and a validation that does not
    end with ``train()`` leaves them there.

Instead:
    ``model.train()`` at the top of every training epoch.

Fix:
    ``model.train()``

References:
    autogluon/autogluon#4965, ThilinaRajapakse/simpletransformers#941, Lightning-AI/pytorch-lightning#19820,
    tk-rusch/coRNN#1, shubhamagarwal92/mmd#14; on purpose: ShengcaiLiao/QAConv#16
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import SGD, Optimizer

from evenorm.doctor.finding import Fix, Severity, Symptom, counted
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Ask what evaluation mode switches off while the optimizer steps."""
    asleep = _asleep(subject)
    if not asleep or not subject.trains:
        return
    advice = "call model.train() at the top of every epoch"
    if subject.record is not None:
        steps = [step for step in subject.record.steps if any(f.backward for f in step.forwards)]
        wrong = [s for s in steps if not any(f.training for f in s.forwards if f.backward)]
        if wrong:
            yield Symptom(
                "",
                f"{len(wrong)} of {len(steps)} steps were taken in evaluation mode, which switches off {asleep}",
                advice,
                {"steps in evaluation mode": len(wrong), "steps": len(steps)},
            )
    elif subject.optimizer is not None and not subject.model.training:
        yield Symptom(
            "",
            f"the model comes with an optimizer and stands in evaluation mode, which switches off {asleep}",
            advice,
            fix=Fix("model.train()", subject.model.train),
            severity="warning",
        )


def _asleep(subject: Subject) -> str:
    """What would train: batch norms with trainable parameters, dropout that drops."""
    norms = [s for s in subject.sites if s.kind == "batch" and s.remembers and s.uses_batch(training=True)]
    own = [p for site in norms for p in site.parameters.values()]
    frozen = bool(own) and not any(p.requires_grad for p in own)
    dropouts = [m for m in subject.model.modules() if isinstance(m, _DropoutNd) and m.p > 0]
    parts = [
        f"the batch statistics of {counted(len(norms), 'batch norm')}" if norms and not frozen else "",
        counted(len(dropouts), "dropout") if dropouts else "",
    ]
    return " and ".join(filter(None, parts))


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def _train(model: nn.Module, optimizer: Optimizer) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def _forgotten(model: nn.Module, optimizer: Optimizer) -> None:
    model.eval()
    _train(model, optimizer)


def _with_optimizer(model: nn.Module) -> dict[str, object]:
    return {"optimizer": SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)}


def ailing() -> Iterator[Specimen]:
    """The whole model asleep."""
    yield Specimen("a validation before the first epoch, and no train()", _net(), loop=_forgotten)
    yield Specimen("as from_pretrained returns it", _net().eval(), torch.randn(8, 4), _with_optimizer)
    dropout = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 1))
    yield Specimen("dropout off", dropout, loop=_forgotten)


def healthy() -> Iterator[Specimen]:
    """Awake, or asleep on purpose."""
    yield Specimen("training", _net(), loop=_train)
    frozen = _net()
    frozen[1].eval()
    frozen[1].requires_grad_(False)
    yield Specimen("a frozen batch norm in a model that trains", frozen, loop=_train)
    nothing = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    yield Specimen("nothing that a mode would change", nothing, loop=_forgotten)
    yield Specimen("evaluation mode without an optimizer", _net().eval(), torch.randn(8, 4))
