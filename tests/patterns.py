"""Patterns at random: every axis kept or reduced, whole or split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from evenorm import Pattern

__all__ = ["patterns"]


@st.composite
def patterns(draw: Callable[..., Any], most_axes: int = 4) -> Pattern:
    """A pattern without an ellipsis whose splits can be bound; at least one axis is reduced."""
    names = iter("abcdefgh")
    axes = []
    for _ in range(draw(st.integers(1, most_axes))):
        factors = [next(names) for _ in range(draw(st.sampled_from((1, 1, 2))))]
        sized = [f"{f}={draw(st.integers(1, 3))}" for f in factors[:-1]] + factors[-1:]
        marked = [f"[{f}]" if draw(st.booleans()) else f for f in sized]
        axes.append(marked[0] if len(marked) == 1 else f"({' '.join(marked)})")
    text = " ".join(axes)
    return Pattern.parse(text if "[" in text else f"{text} [z]")
