"""The summary of a run: geometric means, shares of the roofs, and the rows to look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from evenorm.bench.fusion import Fusion, fusions
from evenorm.bench.interval import geometric_mean
from evenorm.bench.peers import ALONE, OURS_COMPILED
from evenorm.bench.roof import COPY, STREAM
from evenorm.bench.row import Row
from evenorm.bench.run import Run
from evenorm.bench.scaling import SUITE as SCALING
from evenorm.bench.scaling import Scaling, scalings
from evenorm.bench.watched import SUITE as WATCHED

__all__ = ["COMPILED", "Mean", "Share", "Summary", "mean_ratios", "summarize"]

COMPILED = "both compiled"
"""Torch's layer compiled over ours compiled."""


@dataclass(frozen=True)
class Mean:
    """The geometric mean of a peer's time over ours, and over how many rows."""

    value: float
    rows: int


@dataclass(frozen=True)
class Share:
    """The share of a roof that rows reach: geometric mean, and the worst."""

    direction: str
    sweeps: int
    roof: str
    mean: float
    worst: float
    worst_row: str
    rows: int


Key = tuple[str, str, str, str]
"""Suite, dtype, pass and memory of rows that are averaged."""


@dataclass
class Summary:
    """What a run comes to."""

    means: dict[Key, dict[str, Mean]]
    """By what the rows share; then by peer."""
    shares: list[Share]
    """In memory that is mapped already, of tensors that the last-level cache does not hold."""
    fusions: list[Fusion]
    scalings: list[Scaling]
    compared: list[Row]
    """Rows that are judged against torch's time, each once."""
    slower: list[Row]
    worst: list[Row]
    wrong: list[Row]
    watched: list[Row]
    """Steps under a monitor, beside the same without one."""

    def tables(self) -> Iterator[tuple[str, list[str], dict[Key, dict[str, Mean]]]]:
        """Each suite, its peers, and its means."""
        for suite in dict.fromkeys(key[0].split()[0] for key in self.means):
            groups = {key: means for key, means in self.means.items() if key[0].split()[0] == suite}
            names = list(dict.fromkeys(name for means in groups.values() for name in means))
            yield suite, sorted(names, key=lambda name: name == COMPILED), groups


def summarize(run: Run, worst: int = 5) -> Summary:
    """Sum a run up."""
    timed = [row for row in run.rows if row.ours.seconds is not None]
    # Rows of other suites measure something else, of layers that stand in these.
    rows = [row for row in timed if row.suite not in (WATCHED, SCALING)]
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        if row.large or row.suite == "models":
            groups.setdefault((row.suite, row.dtype, row.direction, row.memory), []).append(row)
    compared = [row for row in rows if row.ratio("torch") is not None]
    return Summary(
        {key: mean_ratios(group) for key, group in groups.items()},
        _shares(rows),
        fusions(rows),
        scalings(timed),
        compared,
        [row for row in rows if row.slower],
        sorted(compared, key=lambda row: row.ratio("torch") or 0.0)[:worst],
        [row for row in run.rows if row.ours.seconds is None],
        [row for row in timed if row.suite == WATCHED],
    )


def mean_ratios(rows: Iterable[Row]) -> dict[str, Mean]:
    """The mean of each peer's time over ours; the norm alone computes less and is no peer."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        found = {name: row.ratio(name) for name in row.peers() if name not in (ALONE, OURS_COMPILED)}
        found[COMPILED] = row.compiled_ratio
        for name, value in found.items():
            if value is not None:
                ratios.setdefault(name, []).append(value)
    return {name: Mean(geometric_mean(values), len(values)) for name, values in ratios.items()}


def _shares(rows: Iterable[Row]) -> list[Share]:
    """The shares of one sweep and of two, forward and backward."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if row.suite == "layers" and row.memory != "fresh" and not row.cached and row.share_of(COPY) is not None:
            groups.setdefault((row.sweeps, row.direction), []).append(row)
    return [
        _share(group, direction, sweeps, roof)
        for (sweeps, direction), group in sorted(groups.items(), key=lambda item: item[0][0])
        for roof in (COPY, STREAM)
        # A GPU has one roof.
        if group[0].share_of(roof) is not None
    ]


def _share(rows: list[Row], direction: str, sweeps: int, roof: str) -> Share:
    shares = [row.share_of(roof) or 0.0 for row in rows]
    worst = min(range(len(rows)), key=shares.__getitem__)
    name = f"{rows[worst].layer} {rows[worst].size}"
    return Share(direction, sweeps, roof, geometric_mean(shares), shares[worst], name, len(rows))
