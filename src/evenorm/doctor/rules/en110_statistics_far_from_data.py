"""Running statistics that are not those of the data.

What it finds:
    With a loader: batch norms whose running mean lies half a standard deviation from that of the loader's batches,
    beyond what batches scatter, or whose running variance is off by a factor of two.

Why it matters:
    The average lags behind weights that move fast, or was gathered on tiny batches or on augmented images. Training
    does not read it; evaluation is wrong from the first layer on, and each layer adds to it.

Instead:
    Recalibrate after training: the population's moments, of a few hundred batches, in one pass. Look at the training
    loader first: data of another domain show the same distance, and want another decision.

Fix:
    ``evenorm.recalibrate(model, loader)``, where the data are the training's. Nothing that is measured here tells
    statistics that are stale from data that are prepared otherwise, so it is not made by itself.

References:
    pytorch/pytorch#4741,
    https://discuss.pytorch.org/t/model-eval-gives-incorrect-loss-for-model-with-batchnorm-layers/7561,
    arXiv:2105.07576
"""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, log
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from evenorm.doctor.finding import Severity, Symptom
from evenorm.doctor.probes.gap import gaps
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "warning"

SHIFT, SCALE = 0.5, log(2)


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare running statistics with the loader's."""
    if subject.loader is None or not any(_is_estimated(site) for site in subject.sites):
        return
    found = subject.probe(gaps)
    for site in subject.sites:
        gap = found.get(site.path)
        if gap is None or not _is_estimated(site):
            continue
        if not (gap.shift > max(SHIFT, 3 * gap.between) or gap.scale > SCALE):
            continue
        yield Symptom(
            site.path,
            f"over {gap.batches} batches the mean lies {gap.shift:.2g} σ from the running mean, "
            f"and the variance differs by a factor of {exp(gap.scale):.2g}",
            "prepare these data as the training's; if they are, recalibrate: evenorm.recalibrate(model, loader)",
            {"shift": gap.shift, "variance ratio": exp(gap.scale), "batches": gap.batches},
        )


def _is_estimated(site: Site) -> bool:
    """Whether the statistics have been gathered: those that have not, or hardly, are EN108's and EN111's."""
    if not site.remembers or site.running_mean is None or site.running_var is None or site.updates == 0:
        return False
    initial = not bool(site.running_mean.any()) and bool((site.running_var == 1).all())
    momentum, updates = site.momentum, site.updates
    young = momentum is not None and updates is not None and (1 - momentum) ** updates > 0.05
    return not initial and not young


def _loader(scale: float) -> Any:
    """Rows of a size, in batches."""
    generator = torch.Generator().manual_seed(0)
    rows = scale * torch.randn(256, 4, generator=generator)
    return lambda model: {"loader": DataLoader(TensorDataset(rows), 32), "intent": "infer"}


def _trained(steps: int, shift: float = 0.0) -> nn.Module:
    linear = nn.Linear(4, 8)
    model = nn.Sequential(linear, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(steps):
            model(torch.randn(32, 4, generator=generator))
        linear.bias.add_(shift)
    return model.eval()


def ailing() -> Iterator[Specimen]:
    """Gathered before something changed."""
    yield Specimen("weights that moved after the average", _trained(60, shift=2.0), options=_loader(1.0))
    yield Specimen("inputs that were scaled otherwise", _trained(60), options=_loader(4.0))


def healthy() -> Iterator[Specimen]:
    """Gathered on these data, or not yet gathered."""
    yield Specimen("trained on such data", _trained(60), options=_loader(1.0))
    yield Specimen("a training that has just begun", _trained(3, shift=2.0).train(), options=_loader(1.0))
    yield Specimen("not trained at all", _trained(0, shift=2.0), options=_loader(1.0))
