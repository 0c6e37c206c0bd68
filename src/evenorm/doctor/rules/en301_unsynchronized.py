"""Several processes, each with a small batch of its own.

What it finds:
    Training on several processes (a process group, or a loader with a distributed sampler) where a batch norm takes
    its statistics from fewer than 32 values of its own process.

Why it matters:
    DistributedDataParallel averages gradients, not statistics: eight processes with two samples each normalize with
    two, not sixteen. The model is worse than on one device with the same total batch.

Instead:
    Synchronized statistics. Where each process has enough values they cost time and win nothing, and some
    detectors train better without them.

Fix:
    Every batch norm synchronizes, with its parameters and statistics (``evenorm.convert(model, "sync")``).

References:
    ultralytics/yolov5#401, open-mmlab/mmdetection#3621, LibreYOLO/libreyolo#531, fundamentalvision/BEVFormer#136,
    pytorch/pytorch#49794; against: facebookresearch/maskrcnn-benchmark#561, TRAILab/CaDDN#72
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from evenorm.doctor.finding import Fix, Severity, Symptom
from evenorm.doctor.probes.geometry import is_synchronized, processes, values_per_statistic
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "warning"

FEW = 32


def check(subject: Subject) -> Iterator[Symptom]:
    """Count processes, and values per statistic on one of them."""
    world = processes(subject)
    if world < 2:
        return
    counts = subject.probe(values_per_statistic)
    for site in subject.sites:
        values = counts.get(site.path, FEW)
        if values >= FEW or is_synchronized(site):
            continue
        yield Symptom(
            site.path,
            f"each of {world} processes normalizes with its own {values} values, not with {world * values} together",
            'synchronize: evenorm.convert(model, "sync") before the model is wrapped',
            {"values per statistic": values, "processes": world, "batch size per process": subject.batch_size},
            Fix('evenorm.convert(model, "sync")', partial(_synchronize, site.module)),
            severity=severity if subject.batch_size is not None else "info",
        )


def _synchronize(module: nn.Module) -> None:
    from evenorm.surgery import convert

    convert(module, "sync")


def _loader(samples: int, per_process: int, replicas: int) -> Any:
    data = TensorDataset(torch.randn(samples, 4))
    if replicas == 1:
        return lambda model: {"loader": DataLoader(data, per_process)}
    sampler: Any = DistributedSampler(data, num_replicas=replicas, rank=0)
    return lambda model: {"loader": DataLoader(data, per_process, sampler=sampler)}


def _network(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 2))


def ailing() -> Iterator[Specimen]:
    """Small parts of a batch."""
    yield Specimen("four processes with four rows each", _network(nn.BatchNorm1d(8)), options=_loader(64, 4, 4))


def healthy() -> Iterator[Specimen]:
    """Together, alone, or large enough."""
    yield Specimen("one process", _network(nn.BatchNorm1d(8)), options=_loader(64, 4, 1))
    yield Specimen("large parts", _network(nn.BatchNorm1d(8)), options=_loader(512, 64, 4))
    yield Specimen("layer norms", _network(nn.LayerNorm(8)), options=_loader(64, 4, 4))
