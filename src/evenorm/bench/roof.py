"""The roofs: what moving the same bytes costs, measured beside every row.

A forward reads once and writes once, which is one copy; a backward reads twice and writes once, which is one
and a half. Two copies are measured: torch's ``copy_``, and the C library's ``memmove`` with one piece for each
thread, which stores past the caches where a piece is larger than its share of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from evenorm.bench.case import Case

__all__ = ["COPY", "STREAM", "copies", "roofs"]

COPY, STREAM = "copy_", "streaming copy"

_pool = ThreadPoolExecutor()


def copies(case: Case, direction: str) -> float:
    """Reads and writes that a pass cannot avoid, in copies of the input.

    A residual that is added before is read, and its sum written; backward the sum's gradient is read. One that is
    added after is read; with an activation backward reads what tells its slope, and writes the residual's gradient.

    >>> [copies(Case("", "LayerNorm", (4, 4)), direction) for direction in ("forward", "backward", "both")]
    [1.0, 1.5, 2.5]
    """
    forward, backward = 1.0, 1.5
    if case.residual == "before":
        forward, backward = 2.0, 2.0
    elif case.residual == "after":
        forward, backward = 1.5, 2.5 if case.activation else 1.5
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


def roofs(case: Case, threads: int) -> dict[str, Callable[[], object]]:
    """The copies of a tensor of the case's size, into memory that is there."""
    source = torch.ones(case.elements, dtype=case.torch_dtype)
    target = torch.ones_like(source)
    pieces = _pieces(case.bytes, threads)

    def stream() -> None:
        waiting: list[Future[object]] = [
            _pool.submit(ctypes.memmove, target.data_ptr() + at, source.data_ptr() + at, size)
            for at, size in pieces[1:]
        ]
        at, size = pieces[0]
        ctypes.memmove(target.data_ptr() + at, source.data_ptr() + at, size)
        for future in waiting:
            future.result()

    return {COPY: lambda: target.copy_(source), STREAM: stream}


def _pieces(size: int, threads: int) -> list[tuple[int, int]]:
    """Start and length of each thread's piece, cut at cache lines."""
    step = -(-size // threads) // 64 * 64 + 64
    return [(at, min(step, size - at)) for at in range(0, size, step)]
