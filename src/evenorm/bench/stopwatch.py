"""The stopwatch: variants timed in turns, so that whatever the machine does meanwhile happens to all."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

__all__ = ["Timed", "interleave", "timed"]

Timed = Callable[[Callable[[], object], int], int]
"""Nanoseconds of so many calls."""

# A sample is repeated calls of about this many nanoseconds, well above the clock's own cost.
_SAMPLE = 500_000
_LEAST, _MOST = 5, 101
# A call that takes longer fills the caches by itself.
_LONG = 20_000_000


def timed(call: Callable[[], object], repeats: int) -> int:
    """Nanoseconds of so many calls, by the processor's clock."""
    turns = range(repeats)
    start = perf_counter_ns()
    for _ in turns:
        call()
    return perf_counter_ns() - start


def interleave(
    calls: Mapping[str, Callable[[], object]], seconds: float, timed: Timed = timed
) -> dict[str, NDArray[np.float64]]:
    """Seconds per call of each variant, one sample per round, every variant once in a round.

    Rounds begin with another variant each. Before its sample a variant is called once untimed, unless its call
    is long: caches hold its own data and not its predecessor's.

    Args:
        calls: what is timed, by name.
        seconds: about how long all rounds together may take; at least five rounds are made.
        timed: the clock of the device on which they run.
    """
    names = list(calls)
    repeats, warms, cost = {}, {}, 0.0
    for name in names:
        once = min(timed(calls[name], 1) for _ in range(2))
        repeats[name] = max(1, round(_SAMPLE / max(once, 1)))
        warms[name] = once < _LONG
        cost += once * (repeats[name] + warms[name])
    rounds = min(max(int(seconds * 1e9 / cost), _LEAST), _MOST)
    samples = {name: np.empty(rounds) for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for k in range(rounds):
            for name in names[k % len(names) :] + names[: k % len(names)]:
                if warms[name]:
                    calls[name]()
                samples[name][k] = timed(calls[name], repeats[name]) / repeats[name] / 1e9
    finally:
        if collecting:
            gc.enable()
    return samples
