"""A plot as plain plotly values, without a word of HTML.

A color is the name of a row, as ``"--batch"``; the page knows the row's color by day and by night.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Told apart without color too.
DASHES = {"none": "dot", "rms": "dash", "weight": "dash", "spectral": "dashdot"}


@dataclass(frozen=True)
class Figure:
    """One plot.

    Attributes:
        title: over the plot.
        text: what it shows, for those who do not see it.
        height: in pixels.
        traces: plotly's data.
        layout: plotly's layout, but for what the page's theme decides.
    """

    title: str
    text: str
    height: int
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
