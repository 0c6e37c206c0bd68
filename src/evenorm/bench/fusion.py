"""What fusing costs and saves: our fused layer's time over that of the norm alone, and of separate layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from evenorm.bench.interval import geometric_mean
from evenorm.bench.peers import ALONE, SEPARATE
from evenorm.bench.row import LARGE, Row
from evenorm.bench.table import Table

__all__ = ["Fusion", "Over", "fusions", "tables"]

# Our time over each of these, and its heading.
_OVER = {ALONE: ALONE, SEPARATE: "not fused", "torch": "torch"}


@dataclass(frozen=True)
class Over:
    """Our time over another's: the geometric mean of rows, and the worst of them."""

    mean: float
    worst: float


@dataclass(frozen=True)
class Fusion:
    """Rows with one thing fused, in one dtype, pass and kind of memory."""

    what: str
    """``norm+add+relu``."""
    dtype: str
    direction: str
    memory: str
    rows: int
    over: dict[str, Over]
    """By the variant: the norm alone, our layer with the rest after it, torch's layers."""


def fusions(rows: Iterable[Row]) -> list[Fusion]:
    """The large rows of the suite ``fused``, put together."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        suite, _, what = row.suite.partition(" ")
        if suite == "fused" and row.large:
            groups.setdefault((what, row.dtype, row.direction, row.memory), []).append(row)
    return [Fusion(*key, len(group), dict(_overs(group))) for key, group in groups.items()]


def _overs(rows: Sequence[Row]) -> Iterator[tuple[str, Over]]:
    for name in _OVER:
        found = [1 / ratio for row in rows if (ratio := row.ratio(name)) is not None]
        if found:
            yield name, Over(geometric_mean(found), max(found))


def tables(found: Sequence[Fusion]) -> Iterator[Table]:
    """One table, where anything fused was measured."""
    if found:
        yield Table(
            "Fused: our time over …",
            "… the norm alone; our norm, torch's addition and activation after it; torch's layers. Geometric means of "
            f"rows above {LARGE:,} elements, the worst row in parentheses; both is forward + backward.",
            ("", "rows", *_OVER.values()),
            [
                (
                    f"{fusion.what} {fusion.dtype} {fusion.memory} {fusion.direction}",
                    str(fusion.rows),
                    *(_cell(fusion.over.get(name)) for name in _OVER),
                )
                for fusion in found
            ],
        )


def _cell(over: Over | None) -> str:
    return "–" if over is None else f"{over.mean:.2f} ({over.worst:.2f})"
