"""Moments: count, mean and sum of squared deviations, the value that merges.

Nearly every technique of the literature is one operation on it: synchronizing merges over ranks, a gradient
accumulation window merges over micro-batches, recalibration merges over batches, a running average blends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """Count, mean and M2 = Σ (x − mean)² of each group of values; mean and M2 in float64.

    Not centered, ``mean`` is zero and ``M2`` is Σ x².

    Shape:
        ``mean`` and ``M2`` share one shape; ``count`` is a number or broadcasts against them.

    >>> import torch
    >>> x = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
    >>> whole = Moments.of(x[:1]).merge(Moments.of(x[1:]))
    >>> whole.mean.item(), whole.variance.item()
    (4.0, 12.5)
    """

    count: int | Tensor
    mean: Tensor
    M2: Tensor

    @staticmethod
    def of(values: Tensor) -> Moments:
        """The moments of a tensor's first axis, in two passes."""
        values = values.double()
        count = values.shape[0]
        mean = values.mean(0) if count else values.new_zeros(values.shape[1:])
        return Moments(count, mean, (values - mean).square().sum(0))

    @property
    def variance(self) -> Tensor:
        """The biased variance M2 / n, which normalizes; 0 where there are no values."""
        if isinstance(self.count, Tensor):
            return self.M2 / self.count.clamp_min(1)
        return self.M2 / self.count

    @property
    def unbiased(self) -> Tensor:
        """The unbiased variance M2 / (n − 1), which is stored."""
        if isinstance(self.count, Tensor):
            return self.M2 / (self.count - 1).clamp_min(1)
        return self.M2 / max(self.count - 1, 1)

    def rstd(self, eps: float) -> Tensor:
        """1 / √(variance + eps)."""
        return (self.variance + eps).rsqrt()

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of values together; exact for any two counts, either of them 0.

        n = n₁ + n₂,  δ = μ₂ − μ₁,  μ = μ₁ + δ·n₂/n,  M2 = M2₁ + M2₂ + δ²·n₁n₂/n

        Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances" (1979), eq. 2.1.
        """
        count = self.count + other.count
        share = other.count / (count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1))
        delta = other.mean - self.mean
        return Moments(count, self.mean + delta * share, self.M2 + other.M2 + delta.square() * (self.count * share))

    @staticmethod
    def merged(parts: Iterable[Moments]) -> Moments:
        """All parts merged, in order."""
        whole: Moments | None = None
        for part in parts:
            whole = part if whole is None else whole.merge(part)
        if whole is None:
            raise ValueError("Moments.merged: expected at least one part, got none")
        return whole

    @staticmethod
    def concatenated(parts: Iterable[Moments]) -> Moments:
        """Groups of several parts side by side along the first axis, each with its own count."""
        parts = tuple(parts)
        counts = [torch.as_tensor(p.count, dtype=p.mean.dtype, device=p.mean.device).expand_as(p.mean) for p in parts]
        return Moments(torch.cat(counts), torch.cat([p.mean for p in parts]), torch.cat([p.M2 for p in parts]))

    def pooled(self, axes: tuple[int, ...]) -> Moments:
        """The groups along some axes as one group each."""
        if not axes:
            return self
        count = torch.as_tensor(self.count, dtype=self.mean.dtype, device=self.mean.device).expand(self.mean.shape)
        total = count.sum(axes, keepdim=True)
        mean = (count * self.mean).sum(axes, keepdim=True) / total.clamp_min(1)
        between = (count * (self.mean - mean).square()).sum(axes)
        return Moments(total.squeeze(axes), mean.squeeze(axes), self.M2.sum(axes) + between)

    def averaged(self, axes: tuple[int, ...], variance: str = "unbiased") -> tuple[Tensor, Tensor]:
        """Mean and variance, each averaged over some axes with the counts for weights.

        There is no between-group term: what torch's InstanceNorm keeps, and the usual ghost batch.

        Args:
            variance: ``"biased"`` for M2 / n.
        """
        spread = self.variance if variance == "biased" else self.unbiased
        if not axes:
            return self.mean, spread
        if not isinstance(self.count, Tensor):
            return self.mean.mean(axes), spread.mean(axes)
        count = self.count.expand(self.mean.shape)
        weight = count / count.sum(axes, keepdim=True).clamp_min(1)
        return (self.mean * weight).sum(axes), (spread * weight).sum(axes)
