"""A batch that leaves one value per channel.

What it finds:
    A loader whose last batch has one sample, or a batch size of one, where a batch norm has one value per sample and
    channel; and models that raise for it on the batch at hand.

Why it matters:
    The variance of one value is 0. Torch raises ``Expected more than 1 value per channel when training``, mostly
    in the last step of the first epoch, hours in.

Instead:
    ``drop_last=True``, a batch size that leaves another rest, or a normalizer that does not look at the batch after
    global pooling.

Fix:
    ``drop_last`` of the loader's batch sampler.

References:
    fastai/fastai#1352, meetps/pytorch-semseg#214, VinAIResearch/ISBNet#12, lukasliebel/MultiDepth#3,
    huaifeng1993/DFANet#9, NoamRosenberg/autodeeplab#14, hzhupku/semiseg-ael#3
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from evenorm.doctor.finding import Fix, Severity, Symptom, counted
from evenorm.doctor.rule import Specimen
from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject

severity: Severity = "error"


def check(subject: Subject) -> Iterator[Symptom]:
    """Count the samples of the smallest batch, and what they leave for each channel."""
    if not subject.trains:
        return
    if subject.trace is not None and "Expected more than 1 value per channel" in str(subject.trace.failure):
        yield from _raised(subject)
        return
    smallest, where = _smallest_batch(subject)
    if smallest != 1:
        return
    sites = [site for site in _by_sample(subject) if site.uses_batch(training=True)]
    if sites:
        yield Symptom(
            sites[0].path,
            f"{where} has one sample, which leaves one value per channel to {counted(len(sites), 'batch norm')}: it "
            f"raises",
            "set drop_last=True, or use a normalizer that does not look at the batch there",
            {"batch norms": len(sites), "samples in the smallest batch": 1},
            _drop_last(subject.loader),
        )


def _raised(subject: Subject) -> Iterator[Symptom]:
    samples = subject.inputs.samples if subject.inputs is not None else 0
    known = samples > 1 or subject.batch_size == 1
    paths = [site.path for site in subject.sites if site.kind == "batch" and site.uses_batch(training=True)]
    yield Symptom(
        paths[0] if paths else "",
        f"a batch of {samples} leaves one value per channel to a batch norm: it raises in training",
        "train with more samples, or use a normalizer that does not look at the batch there",
        {"samples": samples},
        # One sample may be all that was at hand for the examination.
        severity=None if known else "info",
    )


def _smallest_batch(subject: Subject) -> tuple[int | None, str]:
    """Samples of the smallest batch of the training, per process, and which batch that is."""
    loader = subject.loader
    drops = getattr(getattr(loader, "batch_sampler", None), "drop_last", False)
    if isinstance(loader, DataLoader) and loader.batch_size and not drops:
        try:
            # A distributed sampler counts its own process's share.
            rest = len(loader.sampler) % loader.batch_size  # type: ignore[arg-type]
        except TypeError:
            return None, ""
        if rest or loader.batch_size == 1:
            return (rest or 1), "the last batch of the loader" if rest else "every batch"
    if subject.batch_size == 1:
        return 1, "every batch"
    return None, ""


def _by_sample(subject: Subject) -> list[Site]:
    """Batch norms that get one value per sample and channel."""
    if subject.trace is None or subject.inputs is None:
        return []
    samples = subject.inputs.samples
    calls = [call for call in subject.trace.calls if call.site.kind == "batch" and not call.recomputed]
    return list({call.site.path: call.site for call in calls if samples and call.values <= samples}.values())


def _drop_last(loader: Any) -> Fix | None:
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, BatchSampler):
        return None
    return Fix("loader.batch_sampler.drop_last = True", partial(setattr, sampler, "drop_last", True))


def _mlp(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 1))


def _loader(samples: int, *, batch_size: int = 4, drop_last: bool = False) -> Any:
    data = TensorDataset(torch.randn(samples, 4))
    return lambda model: {"loader": DataLoader(data, batch_size=batch_size, drop_last=drop_last)}


def ailing() -> Iterator[Specimen]:
    """A rest of one."""
    yield Specimen("nine samples in batches of four", _mlp(nn.BatchNorm1d(8)), options=_loader(9))
    yield Specimen("one at a time", _mlp(nn.BatchNorm1d(8)), torch.randn(4, 4), lambda model: {"batch_size": 1})
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    yield Specimen("a map of 1 × 1", pooled, torch.randn(1, 3, 8, 8), lambda model: {"batch_size": 1})


def healthy() -> Iterator[Specimen]:
    """More than one, or no need of it."""
    yield Specimen("the rest is dropped", _mlp(nn.BatchNorm1d(8)), options=_loader(9, drop_last=True))
    yield Specimen("a rest of two", _mlp(nn.BatchNorm1d(8)), options=_loader(10))
    yield Specimen("no rest", _mlp(nn.BatchNorm1d(8)), options=_loader(8))
    yield Specimen("layer norm needs one sample", _mlp(nn.LayerNorm(8)), options=_loader(9))
    maps = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    yield Specimen("one image has many pixels", maps, torch.randn(1, 3, 8, 8), lambda model: {"batch_size": 1})
