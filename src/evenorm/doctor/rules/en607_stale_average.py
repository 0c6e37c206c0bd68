"""An averaged model with stale running statistics.

What it finds:
    A copy with averaged weights (EMA, SWA, merged) whose running statistics are not its own: those of the moment at
    which it was copied, while the weights have moved on; on a batch, that they miss the inputs' statistics.

Why it matters:
    The average was taken over ``parameters()``. The statistics fit other weights, and the averaged model, which
    should be the better one, answers near chance in evaluation.

Instead:
    ``torch.optim.swa_utils.update_bn`` or ``evenorm.recalibrate`` after averaging; for an EMA, copy or average the
    buffers too.

Fix:
    None without data.

References:
    CuriousAI/mean-teacher#9, odegeasslbc/FastGAN-pytorch#4 #34, FlyreelAI/sesemi#36, pytorch/ignite#2590 #2592,
    fadel/pytorch_ema#13, mosaicml/composer#624, boschresearch/OASIS#21, facebookresearch/schedule_free#60; averaged
    buffers are fine: huggingface/pytorch-image-models#106 #224
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from evenorm.doctor.finding import Severity, Symptom, counted
from evenorm.doctor.probes.far_statistics import far_statistics
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site, find_sites
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Compare with the model that it averages, and with the inputs."""
    kept = [site for site in subject.sites if site.kind == "batch" and site.remembers]
    stale = _behind(kept, subject.reference) if subject.reference is not None else _copied(subject.model, kept)
    if not stale:
        return
    distances = subject.probe(far_statistics)
    far = [site for site in stale if site.path not in distances or distances[site.path].beyond_noise > FAR]
    if far:
        measured = {"distance": distances[far[0].path].middle} if far[0].path in distances else {}
        yield Symptom(
            far[0].path,
            f"the statistics of {counted(len(far), 'batch norm')} are those of an earlier model"
            + (f", {measured['distance']:.2g} standard deviations from this batch's" if measured else ""),
            "update them after averaging: torch.optim.swa_utils.update_bn(loader, model)",
            {"batch norms": len(far), **measured},
            # Without a batch nobody knows how far they are off.
            severity=None if measured else "info",
        )


# Standard deviations of the input, in the middle channel, beyond what the batch's size explains.
FAR = 0.1


def _behind(sites: list[Site], reference: nn.Module) -> list[Site]:
    """The sites whose weights differ from the trained model's, and whose statistics took in fewer batches."""
    others = {site.path: site for site in find_sites(reference)}
    behind = []
    for site in sites:
        other = others.get(site.path) or others.get(site.path.removeprefix("module."))
        if other is None or site.updates is None or other.updates is None or other.running_mean is None:
            continue
        averaged = any(
            not torch.equal(a, b) for a, b in zip(site.parameters.values(), other.parameters.values(), strict=False)
        )
        if averaged and site.updates < other.updates:
            behind.append(site)
    return behind


def _copied(model: nn.Module, sites: list[Site]) -> list[Site]:
    """The sites inside torch's AveragedModel, which by default averages no buffers."""
    inside = {
        id(part)
        for average in model.modules()
        if isinstance(average, AveragedModel) and not average.use_buffers and int(average.n_averaged) > 1
        for part in average.modules()
    }
    return [site for site in sites if id(site.module) in inside]


@cache
def _data() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(32, 4, generator=generator) * 3 + 2 for _ in range(20))


def _averaged(decay: float) -> tuple[nn.Module, nn.Module]:
    """A trained network, and the exponential average of its parameters alone."""
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    average = deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for x in _data():
        optimizer.zero_grad()
        (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
    return average.eval(), net


def ailing() -> Iterator[Specimen]:
    """Averaged parameters, old buffers."""
    average, net = _averaged(0.9)
    yield Specimen("an EMA of the parameters", average, _data()[0], lambda model: {"reference": _within(model, net)})
    swa = AveragedModel(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
    swa.n_averaged += 5
    yield Specimen("averaged weights without update_bn", swa.eval(), _data()[0], lambda model: {"intent": "infer"})


def healthy() -> Iterator[Specimen]:
    """Buffers that fit."""
    average, net = _averaged(0.9)
    update_bn(_data(), average)
    yield Specimen("with update_bn", average, _data()[0], lambda model: {"reference": _within(model, net)})
    copied, other = _averaged(0.9)
    for slow, fast in zip(copied.buffers(), other.buffers(), strict=True):
        slow.copy_(fast)
    yield Specimen("the model's own buffers", copied, _data()[0], lambda model: {"reference": _within(model, other)})
    swa = AveragedModel(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
    swa.n_averaged += 5
    update_bn(_data(), swa)
    yield Specimen("weight averaging with update_bn", swa.eval(), _data()[0], lambda model: {"intent": "infer"})


def _within(model: nn.Module, net: nn.Module) -> nn.Module:
    """The reference at the same place in a model as large."""
    parts = getattr(model, "parts", None)
    return nn.ModuleDict({"parts": nn.ModuleList([net])}) if parts is not None else net
