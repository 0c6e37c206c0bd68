"""The suite ``dist``: synchronized batch normalization, timed in processes of its own; on GPUs one for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evenorm.bench.device import CPU, Device
from evenorm.bench.measure import timings
from evenorm.bench.peers import OURS
from evenorm.bench.row import Row, Timing

__all__ = ["count", "measure"]

_SHAPES = {
    "ResNet-50": ((16, 64, 56, 56), (16, 256, 14, 14), (4, 2048, 7, 7)),
    "detection": ((1, 256, 50, 68),),
}
_QUICK = {"quick": ((2, 4, 3, 3),)}
# A rank that waits longer for the others is lost.
_PATIENCE = 300


def count(quick: bool) -> int:
    """How many rows there are."""
    return sum(map(len, (_QUICK if quick else _SHAPES).values()))


def measure(seconds: float, quick: bool = False, device: Device = CPU) -> Iterator[Row]:
    """A training step, forward and backward, of this rank's share, for each shape."""
    for network, shapes in (_QUICK if quick else _SHAPES).items():
        for shape in shapes:
            yield _row(network, shape, _run(shape, seconds, device), device)


def _run(shape: tuple[int, ...], seconds: float, device: Device) -> dict[str, Timing]:
    """What the first of the processes measured."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "STORE": str(Path(folder, "store"))}
        processes = device.processes()
        command = [sys.executable, "-m", "evenorm.bench.rank", str(processes), device.name, repr(seconds)]
        ranks = [
            subprocess.Popen(
                [*command[:3], str(rank), *command[3:], *map(str, shape)],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for rank in range(processes)
        ]
        try:
            said = [rank.communicate(timeout=_PATIENCE) for rank in ranks]
        except subprocess.TimeoutExpired:
            for rank in ranks:
                rank.kill()
            return {OURS: Timing(absent=f"the processes did not finish within {_PATIENCE} s")}
    fault = next((errors.strip().splitlines()[-1] for _, errors in said if errors.strip()), "")
    if any(rank.returncode for rank in ranks):
        return {OURS: Timing(absent=f"a process failed: {fault}")}
    found = json.loads(said[0][0])
    result = {name: Timing(absent=reason) for name, reason in found["absent"].items()}
    if OURS not in result:
        result |= timings({name: np.array(samples) for name, samples in found["samples"].items()})
    for name, (error, limit) in found["errors"].items():
        timing = result.setdefault(name, Timing())
        timing.error, timing.share = error, error / limit
    return result


def _row(network: str, shape: tuple[int, ...], found: dict[str, Timing], device: Device) -> Row:
    elements = int(np.prod(shape))
    ranks = device.processes()
    over = f"{ranks} process" + "es" * (ranks != 1)
    return Row(
        suite="dist",
        title=f"synchronized over {over}, {device.backend} · float32",
        network=network,
        layer="SyncBatchNorm",
        size="×".join(map(str, shape)),
        dtype="float32",
        training=True,
        direction="both",
        memory="fresh",
        elements=elements,
        bytes=4 * elements,
        copies=0.0,
        timings=found,
    )
