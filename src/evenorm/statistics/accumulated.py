"""Statistics of a whole window of micro-batches, for gradient accumulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from evenorm.statistics.source import Composed

__all__ = ["Accumulated"]


@dataclass(frozen=True, repr=False)
class Accumulated(Composed):
    """The statistics of a window of micro-batches, whose gradients are accumulated for one optimizer step.

    The history takes the window in once, at its end, as if it had been one batch, exactly. How a micro-batch is
    normalized is a choice:

    - ``"exact"``: by the moments of the whole window, with exact gradients. Every micro-batch must be at the layer at
      the same time, which :func:`evenorm.lockstep` sees to.
    - ``"approximate"``: by its own moments, in no more memory than one micro-batch. Outputs and gradients are not those
      of one big batch: in a network of two convolutions the gradient is off by 0.58 of its norm with windows of 2 × 8
      images, by 0.75 with 4 × 4, by 1.22 with 16 × 1 (tests/test_compositions.py).

    Args:
        window: micro-batches per optimizer step, at least 1.
        gradients: ``"exact"`` or ``"approximate"``.
        of: the average that is the history.

    Raises:
        ValueError: a window that is no positive number, or a composition that means nothing.

    >>> Accumulated(0)
    Traceback (most recent call last):
    ValueError: Accumulated: window must be a positive number of micro-batches, got 0
    """

    window: int
    gradients: Literal["exact", "approximate"] = "exact"
    place: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        if type(self.window) is not int or self.window < 1:
            raise ValueError(f"Accumulated: window must be a positive number of micro-batches, got {self.window!r}")
        if self.gradients not in ("exact", "approximate"):
            raise ValueError(f"Accumulated: gradients must be 'exact' or 'approximate', got {self.gradients!r}")
        super().__post_init__()

    def __str__(self) -> str:
        return f"a window of {self.window} micro-batches ({self.gradients} gradients), {self.of or 'the average'}"
