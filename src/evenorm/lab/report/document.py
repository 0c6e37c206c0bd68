"""What both pages share: the frame of a document, its figures, and the look of names and numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path

from evenorm.lab.figure import DASHES, Figure

# Allows the page its own styles and scripts, and nothing from anywhere else.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"

# Strokes and gaps of plotly's dashes.
STROKES = {"solid": "none", "dot": "3 3", "dash": "7 4", "dashdot": "9 3 3 3"}


class Plots:
    """The figures of a page, in the order in which they are placed."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def place(self, figure: Figure, titled: bool = True) -> str:
        """Return the place for a figure."""
        self.figures.append(figure)
        title = f"<h4>{escape(figure.title)}</h4>" if titled else ""
        return (
            f"<figure>{title}<div class='plot' role='img' aria-label='{escape(figure.text)}' "
            f"data-figure='{len(self.figures) - 1}' style='min-height:{figure.height}px'></div></figure>"
        )

    def grid(self, several: Iterable[Figure]) -> str:
        """Return the place for several figures beside one another."""
        return f"<div class='grid'>{''.join(map(self.place, several))}</div>"

    def json(self) -> str:
        """Return the figures for the page's script."""
        text = json.dumps([vars(figure) for figure in self.figures], separators=(",", ":"), allow_nan=False)
        return text.replace("</", "<\\/")


def document(title: str, body: str, plots: Plots) -> str:
    """Return the whole page."""
    from plotly.offline import get_plotlyjs

    here = files("evenorm.lab.report")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{here.joinpath("style.css").read_text(encoding="utf-8")}</style>
</head>
<body>
{body}
<script type="application/json" id="figures">{plots.json()}</script>
<script>{get_plotlyjs()}</script>
<script>{here.joinpath("plots.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def save(page: str, output: Path) -> None:
    """Write a page beside its place and move it there: a file of that name is always a whole page."""
    draft = output.with_name(output.name + ".part")
    draft.write_text(page, encoding="utf-8")
    draft.replace(output)


def key(name: str) -> str:
    """Return the stroke with which a row is drawn."""
    gaps = STROKES[DASHES.get(name, "solid")]
    return (
        f"<svg class='key' viewBox='0 0 24 4' aria-hidden='true'><path d='M0 2h24' stroke='var(--{name})' "
        f"stroke-width='3' stroke-dasharray='{gaps}'/></svg>"
    )


def prose(text: str) -> str:
    """Return text whose numbers stay with their units and errors."""
    kept = escape(text).replace(" ± ", "&nbsp;±&nbsp;")
    return kept.replace(" %", "&nbsp;%").replace(" ×", "&nbsp;×")


def plural(count: int, noun: str) -> str:
    """Return '1 seed' or '3 seeds'."""
    return f"{count} {noun}{'s' * (count != 1)}"
