"""Two samples of activations: are they of one population?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp

from torch import Tensor

__all__ = ["Difference", "difference", "largest_difference"]

# Of one population the mean of z² is about 1; noise beyond this is rarer than one in a thousand.
CERTAIN = 12.0
# In standard deviations, and in logarithms of a ratio: below this one average serves both well.
RELEVANT_SHIFT, RELEVANT_SCALE = 0.3, 0.5
# Inputs that are compared two by two.
MOST = 8


@dataclass(frozen=True)
class Difference:
    """How two groups of samples differ, per channel, in the middle.

    Attributes:
        shift: of the means, in pooled standard deviations.
        scale: logarithm of the ratio of variances, without its sign.
        evidence: mean of z² over channels, of the means or of the log variances, whichever is larger.
    """

    shift: float
    scale: float
    evidence: float

    @property
    def is_certain(self) -> bool:
        """Two populations, and far enough apart to matter."""
        return self.evidence > CERTAIN and (self.shift > RELEVANT_SHIFT or self.scale > RELEVANT_SCALE)

    def to_dict(self) -> dict[str, float]:
        """The figures by name."""
        return {"shift": self.shift, "variance ratio": exp(self.scale), "mean z²": self.evidence}

    def __str__(self) -> str:
        return f"means {self.shift:.2g} standard deviations apart, variances by a factor of {exp(self.scale):.2g}"


def largest_difference(inputs: Sequence[Tensor]) -> Difference | None:
    """Of all that are certain among some inputs, two by two."""
    found = (difference(a, b) for a, b in combinations(inputs[:MOST], 2))
    return max((d for d in found if d is not None and d.is_certain), key=lambda d: d.evidence, default=None)


def difference(first: Tensor, second: Tensor) -> Difference | None:
    """Compare two inputs (N, C, …), whose samples, not positions, are independent; ``None`` for too few samples.

    >>> import torch
    >>> x = torch.randn(16, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    >>> difference(x[:8], x[8:]).is_certain, difference(x[:8], x[8:] + 1).is_certain
    (False, True)
    """
    if first.dim() < 2 or second.dim() < 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 3:
        return None
    a, b = (x.detach().double().flatten(2) if x.dim() > 2 else x.detach().double()[..., None] for x in (first, second))
    variances = [x.var((0, 2), correction=0) for x in (a, b)]
    pooled = ((variances[0] + variances[1]) / 2).clamp_min(1e-30)
    means = [x.mean(2) for x in (a, b)]
    shift = (means[0].mean(0) - means[1].mean(0)).abs() / pooled.sqrt()
    evidence = [_evidence(*means)]
    scale = (variances[0].clamp_min(1e-30) / variances[1].clamp_min(1e-30)).log().abs()
    if a.shape[2] > 1 and b.shape[2] > 1:
        evidence.append(_evidence(*(x.var(2).clamp_min(1e-30).log() for x in (a, b))))
    return Difference(float(shift.median()), float(scale.median()), max(evidence))


def _evidence(a: Tensor, b: Tensor) -> float:
    """The mean of z² over channels in a comparison of two groups of rows, by Welch."""
    error = a.var(0) / len(a) + b.var(0) / len(b)
    return float(((a.mean(0) - b.mean(0)).square() / error.clamp_min(1e-30)).mean())
