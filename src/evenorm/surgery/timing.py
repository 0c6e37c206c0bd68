"""Time per step of two models, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

import torch
from torch import nn

from evenorm.surgery.proof import Inputs, tensors
from evenorm.surgery.snapshot import untouched

__all__ = ["Times", "time_steps"]

# The fewest whose least and greatest hold their median with 95 % confidence.
_LEAST_ROUNDS = 6


@dataclass(frozen=True)
class Times:
    """Seconds per step before and after, medians.

    Attributes:
        ratio: before over after, in rounds of one step each: their median.
        interval: where that median lies with 95 % confidence.
    """

    before: float
    after: float
    ratio: float
    interval: tuple[float, float]

    @staticmethod
    def of(before: Sequence[float], after: Sequence[float]) -> Times:
        """From the seconds of each round.

        >>> print(Times.of([4.0, 4.2, 4.4, 4.0, 4.0, 4.0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]))
        4e+03 ms → 2e+03 ms, 2.00× [2.00, 2.20]
        """
        ratios = sorted(b / a for b, a in zip(before, after, strict=True))
        outside = _outside(len(ratios))
        return Times(median(before), median(after), median(ratios), (ratios[outside], ratios[-1 - outside]))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.before * 1e3:.3g} ms → {self.after * 1e3:.3g} ms, {self.ratio:.2f}× [{low:.2f}, {high:.2f}]"


def _outside(rounds: int) -> int:
    """How many rounds may lie beyond each end of a 95 % interval of their median: a coin is thrown for each."""
    beyond, chance = 0, 1 / 2**rounds
    while chance + comb(rounds, beyond + 1) / 2**rounds <= 0.025:
        beyond += 1
        chance += comb(rounds, beyond) / 2**rounds
    return beyond


def time_steps(before: nn.Module, after: nn.Module, inputs: Inputs, seconds: float) -> Mapping[str, Times]:
    """Inference, and forward with backward in training; each kind for so many seconds. Neither model is changed."""
    found = {}
    for name, training in (("inference", False), ("training", True)):
        steps = [_step(model, inputs, training) for model in (before, after)]
        with untouched(before), untouched(after), torch.set_grad_enabled(training):
            before.train(training)
            after.train(training)
            found[name] = Times.of(*_in_turns(steps, seconds))
    return found


def _step(model: nn.Module, inputs: Inputs, training: bool) -> Callable[[], None]:
    def step() -> None:
        output = model(*inputs.args, **(inputs.kwargs or {}))
        if training:
            losses = [t.float().square().mean() for t in tensors(output) if t.requires_grad]
            if losses:
                torch.stack(losses).sum().backward()
            for parameter in model.parameters():
                parameter.grad = None

    return step


def _in_turns(steps: list[Callable[[], None]], seconds: float) -> list[list[float]]:
    for step in steps:
        step()
    times: list[list[float]] = [[] for _ in steps]
    end = time.perf_counter() + seconds
    while len(times[0]) < _LEAST_ROUNDS or time.perf_counter() < end:
        for step, found in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            found.append(time.perf_counter() - start)
    return times
