"""Scaling: how many times as fast a layer is on all threads as on one, beside a copy of its input.

Where memory is the limit, a second thread gains a layer what it gains the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from evenorm.bench.interval import Interval
from evenorm.bench.peers import OURS
from evenorm.bench.peers.threads import one
from evenorm.bench.roof import COPY
from evenorm.bench.row import Row
from evenorm.bench.table import Table, times

__all__ = ["SUITE", "Scaling", "scalings", "tables"]

SUITE = "threads"


@dataclass(frozen=True)
class Scaling:
    """Of one layer on one tensor in one pass: one thread's time over that of all."""

    name: str
    ours: Interval
    torch: float | None
    copy: float | None


def scalings(rows: Iterable[Row]) -> list[Scaling]:
    """The rows of the suite ``threads``."""
    return [
        Scaling(
            f"{row.layer} {row.size} {row.memory} {row.direction}",
            ratio,
            *(_gain(row, name) for name in ("torch", COPY)),
        )
        for row in rows
        if row.suite == SUITE and one(OURS) in row.timings and (ratio := row.timings[one(OURS)].ratio) is not None
    ]


def tables(found: Sequence[Scaling], threads: str) -> Iterator[Table]:
    """One table, where anything was measured on one thread too."""
    if found:
        yield Table(
            f"From 1 thread to {threads}",
            "How many times as fast, with the paired 95 % interval of ours; both is forward + backward.",
            ("", "evenorm", "torch", COPY),
            [
                (
                    scaling.name,
                    f"{times(scaling.ours.value)} [{scaling.ours.low:.2f}, {scaling.ours.high:.2f}]",
                    times(scaling.torch),
                    times(scaling.copy),
                )
                for scaling in found
            ],
        )


def _gain(row: Row, name: str) -> float | None:
    alone, together = row.seconds(one(name)), row.seconds(name)
    return None if not alone or not together else alone / together
