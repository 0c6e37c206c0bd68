"""The recipe: pattern × centered or not × where the statistics come from × an affine × an epilogue."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from evenorm.affine import Affine
from evenorm.epilogue import Epilogue
from evenorm.pattern import Pattern, PatternError
from evenorm.statistics import Batch, PerDomain, Source, Statistics

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """One normalizer, spelled out. Immutable, printable, replaceable (``dataclasses.replace``).

    Args:
        pattern: which elements share statistics.
        centered: whether the mean is subtracted (RMSNorm: no).
        statistics: where mean and variance come from.
        history: the axes that a running average keeps; it averages over the other kept ones.
        affine: the axes of weight and bias, the offset of the weight, the order of cast and scale.
        eps: added to the variance, at least 0; ``None`` is the machine epsilon (float32's for half precision).
        epilogue: activation and residual.
        kernel: the kernel to use; ``None`` chooses.

    Raises:
        ValueError: a negative eps, an affine or history on axes that the pattern lacks or reduces.

    >>> print(Recipe(Pattern.parse("[n] c [...]"), affine=Affine("c")))
    [n] c [...] | centered | this batch | weight on c | eps 1e-05
    """

    pattern: Pattern
    centered: bool = True
    statistics: Statistics = field(default_factory=Batch)
    history: tuple[str, ...] = ()
    affine: Affine = field(default_factory=Affine)
    eps: float | None = 1e-5
    epilogue: Epilogue = field(default_factory=Epilogue)
    kernel: str | None = None

    # The statistics laid flat; of a choice among domains, that of this batch.
    source: Source = field(init=False, compare=False, repr=False)
    # As text, which operators take: the pattern of the history, the affine's axes.
    remembered: str = field(init=False, compare=False, repr=False)
    axes: str = field(init=False, compare=False, repr=False)
    remembered_axes: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.eps is not None and not (isinstance(self.eps, (int, float)) and 0 <= self.eps < math.inf):
            raise ValueError(f"eps must be a finite number of at least 0, got {self.eps!r}")
        if not isinstance(self.statistics, Statistics):
            raise ValueError(
                f"statistics must be Batch(), Running(…), Cumulative(), Frozen(), or composed of them by Renorm(), "
                f"Synced(), Accumulated(…), PerDomain(…); got {self.statistics!r}"
            )
        chosen = self.statistics.on(Batch())
        object.__setattr__(self, "statistics", chosen)
        object.__setattr__(self, "source", (Batch() if isinstance(chosen, PerDomain) else chosen).flat())
        kept = [f.name for f in self.pattern.factors if not f.reduced]
        for name in self.history:
            if name not in kept:
                raise PatternError(
                    f"the history lies on {name!r}, which the pattern does not keep; "
                    f"it keeps {', '.join(kept) or 'nothing'}",
                    self.pattern.text,
                )
        for name in self.affine.axes:
            if name not in self.pattern.names and not name.startswith("..."):
                raise PatternError(
                    f"the affine lies on {name!r}, which the pattern lacks; it has {', '.join(self.pattern.names)}",
                    self.pattern.text,
                )
        object.__setattr__(self, "remembered", self.pattern.keeping(self.history).text)
        axes = " ".join(self.affine.axes)
        object.__setattr__(self, "axes", axes)
        for joined in self.pattern.joined_without(self.history):
            axes = axes.replace(joined, joined.replace(" ", "_"))
        object.__setattr__(self, "remembered_axes", axes)

    def eps_for(self, dtype: torch.dtype) -> float:
        """The eps that inputs of this dtype get; half precision gets that of float32, in which it is summed."""
        if self.eps is not None:
            return float(self.eps)
        return torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps

    def __str__(self) -> str:
        centered = "centered" if self.centered else "not centered"
        eps = "machine eps" if self.eps is None else f"eps {self.eps:g}"
        parts = [self.pattern, centered, self.statistics, self.affine, eps]
        if self.epilogue.activation != "identity":
            parts.append(self.epilogue)
        return " | ".join(map(str, parts))
