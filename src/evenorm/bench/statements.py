"""What a run states in tables: what fusing costs, threads gain and backward keeps, what can be gained, its aims."""

from __future__ import annotations

from collections.abc import Iterator

from evenorm.bench import aims, ceiling, fusion, saved, scaling
from evenorm.bench.run import Run
from evenorm.bench.summary import Summary
from evenorm.bench.table import Table

__all__ = ["statements"]


def statements(run: Run, summary: Summary) -> Iterator[Table]:
    """The tables of what a run has, the aims last."""
    yield from fusion.tables(summary.fusions)
    yield from scaling.tables(summary.scalings, run.machine["threads"])
    yield from saved.tables(run.saved)
    yield from ceiling.tables(run)
    yield from aims.tables(run, summary)
