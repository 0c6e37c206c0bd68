"""The summary of a run: geometric means, shares of the roofs, and the rows to look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evenorm.bench.interval import geometric_mean
from evenorm.bench.roof import COPY, STREAM
from evenorm.bench.row import Row, Run

__all__ = ["LARGE", "Mean", "Share", "Summary", "summarize"]

LARGE = 100_000
"""Rows of more elements enter the means; smaller ones measure the cost of a call."""

COMPILED = "compiled"
"""Torch's layer compiled over ours compiled."""

PASSES = {
    "forward": "forward",
    "backward": "backward",
    "both": "forward + backward",
    "training": "training step",
    "inference": "inference",
}


@dataclass(frozen=True)
class Mean:
    """The geometric mean of a peer's time over ours, and over how many rows."""

    value: float
    rows: int


@dataclass(frozen=True)
class Share:
    """The share of a roof that rows reach: geometric mean, and the worst."""

    direction: str
    roof: str
    mean: float
    worst: float
    worst_row: str
    rows: int


@dataclass
class Summary:
    """What a run comes to."""

    means: dict[tuple[str, str, str, str], dict[str, Mean]]
    """By suite, dtype, pass and memory; then by peer."""
    shares: list[Share]
    """In reused memory, of tensors that the last-level cache does not hold."""
    slower: list[Row]
    worst: list[Row]
    wrong: list[Row]


def summarize(run: Run, worst: int = 5) -> Summary:
    """Sum a run up."""
    rows = [row for row in run.rows if row.ours.seconds is not None]
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if row.elements > LARGE or row.suite == "models":
            groups.setdefault((row.suite, row.dtype, row.direction, row.memory), []).append(row)
    compared = [row for row in rows if row.ratio("torch") is not None]
    return Summary(
        {key: _means(group) for key, group in groups.items()},
        [share for group in groups.values() for roof in (COPY, STREAM) if (share := _share(group, roof))],
        [row for row in rows if row.slower],
        sorted(compared, key=lambda row: row.ratio("torch") or 0.0)[:worst],
        [row for row in run.rows if row.ours.seconds is None],
    )


def _means(rows: Iterable[Row]) -> dict[str, Mean]:
    ratios: dict[str, list[float]] = {}
    for row in rows:
        found = {name: row.ratio(name) for name in row.peers()} | {COMPILED: row.compiled_ratio}
        for name, value in found.items():
            if value is not None:
                ratios.setdefault(name, []).append(value)
    return {name: Mean(geometric_mean(values), len(values)) for name, values in ratios.items()}


def _share(rows: Iterable[Row], roof: str) -> Share | None:
    found = [
        (share, row)
        for row in rows
        if row.memory == "reused" and not row.cached and (share := row.share_of(roof)) is not None
    ]
    if not found:
        return None
    worst, row = min(found, key=lambda pair: pair[0])
    mean = geometric_mean([share for share, _ in found])
    return Share(row.direction, roof, mean, worst, f"{row.layer} {row.size}", len(found))
