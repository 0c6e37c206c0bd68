"""Batch renormalization: the batch's statistics, corrected toward the history's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from evenorm.moments import Moments
from evenorm.statistics.history import History
from evenorm.statistics.source import Composed

__all__ = ["Correction", "Ramp", "Renorm"]


class Correction(NamedTuple):
    """r and d of x̂·r + d, which carry no gradient."""

    r: Tensor
    d: Tensor


@dataclass(frozen=True)
class Ramp:
    """How the clamps open: shut until ``start``, wide at ``r_end`` and ``d_end``, linear between, in updates.

    The defaults are the article's.
    """

    start: int = 5_000
    r_end: int = 40_000
    d_end: int = 25_000

    def __post_init__(self) -> None:
        if not 0 <= self.start <= min(self.r_end, self.d_end):
            raise ValueError(f"Ramp: expected 0 ≤ start ≤ r_end and d_end, got {self}")

    def opened(self, updates: Tensor, end: int) -> Tensor:
        """How wide, from 0 to 1."""
        return ((updates.double() - self.start) / max(end - self.start, 1)).clamp(0, 1)


@dataclass(frozen=True, repr=False)
class Renorm(Composed):
    r"""Batch renormalization.

    .. math:: y = \gamma(\hat x \cdot r + d) + \beta,\quad
        r = \mathrm{clip}\left(\frac{\sigma_B}{\sigma}, \frac{1}{r_{max}}, r_{max}\right),\quad
        d = \mathrm{clip}\left(\frac{\mu_B - \mu}{\sigma}, -d_{max}, d_{max}\right)

    r and d carry no gradient; μ and σ = √(variance + ε) are the history's, as they were before this batch.
    Under activation checkpointing a recomputation reads the history that the layer's last forward pass read: of two
    forward passes before a backward pass, the later one's.

    Args:
        r_max: at least 1; 1 and ``d_max=0`` are batch normalization.
        d_max: at least 0.
        schedule: how the clamps open in the course of training; ``None`` for open from the start.
        of: the average that is the history.

    Raises:
        ValueError: a clamp out of its range, or a composition that means nothing.

    Source:
        Ioffe, "Batch Renormalization" (2017), algorithm 1 and section 3.

    >>> from evenorm.statistics import Frozen
    >>> Renorm(of=Frozen())
    Traceback (most recent call last):
    ValueError: Renorm(of=Frozen(…)) means nothing: frozen statistics do not come from a batch; write Frozen() alone
    """

    r_max: float = 3.0
    d_max: float = 5.0
    schedule: Ramp | None = Ramp()
    place: ClassVar[str] = "renorm"

    def __post_init__(self) -> None:
        if not self.r_max >= 1 or not self.d_max >= 0:
            raise ValueError(f"Renorm: expected r_max ≥ 1 and d_max ≥ 0, got r_max={self.r_max}, d_max={self.d_max}")
        super().__post_init__()

    def correction(self, moments: Moments, past: History, eps: float) -> Correction:
        """r and d of these moments; the history's mean and variance broadcast against them."""
        scale = (past.variance.double() + eps).sqrt()
        r = (moments.variance + eps).sqrt() / scale
        d = (moments.mean - past.mean.double()) / scale
        if self.schedule is None:
            return Correction(r.clamp(1 / self.r_max, self.r_max), d.clamp(-self.d_max, self.d_max))
        if past.updates is None:
            raise ValueError("Renorm: a schedule needs a counter of updates; keep num_batches_tracked")
        r_max = 1 + (self.r_max - 1) * self.schedule.opened(past.updates, self.schedule.r_end)
        d_max = self.d_max * self.schedule.opened(past.updates, self.schedule.d_end)
        return Correction(torch.clamp(r, 1 / r_max, r_max), torch.clamp(d, -d_max, d_max))

    def __str__(self) -> str:
        return f"renormalized (r at most {self.r_max:g}, d at most {self.d_max:g}), {self.of or 'the average'}"
