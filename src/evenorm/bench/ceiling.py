"""The ceiling: how much faster than torch a layer would be if a pass took no longer than a copy of the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from evenorm.bench.interval import geometric_mean
from evenorm.bench.roof import COPY
from evenorm.bench.row import PASSES
from evenorm.bench.run import Run
from evenorm.bench.table import Table, times

__all__ = ["tables"]


class _Pair(NamedTuple):
    """A row's time by torch over that of the copies it cannot avoid, and over ours."""

    ceiling: float
    ratio: float


def tables(run: Run) -> Iterator[Table]:
    """One table, where rows of the suite ``layers`` were timed beside torch and a copy."""
    found: dict[tuple[str, str, str], list[_Pair]] = {}
    for row in run.rows:
        ratio, torch, copy = row.ratio("torch"), row.seconds("torch"), row.seconds(COPY)
        if row.suite == "layers" and row.large and ratio and torch and copy and row.copies:
            pair = _Pair(torch / (copy * row.copies), ratio)
            found.setdefault((row.dtype, row.memory, row.direction), []).append(pair)
    if found:
        yield Table(
            "What can be gained over torch",
            "Torch's time over that of copy_ for the bytes that a pass cannot avoid, in memory that is there: no layer "
            "that reads its input and writes its output is faster than that. And over ours. Geometric means above "
            "100,000 elements.",
            ("layers", "rows", "over copy_", "over ours"),
            [
                (
                    f"{dtype} {memory} {PASSES[direction]}",
                    str(len(pairs)),
                    times(geometric_mean([pair.ceiling for pair in pairs])),
                    times(geometric_mean([pair.ratio for pair in pairs])),
                )
                for (dtype, memory, direction), pairs in found.items()
            ],
        )
