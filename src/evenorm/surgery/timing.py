"""Time per step of two models, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from evenorm.surgery.proof import Inputs, tensors
from evenorm.surgery.snapshot import untouched

__all__ = ["Times", "time_steps"]

_LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Times:
    """Seconds per step before and after, medians."""

    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.before * 1e3:.3g} ms → {self.after * 1e3:.3g} ms, {self.before / self.after:.2f}×"


def time_steps(before: nn.Module, after: nn.Module, inputs: Inputs, seconds: float) -> Mapping[str, Times]:
    """Inference, and forward with backward in training; each kind for so many seconds. Neither model is changed."""
    found = {}
    for name, training in (("inference", False), ("training", True)):
        steps = [_step(model, inputs, training) for model in (before, after)]
        with untouched(before), untouched(after), torch.set_grad_enabled(training):
            before.train(training)
            after.train(training)
            found[name] = Times(*_in_turns(steps, seconds))
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


def _in_turns(steps: list[Callable[[], None]], seconds: float) -> list[float]:
    for step in steps:
        step()
    times: list[list[float]] = [[] for _ in steps]
    end = time.perf_counter() + seconds
    while len(times[0]) < _LEAST_ROUNDS or time.perf_counter() < end:
        for step, found in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]
