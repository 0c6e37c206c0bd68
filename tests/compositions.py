"""The compositions that tests enumerate, each with a layer that has a past."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

import evenorm
from evenorm import Accumulated, Cumulative, PerDomain, Renorm, Running, Synced, lockstep

__all__ = ["ALL", "AVERAGES", "MOMENTUM", "RENORM", "UPDATES", "VALUES", "Composition", "Part", "Step", "steps"]

MOMENTUM, UPDATES, VALUES = 0.25, 2, 10
RENORM: dict[str, Any] = {"r_max": 1.2, "d_max": 0.2, "schedule": None}
AVERAGES: dict[str, Any] = {
    "running": None,
    "biased": Running(MOMENTUM, "biased"),
    "debiased": Running(MOMENTUM, "debiased"),
    "population": Cumulative(),
    "averaged": Cumulative("unbiased"),
}


class Composition(NamedTuple):
    """An average, how batches are merged or split (batch, exact, approximate, ghost), a correction, a domain."""

    average: str
    window: str = "batch"
    renormed: bool = False
    domain: bool = False

    def __str__(self) -> str:
        return "-".join([self.average, self.window, *["renorm"] * self.renormed, *["domain"] * self.domain])

    def statistics(self, micro_batches: int, synced: bool = False) -> Any:
        chosen = AVERAGES[self.average]
        if self.window in ("exact", "approximate"):
            chosen = Accumulated(micro_batches, self.window, of=chosen)  # type: ignore[arg-type]
        chosen = Synced(of=chosen) if synced else chosen
        chosen = Renorm(**RENORM, of=chosen) if self.renormed else chosen
        return PerDomain({"other": Running(0.5), "mine": chosen}) if self.domain else chosen

    def layer(self, micro_batches: int, synced: bool = False, chunk: int = 3) -> Any:
        """Of 3 channels, after ``UPDATES`` updates with ``VALUES`` values; the same numbers wherever it is made."""
        statistics: Any = {"statistics": self.statistics(micro_batches, synced), "momentum": MOMENTUM}
        ghost = self.window == "ghost"
        layer: Any = (
            evenorm.GhostBatchNorm1d(3, chunk, **statistics) if ghost else evenorm.BatchNorm1d(3, **statistics)
        ).double()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for tensor in (layer.weight, layer.bias, layer.running_var):
                tensor.uniform_(0.5, 2, generator=generator)
            layer.running_mean.normal_(2.5, 0.5, generator=generator)
            layer.num_batches_tracked.fill_(UPDATES)
            if self.average == "population":
                layer.num_values_seen.fill_(VALUES)
        return layer


ALL = [
    Composition(*choices)
    for choices in product(AVERAGES, ("batch", "exact", "approximate", "ghost"), (False, True), (False, True))
]


class Part(NamedTuple):
    """What one call gets."""

    x: Tensor
    dy: Tensor
    mask: Tensor | None

    def at(self, rows: slice) -> Part:
        return Part(*(None if t is None else t[rows] for t in self))  # type: ignore[arg-type]


class Step(NamedTuple):
    """What one call gave."""

    y: Tensor
    dx: Tensor


def steps(composition: Composition, layer: Any, parts: Sequence[Part]) -> list[Step]:
    """Forward and backward of every part; in lockstep where the window is exact."""
    options: Any = {"domain": "mine"} if composition.domain else {}

    def step(part: Part) -> Step:
        x = part.x.clone().requires_grad_()
        y = layer(x, mask=part.mask, **options)
        y.backward(part.dy)
        assert x.grad is not None
        return Step(y.detach(), x.grad)

    return lockstep(step, parts) if composition.window == "exact" else [step(part) for part in parts]
