"""One of several processes that examine the same model. ``ranks.py`` starts it."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from evenorm.doctor import examine
from evenorm.doctor.probes import ranks

RANK, COUNT = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def statistics_of_each_rank() -> None:
    """Other statistics on each rank are found on each, and averaged by the fix of each."""
    model = network()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert not examine(model, select=["EN302", "EN309"]).findings
    norm.running_mean += RANK
    found = examine(model, select=["EN302", "EN309"])
    assert [(f.code, f.severity, f.path, f.evidence["ranks"]) for f in found] == [("EN302", "error", "1", COUNT)]
    found.fix()
    assert norm.running_mean.tolist() == [(COUNT - 1) / 2] * 8
    assert not examine(model, select=["EN302"]).findings


def weights_that_drift() -> None:
    """Replicated weights that differ are found; parts of a matrix may differ."""
    model = network()
    with torch.no_grad():
        model[1].weight.mul_(1 + 0.01 * RANK)  # type: ignore[operator]
        model[0].weight.add_(RANK)  # type: ignore[operator]
    assert examine(model, select=["EN302", "EN309"]).codes == ("EN309",)


def a_rank_alone() -> None:
    """Nothing hangs where only one rank examines, and the next examination of all is not confused by it."""
    patience, ranks.PATIENCE = ranks.PATIENCE, timedelta(seconds=1)
    if RANK == 0:
        began = time.perf_counter()
        found = examine(network(), select=["EN302"])
        assert time.perf_counter() - began < 5
        assert any("all of them" in note for note in found.notes)
    ranks.PATIENCE = patience
    dist.barrier()
    found = examine(network(), select=["EN302"])
    assert not found.findings
    assert not found.notes


def main() -> None:
    store = dist.FileStore(  # type: ignore[attr-defined]
        os.environ["STORE"], COUNT
    )
    dist.init_process_group("gloo", store=store, rank=RANK, world_size=COUNT, timeout=timedelta(seconds=30))
    statistics_of_each_rank()
    weights_that_drift()
    a_rank_alone()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
