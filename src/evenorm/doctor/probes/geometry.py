"""How many values each statistic comes from in the training that is meant, on one process."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from evenorm.doctor.sites import Site
from evenorm.doctor.subject import Subject
from evenorm.layers.layer import Layer
from evenorm.statistics import Synced

__all__ = ["is_synchronized", "processes", "values_per_statistic"]


def processes(subject: Subject) -> int:
    """Processes that train together: those of the process group, or as many as the loader's sampler divides by."""
    sampler: Any = getattr(subject.loader, "sampler", None)
    running = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    divided = getattr(sampler, "num_replicas", 1)
    return max(running, divided if isinstance(divided, int) else 1)


def is_synchronized(site: Site) -> bool:
    """Whether a site's statistics are those of all processes."""
    module: Any = site.module
    synced = isinstance(module, Layer) and isinstance(module.statistics, Synced)
    return synced or any(base.__name__ == "SyncBatchNorm" for base in type(module).__mro__)


def values_per_statistic(subject: Subject) -> dict[str, int]:
    """By path, for the batch norms that normalize with the batch: the fewest of all calls.

    The batch is a probe; where the training's batch size is known, the count is taken to it.
    """
    found: dict[str, int] = {}
    trace = subject.trace
    if trace is None or subject.inputs is None or not subject.trains:
        return found
    samples = max(subject.inputs.samples, 1)
    for call in trace.calls:
        site = call.site
        if site.kind != "batch" or not call.training or not site.uses_batch(True) or call.recomputed:
            continue
        rows = max(call.shape[0] * (subject.batch_size or samples) // samples, 1)
        values = site.values((rows, *call.shape[1:]))
        found[site.path] = min(values, found.get(site.path, values))
    return found
