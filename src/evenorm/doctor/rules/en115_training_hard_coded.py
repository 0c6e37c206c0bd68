"""A batch norm that is told that it trains, always.

What it finds:
    A call of ``torch.nn.functional.batch_norm`` with ``training=True`` in evaluation mode, by a module that is no
    batch norm itself; and that a sample's answer then depends on the samples beside it.

Why it matters:
    ``eval()`` has no effect on the call: predictions change with the batch, and the running statistics keep moving.

Instead:
    ``training=self.training``, or ``nn.BatchNorm2d``, which does that.

Fix:
    None: it is one word in the source.

References:
    AntreasAntoniou/HowToTrainYourMAMLPytorch#3 (there on purpose)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.batch_mates import batch_mates_in_evaluation
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Watch the functions that an evaluation pass calls."""
    if subject.evaluation is None:
        return
    layers = {id(site.module) for site in subject.sites if site.found == "class"}
    paths = [
        call.path
        for call in subject.evaluation.functional
        if call.name == "batch_norm" and call.arguments.get("training") and id(call.module) not in layers
    ]
    if not paths:
        return
    found = subject.probe(batch_mates_in_evaluation)
    if found is not None and found.depends:
        yield Symptom(
            paths[0],
            f"batch_norm is called with training=True in evaluation mode; a sample's answer moves by "
            f"{found.change:.2g} of its size with its neighbors",
            "pass training=self.training",
            {"calls": len(paths), "change of a sample's answer": found.change},
        )


class _Functional(nn.Module):
    """A convolution and a functional batch norm."""

    def __init__(self, training: bool | None) -> None:
        super().__init__()
        self.conv, self.always = nn.Conv2d(3, 4, 3), training
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))
        self.mean: Tensor
        self.variance: Tensor

    def forward(self, x: Tensor) -> Tensor:
        training = self.training if self.always is None else self.always
        return functional.batch_norm(self.conv(x), self.mean, self.variance, training=training)


class _PerSample(nn.Module):
    """Instance norm, written as a batch norm of one long sample."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(1, -1, *x.shape[2:])
        return functional.batch_norm(flat, None, None, training=True).view_as(x)


def ailing() -> Iterator[Specimen]:
    """One word."""
    batch = torch.randn(4, 3, 6, 6) * torch.arange(1, 5).view(4, 1, 1, 1)
    yield Specimen("training=True", _Functional(training=True), batch)


def healthy() -> Iterator[Specimen]:
    """The mode is passed on, or no sample meets another."""
    batch = torch.randn(4, 3, 6, 6)
    yield Specimen("training=self.training", _Functional(training=None), batch)
    yield Specimen("instance norm by way of batch_norm", nn.Sequential(nn.Conv2d(3, 4, 3), _PerSample()), batch)
