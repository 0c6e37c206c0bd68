"""Two passes before a backward, under distributed data parallel.

What it finds:
    A loop in which a model wrapped in ``DistributedDataParallel``, with batch norms and with its default of
    broadcasting buffers, runs a second pass while the first still waits for its gradients.

Why it matters:
    Each pass begins with a broadcast of the buffers, which the first pass's backward may still need: torch 2.6 to
    2.11 raises ``modified by an inplace operation``, and so do older ones in evaluation mode. Later ones keep quiet.

Instead:
    One pass over the concatenated batches, ``forward_sync_buffers=False``, or synchronized batch norm.

Fix:
    ``model.forward_sync_buffers = False``

References:
    pytorch/pytorch#22095 #62474 #65907 #70260 #73332 #110363 #175024 #175851, NVlabs/FUNIT#53, jolibrain/joliGEN#126
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from evenorm.doctor.finding import Fix, Severity, Symptom, counted
from evenorm.doctor.rule import Specimen
from evenorm.doctor.subject import Subject

severity: Severity = "error"

# The first release whose broadcast leaves a waiting backward alone.
QUIET = (2, 12)


def check(subject: Subject) -> Iterator[Symptom]:
    """Look for passes that overlap."""
    if subject.record is None:
        return
    kept = {id(s.module): s for s in subject.sites if s.kind == "batch" and s.remembers}
    for path, wrapper in subject.model.named_modules():
        if not isinstance(wrapper, DistributedDataParallel) or not wrapper.forward_sync_buffers:
            continue
        sites = [kept[id(module)] for module in wrapper.modules() if id(module) in kept]
        passes = sum(f.pending and f.gradients and f.backward for step in subject.record for f in step.forwards)
        if sites and passes:
            yield Symptom(
                path,
                f"{counted(passes, 'pass', 'passes')} began while an earlier one waited for its gradients; each "
                f"broadcasts the statistics of {counted(len(sites), 'batch norm')}",
                "join the batches into one pass, or set forward_sync_buffers=False",
                {"overlapping passes": passes, "batch norms": len(sites)},
                Fix("model.forward_sync_buffers = False", partial(setattr, wrapper, "forward_sync_buffers", False)),
                severity="info" if _version() >= QUIET else None,
            )


def _version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _wrapped(*, broadcast: bool) -> DistributedDataParallel:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    return DistributedDataParallel(net, forward_sync_buffers=broadcast)


def _critic(model: nn.Module, optimizer: Optimizer) -> None:
    """Real and fake, one after the other, and one backward."""
    real: Tensor = model(torch.randn(8, 4))
    fake: Tensor = model(torch.randn(8, 4))
    (fake - real).mean().backward()
    optimizer.step()


def _one_by_one(model: nn.Module, optimizer: Optimizer) -> None:
    for sign in (1, -1):
        (sign * model(torch.randn(8, 4))).mean().backward()
    optimizer.step()


@contextmanager
def _alone() -> Iterator[None]:
    """A process group of this process, unless there is one."""
    if dist.is_initialized():
        yield
        return
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def ailing() -> Iterator[Specimen]:
    """A critic's two passes."""
    with _alone():
        yield Specimen("real and fake before one backward", _wrapped(broadcast=True), loop=_critic)


def healthy() -> Iterator[Specimen]:
    """No broadcast, or nothing that waits."""
    with _alone():
        yield Specimen("no broadcast", _wrapped(broadcast=False), loop=_critic)
        yield Specimen("a backward after each pass", _wrapped(broadcast=True), loop=_one_by_one)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        yield Specimen("one process", net, loop=_critic)
