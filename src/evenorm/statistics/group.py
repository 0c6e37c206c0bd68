"""Ranks that exchange numbers, and the tag that keeps them from exchanging different layers' numbers."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, Protocol
from zlib import crc32

import torch
from torch import Tensor

from evenorm.moments import Moments

__all__ = [
    "AGAIN",
    "BACKWARD",
    "DIFFERENTIATED",
    "FORWARD",
    "Group",
    "SyncError",
    "Tag",
    "exchange",
    "merge",
    "numbered",
    "total",
]

FORWARD, BACKWARD, AGAIN, DIFFERENTIATED = range(4)
_PHASES = ("forward", "backward", "recomputation", "second derivative")
# With a layer's 32 bits the 53 that a float64 holds.
_CALLS, _DOMAINS = 2**12, 2**7

_made: Counter[str] = Counter()
_names = {0: "normalize()"}


def numbered(kind: str) -> int:
    """A number for the next layer of a kind: the same in every process that made as many of that kind before.

    Layers of other kinds may be made in any order, or by one process alone.
    """
    _made[kind] += 1
    name = f"{kind}, number {_made[kind]}"
    number = crc32(name.encode())
    _names[number] = name
    return number


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
    """Where a rank is: which layer, which domain, after how many updates. One number, exact in float64.

    Two layers that look alike have different numbers, so a call that one rank leaves out is found at the next.
    """

    layer: int = 0
    domain: int = 0
    updates: Tensor | None = None

    def number(self, like: Tensor) -> Tensor:
        """The tag of the forward pass; those of other phases are ``_CALLS`` apart."""
        place = float((self.layer * _DOMAINS + self.domain) * len(_PHASES) * _CALLS)
        number = torch.full((1,), place, dtype=like.dtype, device=like.device)
        return number if self.updates is None else number + self.updates.detach() % _CALLS


def exchange(group: Group, tag: Tensor, phase: int, numbers: Tensor) -> Tensor:
    """Every rank's numbers, one rank per row, in rank order.

    Raises:
        SyncError: some rank is elsewhere in the program, or gone; every rank that lives raises it.
    """
    # The tag goes first: a shorter packet of another layer is known by it.
    rows = _gathered(group, torch.cat([tag + phase * _CALLS, numbers]))
    tags = rows[:, 0]
    if torch.compiler.is_compiling() or tags.device.type != "cpu":
        # Asking for the values would make the host wait.
        torch._assert_async((tags == tags[0]).all(), "evenorm: ranks synchronize different layers or calls")
    elif bool((tags != tags[0]).any()):
        raise SyncError(_fault(tags.tolist()))
    return rows[:, 1:]


def _gathered(group: Group, packet: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return group.gather(packet)
    try:
        return group.gather(packet)
    except SyncError:
        raise
    except RuntimeError as fault:
        where = _where(packet[0].item()) if packet.device.type == "cpu" else "a synchronized layer"
        raise SyncError(
            f"{where}: the {group.size} ranks could not exchange their {packet.numel()} numbers: a rank has ended, "
            f"waits elsewhere, or is at a layer of another size. {_RULE} ({fault})"
        ) from fault


def merge(group: Group, tag: Tensor, phase: int, local: Moments) -> Moments:
    """The moments of all ranks, the same bits on each: one collective of C·2 + 2 numbers per rank.

    Where a mask gives each group a count of its own they are C·3 + 1.
    """
    shape, flat = local.mean.shape, local.mean.numel()
    count = local.count
    if not isinstance(count, Tensor):
        count = torch.full((1,), float(count), dtype=local.mean.dtype, device=local.mean.device)
    rows = exchange(group, tag, phase, torch.cat([count.reshape(-1), local.mean.reshape(-1), local.M2.reshape(-1)]))
    counts, means, squares = rows.split([count.numel(), flat, flat], dim=1)
    counted = shape if count.numel() == flat else (1,) * len(shape)
    ranks = (group.size, *shape)
    return Moments(counts.reshape(-1, *counted), means.reshape(ranks), squares.reshape(ranks)).pooled((0,))


def total(group: Group, tag: Tensor, phase: int, sums: Tensor) -> Tensor:
    """The sum over all ranks, in rank order."""
    return exchange(group, tag, phase, sums.reshape(-1)).sum(0).reshape(sums.shape)


_RULE = (
    "Every rank must make alike synchronized layers in the same order, and call them in the same order, with an empty "
    "batch if it has no data"
)


def _fault(tags: list[float]) -> str:
    found: dict[float, list[str]] = {}
    for rank, tag in enumerate(tags):
        found.setdefault(tag, []).append(f"rank {rank}")
    places = (f"{', '.join(ranks)} at {_where(tag)}" for tag, ranks in found.items())
    return f"the ranks synchronize different things: {'; '.join(places)}. {_RULE}"


def _where(tag: float) -> str:
    """A tag in words."""
    if tag != tag or tag < 0:
        return "no layer"
    rest, call = divmod(int(tag), _CALLS)
    rest, phase = divmod(rest, len(_PHASES))
    layer, domain = divmod(rest, _DOMAINS)
    name = _names.get(layer, "a layer that this rank has not made")
    return f"{name}{f', domain {domain}' if domain else ''} ({_PHASES[phase]}, after {call} updates)"
