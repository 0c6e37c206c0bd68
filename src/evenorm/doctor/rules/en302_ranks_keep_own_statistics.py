"""Running statistics that differ between processes.

What it finds:
    On several ranks (examined on all of them, or by a list of their checkpoints): running statistics that differ
    while all weights agree. It is an error where they lie a tenth of a standard deviation apart, else an info.

Why it matters:
    Data parallel training averages gradients, not buffers: each rank's statistics come from its part of the data.
    The rank that saves decides what the model is, and evaluation on several ranks mixes models.

Instead:
    Average the buffers before evaluating and saving, or synchronize the statistics.

Fix:
    In a process group: the mean of all ranks' means, and the variance of all together.

References:
    mlcommons/training#289, pytorch/pytorch#13711, google/flax#877
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.doctor.finding import Fix, Severity, Symptom
from evenorm.doctor.probes.ranks import ranks
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "error"

APART = 0.1


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare the running statistics of all ranks."""
    found = subject.probe(ranks)
    if found is None or not found.agree_elsewhere:
        return
    for site in subject.sites:
        weights = [found.everywhere(subject.names[id(p)]) for p in site.parameters.values()]
        histories = [found.everywhere(subject.names.get(id(b), "")) for b in (site.running_mean, site.running_var)]
        if not all(histories) or any(not torch.equal(held[0], other) for held in weights for other in held[1:]):
            continue
        means, variances = (torch.stack(held) for held in histories)
        spread = variances.mean(0).clamp_min(1e-30).sqrt()
        shift = float(((means.amax(0) - means.amin(0)) / spread).median())
        ratio = float((variances.amax(0) / variances.amin(0).clamp_min(1e-30)).median())
        if bool((means == means[0]).all()) and bool((variances == variances[0]).all()):
            continue
        live = len(subject.checkpoints) < 2
        yield Symptom(
            site.path,
            f"running statistics of {len(means)} ranks differ: means by {shift:.2g} standard deviations, "
            f"variances by a factor of {ratio:.3g}",
            "average the buffers over the ranks before evaluating and saving, or synchronize the batch norms",
            {"ranks": len(means), "shift": shift, "variance ratio": ratio},
            Fix("average of all ranks' buffers", partial(_merge, site, means, variances)) if live else None,
            severity="error" if shift > APART or ratio > (1 + APART) ** 2 else "info",
        )


def _merge(site: Site, means: Tensor, variances: Tensor) -> None:
    """Parts of one size, as a distributed sampler makes them."""
    assert site.running_mean is not None
    assert site.running_var is not None
    site.running_mean.copy_(means.mean(0))
    site.running_var.copy_(variances.mean(0) + means.var(0, correction=0))


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def _ranks(**moved: float) -> Any:
    """Two checkpoints of the model; in the second some tensors are moved."""

    def options(model: nn.Module) -> dict[str, Any]:
        first = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        last = {name: name.rpartition(".")[2] for name in first}
        second = {name: t + moved[last[name]] if last[name] in moved else t for name, t in first.items()}
        return {"state_dict": [first, second]}

    return options


def ailing() -> Iterator[Specimen]:
    """Statistics of each rank's own part."""
    yield Specimen("means half a deviation apart", _network(), options=_ranks(running_mean=0.5))
    yield Specimen("variances apart", _network(), options=_ranks(running_var=2.0))


def healthy() -> Iterator[Specimen]:
    """The same everywhere, or other models altogether."""
    yield Specimen("the same", _network(), options=_ranks())
    yield Specimen("other counters alone", _network(), options=_ranks(num_batches_tracked=3))
    yield Specimen("parts of a pipeline, which differ in all", _network(), options=_ranks(running_mean=0.5, weight=1.0))
