"""What a run states in tables: what fusing costs, what threads gain, what is saved for backward, and its aims."""

from __future__ import annotations

from collections.abc import Iterator

from evenorm.bench import aims, fusion, saved, scaling
from evenorm.bench.run import Run
from evenorm.bench.summary import Summary
from evenorm.bench.table import Table

__all__ = ["statements"]


def statements(run: Run, summary: Summary) -> Iterator[Table]:
    """The tables of what a run has, the aims last."""
    yield from fusion.tables(summary.fusions)
    yield from scaling.tables(summary.scalings, run.machine["threads"])
    yield from saved.tables(run.saved)
    yield from aims.tables(run, summary)
