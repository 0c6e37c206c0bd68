"""Small pictures that a network can tell apart, as arrays and as files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from evenorm.lab.data import Bytes, Labels


def stripes(count: int, side: int = 8, classes: int = 2) -> tuple[Bytes, Labels]:
    """Images (count, side, side) that a network can tell apart: class k is bright in its own rows."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % classes
    pixels = draw.integers(0, 60, (count, side, side))
    for index, label in enumerate(labels):
        pixels[index, label::classes] += 150
    return pixels.astype(np.uint8), labels.astype(np.int64)


def write_idx(path: Path, values: Bytes) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    data = header + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_pair(folder: Path, count: int, prefix: str = "t10k", suffix: str = "") -> tuple[Bytes, Labels]:
    pixels, labels = stripes(count)
    write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", pixels)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels.astype(np.uint8))
    return pixels, labels
