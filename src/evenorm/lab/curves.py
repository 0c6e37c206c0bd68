"""The plots of an experiment as plain plotly values: means over seeds, and how far the seeds reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

from evenorm.lab.experiment import Observation, Plot, Result
from evenorm.lab.figure import Figure

# The page's colors, told apart by the color-blind in this order, and on paper by their dashes.
COLORS = ("none", "batch", "layer", "group", "instance", "weight", "rms", "spectral")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SIGNIFICANT = 4


def figures(result: Result) -> list[Figure]:
    """Return the figures of an experiment; pictures are none of plotly's and are left out."""
    observations = [result.observations[seed] for seed in result.seeds]
    return [draw(plot, observations) for plot in result.experiment.plots if plot.kind != "pictures"]


def draw(plot: Plot, observations: Sequence[Observation]) -> Figure:
    """Return one figure: for each name the mean over seeds, and lightly the range."""
    names = list(dict.fromkeys(name for one in observations for name in one.curves.get(plot.key, {})))
    traces: list[dict[str, Any]] = []
    for name, (color, dash) in zip(names, styles(names), strict=True):
        seen = [one.curves[plot.key][name] for one in observations if name in one.curves.get(plot.key, {})]
        traces += bars(name, color, seen) if plot.kind == "bars" else lines(name, color, dash, seen)
    several = len(names) > 1
    # Two names to a line, more or less, on a phone.
    room = 22 * -(-len(names) // 3) if several else 0
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": plot.x}},
        "yaxis": {"title": {"text": plot.y}},
        "showlegend": several,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 58, "r": 12, "t": 16 + room, "b": 46},
        "barmode": "group",
    }
    if plot.kind == "bars":
        layout |= {"hovermode": "closest"}
    for axis in plot.logarithmic:
        layout[f"{axis}axis"] |= {"type": "log", "dtick": 1, "tickformat": "~g"}
    return Figure(
        plot.title, f"{plot.title}: {plot.y} by {plot.x or 'name'}, for {', '.join(names)}.", 300 + room, traces, layout
    )


def styles(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield a color and a dash for each name.

    A name that begins with a normalizer's has its color; names of one color differ in their dashes.

    >>> list(styles(["batch", "batch, 15 %", "pre"]))
    [('--batch', 'solid'), ('--batch', 'dash'), ('--none', 'solid')]
    """
    first = {name: name.split(",")[0].split()[0] for name in names}
    free = cycle([color for color in COLORS if color not in first.values()] or COLORS)
    used: dict[str, int] = {}
    for name in names:
        color = first[name] if first[name] in COLORS else next(free)
        yield f"--{color}", DASHES[used.get(color, 0) % len(DASHES)]
        used[color] = used.get(color, 0) + 1


def lines(name: str, color: str, dash: str, seen: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a curve, and under it the range of the seeds."""
    xs, columns = columns_of(seen)
    middle = [mean(column) for column in columns]
    curve = {
        "type": "scatter",
        "mode": "lines" if len(xs) > 12 else "lines+markers",
        "name": name,
        "x": xs,
        "y": middle,
        "line": {"color": color, "dash": dash, "width": 2},
        "hovertemplate": f"{name}: %{{y:.3g}}<extra></extra>",
    }
    if len(seen) < 2:
        return [curve]
    reach = {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [*xs, *reversed(xs)],
        "y": [*map(least, columns), *reversed([most(column) for column in columns])],
        "fill": "toself",
        "fillcolor": color,
        "opacity": 0.14,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [reach, curve]


def bars(name: str, color: str, seen: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a bar for each category, with the range of the seeds."""
    xs, columns = columns_of(seen)
    middle = [mean(column) for column in columns]
    up = [shown(most(column) - m) if m is not None else None for column, m in zip(columns, middle, strict=True)]
    down = [shown(m - least(column)) if m is not None else None for column, m in zip(columns, middle, strict=True)]
    return [
        {
            "type": "bar",
            "name": name,
            "x": xs,
            "y": middle,
            "marker": {"color": color},
            "error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": "--text"},
            "hovertemplate": f"{name}, %{{x}}: %{{y:.3g}}<extra></extra>",
        }
    ]


def columns_of(seen: Sequence[Any]) -> tuple[list[Any], list[list[float]]]:
    """Return every x, in order, and under it what the seeds have there; those that ended early have less.

    >>> columns_of([([1, 2], [1.0, 4.0]), ([1], [3.0])])
    ([1, 2], [[1.0, 3.0], [4.0]])
    """
    found: dict[Any, list[float]] = {}
    for xs, ys in seen:
        for x, y in zip(xs, ys, strict=True):
            found.setdefault(x, [])
            if y is not None:
                found[x].append(y)
    order = list(found) if any(isinstance(x, str) for x in found) else sorted(found)
    return order, [found[x] for x in order]


def shown(value: float) -> float:
    """Return a number with as many digits as are seen."""
    return float(f"{value:.{SIGNIFICANT}g}")


def mean(column: Sequence[float]) -> float | None:
    """Return the mean, if there is anything."""
    return shown(sum(column) / len(column)) if column else None


def least(column: Sequence[float]) -> float:
    """Return the least."""
    return shown(min(column, default=0.0))


def most(column: Sequence[float]) -> float:
    """Return the greatest."""
    return shown(max(column, default=0.0))
