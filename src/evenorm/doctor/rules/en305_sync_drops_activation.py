"""A conversion to SyncBatchNorm that lost what the layer did besides.

What it finds:
    A torch SyncBatchNorm that holds submodules which it never calls, or that stands where the reference has a batch
    norm with a forward of its own, and answers otherwise on random statistics.

Why it matters:
    ``convert_sync_batchnorm`` builds a bare SyncBatchNorm for every subclass of a batch norm. A fused activation
    (timm's BatchNormAct2d) is carried along as a child and never runs again; there is no warning.

Instead:
    The converter of the library that defines the layer, or the activation as a layer of its own.

Fix:
    With the reference: its layer back in place, with the present tensors.

References:
    pytorch/pytorch#187298
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.handwritten import ActivatedBatchNorm2d
from evenorm.doctor.mending import put_back
from evenorm.doctor.probes.equivalence import swaps
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "error"

ADVICE = "convert with the library that defines the layer, or make the activation a layer of its own first"


def check(subject: Subject) -> Iterator[Symptom]:
    """Look at each synchronized norm's children, and at the reference."""
    lost = {swap.after.path: swap for swap in subject.probe(swaps)}
    for site in subject.sites:
        synchronized = isinstance(site.module, nn.SyncBatchNorm)
        if not synchronized or type(site.module).forward is not nn.SyncBatchNorm.forward:
            continue
        swap, idle = lost.get(site.path), _idle(subject, site)
        if swap is not None:
            yield Symptom(
                site.path,
                f"SyncBatchNorm stands for {swap.before.label} and drops what that did besides normalizing: "
                f"relative error {swap.error:.2g} on random statistics",
                ADVICE,
                {"relative error": swap.error, "before": swap.before.label, "uncalled": idle},
                put_back(subject.model, swap.before, site),
            )
        elif idle:
            yield Symptom(
                site.path,
                f"SyncBatchNorm holds {', '.join(idle)} from the layer that it replaced, and never calls "
                f"{'it' if len(idle) == 1 else 'them'}",
                ADVICE,
                {"uncalled": idle},
            )


def _idle(subject: Subject, site: Site) -> list[str]:
    """Children that do something and do not run, neither in the norm's forward nor in a hook of it."""
    children = {name: child for name, child in site.module.named_children() if not isinstance(child, nn.Identity)}
    called: set[nn.Module] = set()
    with subject.experiment(), torch.no_grad():
        for child in children.values():
            child.register_forward_pre_hook(lambda module, args: called.add(module))
        site.module.eval()
        weight = site.weight if site.weight is not None else site.running_mean
        if weight is not None and children:
            site.module(torch.ones(1, weight.numel(), 2, 2).to(weight))
    return [name for name, child in children.items() if child not in called]


class Rectified(nn.BatchNorm2d):
    """A batch norm with an activation in its forward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize and activate."""
        return nn.BatchNorm2d.forward(self, input).relu()


def _converted(norm: nn.Module) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), norm)).eval()


@lru_cache(maxsize=4)
def _with(norm: type[nn.Module], model: nn.Module) -> dict[str, Any]:
    """The reference: other norms in place of the synchronized ones."""
    reference = copy.deepcopy(model)
    for path, module in list(reference.named_modules()):
        if isinstance(module, nn.SyncBatchNorm):
            reference.set_submodule(path, norm(8).eval())
    return {"reference": reference}


def ailing() -> Iterator[Specimen]:
    """Converted by torch."""
    yield Specimen("a fused activation, carried along", _converted(ActivatedBatchNorm2d(8)))
    about = "an activation in the forward, beside the reference"
    yield Specimen(about, _converted(Rectified(8)), options=lambda model: _with(Rectified, model))


def healthy() -> Iterator[Specimen]:
    """Nothing to lose, or not converted."""
    yield Specimen("a plain batch norm", _converted(nn.BatchNorm2d(8)), options=lambda m: _with(nn.BatchNorm2d, m))
    yield Specimen("an identity for an activation", _converted(ActivatedBatchNorm2d(8, nn.Identity())))
    yield Specimen("not converted", nn.Sequential(nn.Conv2d(3, 8, 3), ActivatedBatchNorm2d(8)))
