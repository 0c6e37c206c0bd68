"""Ranks that leave something out, or end: an error everywhere, and nothing is mixed."""

from __future__ import annotations

import copy
import os
import re
import sys

import pytest
import torch

from evenorm import SyncBatchNorm, SyncError
from rank_setting import COUNT, RANK, check


@check
def skips_a_call() -> None:
    """The last rank forgets one layer of two that look alike: an error on every rank, and nothing is mixed."""
    first = SyncBatchNorm(3)
    for second in (SyncBatchNorm(3), copy.deepcopy(first)):
        x = torch.randn(4, 3)
        with pytest.raises(SyncError) as found:
            second(x if RANK == COUNT - 1 else first(x))
        places = re.findall(
            r"(rank [^;]*) at SyncBatchNorm\('\[n\] c \[\.\.\.\]', 3\), number (\d+) \(forward", str(found.value)
        )
        assert [ranks for ranks, _ in places] == [", ".join(f"rank {r}" for r in range(COUNT - 1)), f"rank {COUNT - 1}"]
        assert places[0][1] != places[1][1]
        for layer in (first, second):
            assert layer.running_mean is not None
            assert layer.running_mean.tolist() == [0, 0, 0]


@check
def skips_a_call_of_another_size() -> None:
    """Gloo ends a process that is sent too much; the others say what failed, and no rank comes through."""
    first, second = SyncBatchNorm(3), SyncBatchNorm(300)
    if RANK == COUNT - 1:
        second(torch.randn(4, 300))
    else:
        first(torch.randn(4, 3))
    sys.stdout.write("came through\n")


@check
def dies() -> None:
    """A rank that is gone is an error on the others, within the group's timeout."""
    layer = SyncBatchNorm(3)
    layer(torch.randn(4, 3))
    if RANK == COUNT - 1:
        os._exit(17)
    layer(torch.randn(4, 3))
    sys.stdout.write("came through\n")


@check
def dies_before_the_backward_pass() -> None:
    layer = SyncBatchNorm(3)
    y = layer(torch.randn(4, 3).requires_grad_())
    if RANK == COUNT - 1:
        os._exit(17)
    y.square().sum().backward()
    sys.stdout.write("came through\n")
