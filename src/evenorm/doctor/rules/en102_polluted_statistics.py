"""Running statistics that were moved by a pass that was not training.

What it finds:
    Running statistics that move in an evaluation pass; and passes in training mode, before or beside the training,
    whose gradients nobody asked for: warm-ups, shape probes, extra losses.

Why it matters:
    Every pass in training mode moves the running statistics, under ``no_grad`` too. A warm-up with zeros or
    uninitialized memory puts values into them that no data has.

Instead:
    Such passes after ``model.eval()``; or keep the buffers and put them back.

Fix:
    None: which pass was meant is the author's to say.

References:
    ultralytics/ultralytics#14829 (a warm-up with torch.empty), princeton-vl/pytorch_stacked_hourglass#44,
    m2lines/Samudra#572, HorizonRobotics/alf#629
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evenorm.doctor.finding import Severity, Symptom, counted
from evenorm.doctor.probes.purity import impure
from evenorm.doctor.record import Record, SiteCall, Step
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Look at an evaluation pass, and at the loop that was watched."""
    for path in subject.probe(impure):
        yield Symptom(
            path,
            "the running statistics move in an evaluation pass",
            "update them only if self.training",
            {"mode": "eval"},
        )
    if subject.record is not None:
        yield from _running(subject, subject.record)


def _running(subject: Subject, record: Record) -> Iterator[Symptom]:
    norms = [site for site in subject.sites if site.kind == "batch" and site.remembers]
    paths = {site.path for site in norms if site.uses_batch(training=True)}
    warming, unused, first = 0, 0, ""
    begun = False
    for step in record.steps:
        trained = any(forward.backward for forward in step.forwards)
        guilty = {call.forward: call for call in step.calls if _moves(call, step, paths)}
        # Without gradients, once training has begun: that is a validation, EN101's.
        early = {f: c for f, c in guilty.items() if not begun and not c.gradients}
        extra = {f: c for f, c in guilty.items() if trained and c.gradients}
        warming, unused = warming + len(early), unused + len(extra)
        first = first or next((call.path for call in (*early.values(), *extra.values())), "")
        begun |= trained
    if warming or unused:
        yield Symptom(
            first,
            f"{counted(warming + unused, 'pass', 'passes')} outside the training moved the running statistics: "
            f"{warming} before it began, {unused} whose gradients were never asked for",
            "run them after model.eval(), and go on after model.train()",
            {"before training": warming, "without a backward": unused},
        )


def _moves(call: SiteCall, step: Step, paths: set[str]) -> bool:
    if call.path not in paths or not call.training or call.forward is None or call.momentum is None:
        return False
    return call.path in step.updates and not step.forwards[call.forward].backward


class _Careless(nn.Module):
    """Batch norm by hand, which updates its statistics in every mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.careful = False

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 0)
        if self.training or not self.careful:
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(variance, 0.1)
        if not self.training:
            variance, mean = self.running_var, self.running_mean
        return (x - mean) * (variance + 1e-5).rsqrt()


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def _train(model: nn.Module, optimizer: Optimizer) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def _warmed(model: nn.Module, optimizer: Optimizer) -> None:
    with torch.no_grad():
        model(torch.zeros(2, 4))
    _train(model, optimizer)


def _warmed_in_evaluation(model: nn.Module, optimizer: Optimizer) -> None:
    model.eval()
    with torch.no_grad():
        model(torch.zeros(2, 4))
    model.train()
    _train(model, optimizer)


def _logged(model: nn.Module, optimizer: Optimizer) -> None:
    """A second pass only to log its loss."""
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        model(torch.ones(8, 4)).mean()
        optimizer.step()


def _accumulated(model: nn.Module, optimizer: Optimizer) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(3):
            model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def ailing() -> Iterator[Specimen]:
    """Passes that are not training."""
    yield Specimen("a warm-up with zeros", _net(), loop=_warmed)
    yield Specimen("a pass only to log a loss", _net(), loop=_logged)
    yield Specimen("a batch norm by hand that never asks for its mode", _Careless(4), torch.randn(8, 4))


def healthy() -> Iterator[Specimen]:
    """Passes that train, and passes in evaluation."""
    yield Specimen("a warm-up in evaluation", _net(), loop=_warmed_in_evaluation)
    yield Specimen("three passes for one step, each with its gradients", _net(), loop=_accumulated)
    yield Specimen("torch's batch norm", _net(), torch.randn(8, 4))
    careful = _Careless(4)
    careful.careful = True
    yield Specimen("the same by hand, with a look at its mode", careful, torch.randn(8, 4))
