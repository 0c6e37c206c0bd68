"""The affine: what multiplies and shifts the normalized values, and on which axes it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Affine", "Cast"]

Cast = Literal["after", "before"]
"""Whether values are rounded to the input's dtype ``"after"`` scaling or ``"before"`` it (Llama)."""


@dataclass(frozen=True)
class Affine:
    """y = x̂ · (offset + weight) + bias, weight and bias lying on the named axes of the pattern.

    ``offset=1`` is Gemma's 1 + weight. ``cast`` is the order of rounding and scaling; it matters for half
    precision alone.

    >>> Affine("c").axes
    ('c',)
    """

    axes: tuple[str, ...] = ()
    offset: float = 0.0
    cast: Cast = "after"

    def __init__(self, axes: str | tuple[str, ...] = (), offset: float = 0.0, cast: Cast = "after") -> None:
        if cast not in ("after", "before"):
            raise ValueError(f"Affine: cast must be 'after' or 'before' scaling, got {cast!r}")
        object.__setattr__(self, "axes", tuple(axes.split()) if isinstance(axes, str) else tuple(axes))
        object.__setattr__(self, "offset", float(offset))
        object.__setattr__(self, "cast", cast)

    def __str__(self) -> str:
        scale = "weight" if self.offset == 0 else f"{self.offset:g} + weight"
        return f"{scale} on {' '.join(self.axes)}" if self.axes else "no affine"
