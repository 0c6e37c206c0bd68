"""M4, statistics gap: how far running statistics lie from those of the data, over many batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from evenorm.doctor.inputs import Inputs
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject
from evenorm.doctor.trace import trace
from evenorm.moments import Moments

__all__ = ["Gap", "gaps"]

BATCHES = 50
# Fewer batches say little about what a loader yields.
FEWEST = 4


@dataclass(frozen=True)
class Gap:
    """Running statistics of one site beside the data's.

    Attributes:
        shift: of the mean, in the data's standard deviations, in the middle channel.
        scale: logarithm of the ratio of variances, without its sign, in the middle channel.
        between: how far the means of single batches scatter, in the same unit.
        batches: how many were seen.
    """

    shift: float
    scale: float
    between: float
    batches: int


def gaps(subject: Subject) -> dict[str, Gap]:
    """By path of each batch norm with running statistics; the loader's batches run as in training, dropout off."""
    if subject.loader is None or not any(s.kind == "batch" and s.remembers for s in subject.sites):
        return {}
    seen: dict[str, list[tuple[Tensor, Tensor, int]]] = {}
    with subject.experiment() as model:
        _training_without_dropout(model)
        for item in islice(subject.loader, BATCHES):
            for call in trace(model, Inputs.loaded(item, model), subject.sites).calls:
                site = call.site
                learns = site.kind == "batch" and call.training and site.remembers and site.uses_batch(True)
                if learns and call.mean is not None and call.variance is not None:
                    seen.setdefault(site.path, []).append((call.mean, call.variance, call.values))
    fewest = min(map(len, seen.values()), default=FEWEST)
    if fewest < FEWEST:
        subject.notes.append(
            "running statistics were not compared with the loader's data: "
            f"it gave {fewest} of at least {FEWEST} batches"
        )
    sites = {site.path: site for site in subject.sites}
    return {path: _gap(sites[path], calls) for path, calls in seen.items() if len(calls) >= FEWEST}


def _training_without_dropout(model: nn.Module) -> None:
    if not model.training:
        model.train()
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.eval()


def _gap(site: Site, calls: list[tuple[Tensor, Tensor, int]]) -> Gap:
    total: Moments | None = None
    for mean, variance, values in calls:
        part = Moments(values, mean.double(), variance.double() * values)
        total = part if total is None else total.merge(part)
    assert total is not None
    assert site.running_mean is not None
    assert site.running_var is not None
    variance = total.variance.clamp_min(1e-30)
    spread = variance.sqrt()
    shift = (site.running_mean.double() - total.mean).abs() / spread
    scale = (site.running_var.double().clamp_min(1e-30) / variance).log().abs()
    between = torch.stack([mean.double() for mean, _, _ in calls]).std(0) / spread
    return Gap(_middle(shift), _middle(scale), _middle(between), len(calls))


def _middle(channels: Tensor) -> float:
    """NaN is as far as it gets."""
    value = float(channels.median())
    return value if math.isfinite(value) else math.inf
