"""Inference with the statistics of the batch.

What it finds:
    A model that is meant for inference, or a pass without gradients in a training loop, whose batch norms stand in
    training mode; and that a sample's answer does depend on the samples beside it.

Why it matters:
    Predictions change with the batch size and with the order of the samples, a single sample raises or comes out
    wrong, and each prediction moves the running statistics.

Instead:
    ``model.eval()`` before predicting or validating, ``model.train()`` before training goes on.

Fix:
    ``model.eval()``

References:
    csinva/gan-vae-pretrained-pytorch#2, samet-akcay/ganomaly#56, TyXe-BDL/TyXe#21, soumith/dcgan.torch#19,
    ando-khachatryan/HiDDeN#13; on purpose: NVIDIA/pix2pixHD#175
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim import Optimizer

from evenorm.doctor.finding import Fix, Severity, Symptom, counted
from evenorm.doctor.probes.batch_mates import batch_mates
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Ask the model as it stands, and the loop that was watched."""
    if subject.intent == "infer":
        yield from _standing(subject)
    if subject.record is not None:
        yield from _running(subject)


def _standing(subject: Subject) -> Iterator[Symptom]:
    sites = [s for s in subject.sites if s.kind == "batch" and s.training and s.remembers and s.uses_batch()]
    if not sites:
        return
    found = subject.probe(batch_mates)
    if found is not None and not found.depends:
        return
    moved = "" if found is None else f"; a sample's answer moves by {found.change:.2g} of its size with its neighbors"
    yield Symptom(
        sites[0].path,
        f"a model for inference with {counted(len(sites), 'batch norm')} in training mode{moved}",
        "call model.eval() before predicting",
        {"batch norms": len(sites)} | ({} if found is None else {"change of a sample's answer": found.change}),
        Fix("model.eval()", subject.model.eval),
        None if found is not None else "warning",
    )


def _running(subject: Subject) -> Iterator[Symptom]:
    """Passes without gradients, once training has begun, in which a batch norm used the batch."""
    assert subject.record is not None
    norms = [site for site in subject.sites if site.kind == "batch" and site.remembers]
    batch = {site.path for site in norms if site.uses_batch(training=True)}
    begun, passes, path = False, 0, ""
    for step in subject.record:
        guilty = [
            call
            for call in step.calls
            # A recalibration averages on purpose, with momentum None.
            if call.path in batch and call.training and not call.gradients and call.momentum is not None
        ]
        if guilty and begun:
            passes += len({call.forward for call in guilty})
            path = path or guilty[0].path
        begun |= any(forward.backward for forward in step.forwards)
    if passes:
        yield Symptom(
            path,
            f"{counted(passes, 'pass', 'passes')} without gradients ran in training mode: the answers depend on the "
            f"batch, and the running statistics moved",
            "call model.eval() before validating, and model.train() afterwards",
            {"passes": passes},
        )


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def _steps(model: nn.Module, optimizer: Optimizer, validating: bool) -> None:
    """Two epochs of one step, each with a validation."""
    for _ in range(2):
        model.train()
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.train(not validating)
        with torch.no_grad():
            model(torch.randn(4, 3, 8, 8))


def ailing() -> Iterator[Specimen]:
    """No ``eval()``."""
    yield Specimen("a classifier that is served as it was trained", _net(), torch.randn(4, 3, 8, 8), _for_inference)
    yield Specimen("a validation without eval()", _net(), loop=lambda model, opt: _steps(model, opt, False))


def healthy() -> Iterator[Specimen]:
    """``eval()``, and norms that have no need of it."""
    yield Specimen("served after eval()", _net().eval(), torch.randn(4, 3, 8, 8), _for_inference)
    yield Specimen("a validation after eval()", _net(), loop=lambda model, opt: _steps(model, opt, True))
    yield Specimen("it is still in training", _net(), torch.randn(4, 3, 8, 8))
    norms = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    yield Specimen("group norm in training mode", norms, torch.randn(4, 3, 8, 8), _for_inference)
    yield Specimen("batch norms recalibrated without gradients", _net(), loop=_recalibrated)


def _for_inference(model: nn.Module) -> dict[str, object]:
    return {"intent": "infer"}


def _recalibrated(model: nn.Module, optimizer: Optimizer) -> None:
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    torch.optim.swa_utils.update_bn([torch.randn(4, 3, 8, 8)], model)
