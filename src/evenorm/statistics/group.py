"""Ranks that exchange numbers, and the tag that keeps them from exchanging different layers' numbers."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from evenorm.moments import Moments

__all__ = ["AGAIN", "BACKWARD", "DIFFERENTIATED", "FORWARD", "Group", "SyncError", "Tag", "exchange", "merge", "total"]

FORWARD, BACKWARD, AGAIN, DIFFERENTIATED = range(4)
_PHASES = ("forward", "backward", "recomputation", "second derivative")
_CALLS, _DOMAINS = 2**24, 2**7


class SyncError(RuntimeError):
    """The ranks are not in the same place of the program."""


class Group(Protocol):
    """Ranks that exchange numbers."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def gather(self, packet: Tensor) -> Tensor:
        """Every rank's packet, one per row, in rank order: the same numbers on all ranks."""


class Tag(NamedTuple):
    """Where a rank is: which layer, which domain, after how many updates. One number, exact in float64."""

    layer: int = 0
    domain: int = 0
    updates: Tensor | None = None

    def number(self, like: Tensor) -> Tensor:
        """The tag of the forward pass; those of other phases are ``_CALLS`` apart."""
        number = torch.full(
            (1,), float((self.layer * _DOMAINS + self.domain) * len(_PHASES) * _CALLS), dtype=like.dtype
        )
        number = number.to(like.device)
        return number if self.updates is None else number + self.updates.detach() % _CALLS


def exchange(group: Group, tag: Tensor, phase: int, numbers: Tensor) -> Tensor:
    """Every rank's numbers, one rank per row, in rank order.

    Raises:
        SyncError: some rank is elsewhere in the program; every rank raises it.
    """
    # The tag goes first: a shorter packet of another layer is known by it.
    rows = group.gather(torch.cat([tag + phase * _CALLS, numbers]))
    tags = rows[:, 0]
    if torch.compiler.is_compiling() or tags.device.type != "cpu":
        # Asking for the values would make the host wait.
        torch._assert_async((tags == tags[0]).all(), "evenorm: ranks synchronize different layers or calls")
    elif bool((tags != tags[0]).any()):
        raise SyncError(_fault(tags))
    return rows[:, 1:]


def merge(group: Group, tag: Tensor, phase: int, local: Moments) -> Moments:
    """The moments of all ranks, merged in rank order: one collective of C·2 + 2 numbers per rank.

    Where a mask gives each group a count of its own they are C·3 + 1.
    """
    shape, flat = local.mean.shape, local.mean.numel()
    count = local.count
    if not isinstance(count, Tensor):
        count = torch.full((1,), float(count), dtype=local.mean.dtype, device=local.mean.device)
    rows = exchange(group, tag, phase, torch.cat([count.reshape(-1), local.mean.reshape(-1), local.M2.reshape(-1)]))
    counts, means, squares = rows.split([count.numel(), flat, flat], dim=1)
    counted = shape if count.numel() == flat else (1,) * len(shape)
    parts = (
        Moments(counts[k].reshape(counted), means[k].reshape(shape), squares[k].reshape(shape))
        for k in range(group.size)
    )
    return Moments.merged(parts)


def total(group: Group, tag: Tensor, phase: int, sums: Tensor) -> Tensor:
    """The sum over all ranks, in rank order."""
    return exchange(group, tag, phase, sums.reshape(-1)).sum(0).reshape(sums.shape)


def _fault(tags: Tensor) -> str:
    places = []
    for rank, value in enumerate(tags.tolist()):
        if value != value or value < 0:
            places.append(f"rank {rank} sent no tag")
            continue
        rest, call = divmod(int(value), _CALLS)
        rest, phase = divmod(rest, len(_PHASES))
        layer, domain = divmod(rest, _DOMAINS)
        where = f"layer {layer}" + (f", domain {domain}" if domain else "")
        places.append(f"rank {rank} is at {where}, {_PHASES[phase]}, after {call} updates")
    return (
        f"the ranks synchronize different things: {'; '.join(places)}. Every rank must call the same synchronized "
        f"layers in the same order, with an empty batch if it has no data"
    )
