"""Rows of the benchmark that nobody measured."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evenorm.bench import measure
from evenorm.bench.peers import OURS
from evenorm.bench.roof import COPY, STREAM
from evenorm.bench.row import Row
from evenorm.bench.run import Command, Run

__all__ = ["row_of", "run_of"]


def row_of(ours: float, theirs: float, spread: float = 0.0, elements: int = 200_000, **changes: object) -> Row:
    turns: NDArray[np.float64] = 1 + spread * np.linspace(-1, 1, 11)
    samples = {OURS: ours * turns, "torch": theirs * turns[::-1], COPY: ours * turns / 5, STREAM: ours * turns / 10}
    row = Row(
        suite="layers",
        title="BatchNorm2d · training · float32",
        network="ResNet-50",
        layer="BatchNorm2d",
        size="8×8",
        dtype="float32",
        training=True,
        direction="both",
        memory="fresh",
        elements=elements,
        bytes=4 * elements,
        copies=2.5,
        timings=measure.timings(samples),
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def run_of(*rows: Row) -> Run:
    machine = {"cpu": "a cpu", "cores": "2", "threads": "2", "caches": "L3 1 KiB", "instruction sets": "avx2"}
    return Run({**machine, "torch": "2.13.0"}, [Command("evenorm bench", "2026-01-01", "0.0")], list(rows))
