"""A normalizer that the model does not own.

What it finds:
    A normalizer that runs in the forward but is no submodule: built inside ``forward``, or kept in a plain list or
    dict. It counts where it has parameters that gradients reach, or batch statistics that ``eval()`` cannot stop.

Why it matters:
    ``parameters()``, ``state_dict()``, ``to()``, ``train()`` and ``eval()`` do not see it: its weights are not
    trained or are new in every forward, are not saved, and evaluation normalizes with the batch.

Instead:
    Build it in ``__init__``, in an ``nn.ModuleList`` or ``nn.ModuleDict`` if there are several.

Fix:
    None: the source has to change.

References:
    pytorch/pytorch#46818, pytorch/pytorch#20875
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.strangers import strangers
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Look for normalizers that run and are not listed."""
    for stranger in subject.probe(strangers):
        site = stranger.site
        unstoppable = site.kind == "batch" and site.training and site.remembers
        if not stranger.learns and not unstoppable:
            continue
        where = "is built in every forward" if stranger.anew else "is kept outside the model's submodules"
        harms = [
            "its parameters are not trained or saved" if stranger.learns else "",
            "eval() does not reach it" if unstoppable else "",
        ]
        yield Symptom(
            site.path,
            f"a {site.label} {where}: {' and '.join(filter(None, harms))}",
            "build it in __init__, and keep several in an nn.ModuleList",
            {
                "class": site.label,
                "built anew": stranger.anew,
                "has trainable parameters": stranger.learns,
                "in training after eval()": site.training,
            },
        )


class InForward(nn.Module):
    """Builds its normalizer where it uses it."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 8, 3), kind

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalize."""
        y: Tensor = self.kind(8)(self.conv(x))
        return y.relu()


class InAList(nn.Module):
    """Keeps its normalizers in a plain list."""

    def __init__(self, *norms: nn.Module) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 8, 3), list(norms)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalize."""
        y: Tensor = self.conv(x)
        for norm in self.norms:
            y = norm(y)
        return y


def ailing() -> Iterator[Specimen]:
    """Not among the submodules."""
    images = torch.randn(2, 3, 6, 6)
    yield Specimen("built inside forward", InForward(nn.BatchNorm2d), images)
    yield Specimen("in a plain list", InAList(nn.BatchNorm2d(8)), images)
    yield Specimen("group norms in a plain list", InAList(nn.GroupNorm(2, 8), nn.GroupNorm(4, 8)), images)


def healthy() -> Iterator[Specimen]:
    """Owned, or with nothing to own."""
    images = torch.randn(2, 3, 6, 6)
    model = InAList(nn.GroupNorm(2, 8))
    model.owned = nn.ModuleList(model.norms)
    yield Specimen("in a list, and owned too", model, images)
    yield Specimen("built inside forward without state", InForward(nn.InstanceNorm2d), images)
    teacher = nn.BatchNorm2d(8).eval().requires_grad_(False)
    yield Specimen("a frozen teacher that is hidden on purpose", InAList(teacher), images)
