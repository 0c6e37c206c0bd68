"""The plots of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import mean, median
from typing import Any

import numpy as np

from evenorm.lab.comparison.advice import accuracy_noise, best, reliable
from evenorm.lab.comparison.compare import Comparison, Outcome, Row
from evenorm.lab.figure import DASHES, Figure
from evenorm.lab.probes import PERCENTILES

# A curve is drawn through so many points at most, each the mean of its stretch.
POINTS = 48
# Layers beside one another in one figure.
PANELS = 4


def line(name: str, x: Sequence[float], y: Sequence[float | None], **more: Any) -> dict[str, Any]:
    """Return one row's curve."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": [None if value is None else float(f"{value:.4g}") for value in y],
        "line": {"color": f"--{name}", "dash": DASHES.get(name, "solid"), "width": 2},
        "hovertemplate": f"{name}: %{{y:.3g}}<extra></extra>",
        **more,
    }


def accuracies(comparison: Comparison, batch_size: int) -> Figure:
    """Every run's accuracy, the means, and how far from the best mean is noise."""
    rows = comparison.shown(batch_size)[::-1]
    noise = accuracy_noise(comparison, batch_size)
    traces: list[dict[str, Any]] = []
    for row in rows:
        values = [100 * value for value in row.accuracies]
        common = {
            "type": "scatter",
            "mode": "markers",
            "name": row.normalizer,
            "y": [row.normalizer] * len(values),
            "hovertemplate": f"{row.normalizer}: %{{x:.1f}} %<extra></extra>",
        }
        seeds = {"size": 7, "color": f"--{row.normalizer}", "opacity": 0.45}
        mark = {
            "size": 18,
            "symbol": "line-ns",
            "line": {"width": 3, "color": f"--{row.normalizer}"},
        }
        traces.append({**common, "x": values, "marker": seeds})
        traces.append({**common, "x": [mean(values)], "y": [row.normalizer], "marker": mark})
    top = best(reliable(comparison, batch_size) or rows)
    margin = noise.margin(len(top.outcomes), len(top.outcomes))
    shapes = []
    if math.isfinite(margin):
        shapes = [
            {
                "type": "rect",
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "x0": 100 * (top.accuracy - margin),
                "x1": 100 * top.accuracy,
                "fillcolor": "--noise",
                "line": {"width": 0},
                "layer": "below",
            }
        ]
    return Figure(
        "Accuracy on held-out images, %",
        "Dot plot of the accuracy of every run by normalizer.",
        60 + 28 * len(rows),
        traces,
        {
            "shapes": shapes,
            "xaxis": {"ticksuffix": " %"},
            "yaxis": {"showgrid": False, "type": "category"},
            "hovermode": "closest",
        },
    )


def losses(comparison: Comparison, batch_size: int) -> Figure:
    """Return the loss curves: means over seeds."""
    traces = [
        line(row.normalizer, *average([outcome.run.losses for outcome in row.outcomes.values()]))
        for row in comparison.shown(batch_size)
    ]
    return Figure(
        "Training loss",
        "Training loss by step, one curve for each normalizer.",
        340,
        traces,
        {
            "xaxis": {"title": {"text": "step"}},
            "yaxis": {"type": "log", "title": {"text": "cross-entropy, nats"}, "dtick": 1, "tickformat": "~g"},
        },
    )


def average(curves: Iterable[Sequence[float]]) -> tuple[list[float], list[float | None]]:
    """Thin curves to means over stretches of steps, and average them as far as they are finite.

    >>> average([[4.0, 2.0], [2.0]])
    ([1.0, 2.0], [3.0, 2.0])
    """
    kept = [[value for value in curve if math.isfinite(value)] for curve in curves]
    longest = max(map(len, kept))
    width = max(1, -(-longest // POINTS))
    steps: list[float] = []
    values: list[float | None] = []
    for start in range(0, longest, width):
        stretches = [curve[start : start + width] for curve in kept]
        steps.append(start + (min(width, longest - start) + 1) / 2)
        values.append(mean(mean(stretch) for stretch in stretches if stretch))
    return steps, values


def few(layers: Sequence[str]) -> list[str]:
    """Return the first, the last and some layers between.

    >>> few(["a", "b", "c", "d", "e", "f", "g"])
    ['a', 'c', 'e', 'g']
    """
    count = min(PANELS, len(layers))
    return [layers[index] for index in np.linspace(0, len(layers) - 1, count).round().astype(int)]


def activations(comparison: Comparison, batch_size: int) -> list[Figure]:
    """Return for each row how the values that enter the activation functions are spread, by layer."""
    rows = comparison.shown(batch_size)
    limit = reach(rows)
    return [activation(row, limit) for row in rows]


def first(row: Row) -> Outcome:
    """Return the outcome of the first seed."""
    return row.outcomes[min(row.outcomes)]


def reach(rows: Sequence[Row]) -> float:
    """Return a limit for the axis that nine in ten outer percentiles keep."""
    outer = [
        abs(value)
        for row in rows
        for percentiles in first(row).run.activations.values()
        for at_step in percentiles
        for value in (at_step[0], at_step[-1])
        if math.isfinite(value)
    ]
    return 1.15 * float(np.percentile(outer, 90)) if outer else 1.0


def activation(row: Row, limit: float) -> Figure:
    """Draw one row's percentiles: a panel for each layer, 5 to 95 light, 25 to 75 dark, the median a line."""
    run = first(row).run
    layers = few(list(run.activations))
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": [], "margin": {"l": 40, "r": 4, "t": 22, "b": 28}}
    for panel, layer in enumerate(layers, 1):
        axis = "" if panel == 1 else str(panel)
        levels = list(zip(*run.activations[layer], strict=True))
        steps = [step + 1 for step in run.probed]
        for low, high, opacity in ((0, -1, 0.22), (1, -2, 0.45)):
            traces.append(band(row.normalizer, steps, levels[low], levels[high], opacity, axis))
        middle = line(row.normalizer, steps, finite(levels[len(PERCENTILES) // 2]))
        traces.append({**middle, "xaxis": f"x{axis}", "yaxis": f"y{axis}"})
        left, right = (panel - 1) / len(layers), panel / len(layers)
        layout[f"xaxis{axis}"] = {
            "domain": [left + 0.01, right - 0.01],
            "anchor": f"y{axis}",
            "nticks": 3,
            "tickangle": 0,
        }
        layout[f"yaxis{axis}"] = {
            "range": [-limit, limit],
            "anchor": f"x{axis}",
            "showticklabels": panel == 1,
            "nticks": 5,
        }
        layout["annotations"].append(
            {
                "text": layer,
                "xref": "paper",
                "yref": "paper",
                "x": (left + right) / 2,
                "y": 1,
                "xanchor": "center",
                "yanchor": "bottom",
                "showarrow": False,
            }
        )
    return Figure(
        row.normalizer,
        f"Percentiles of what enters the activation functions with {row.normalizer}, by layer and step.",
        160,
        traces,
        layout,
    )


def finite(values: Iterable[float]) -> list[float | None]:
    """Return values with none in place of what is not finite."""
    return [value if math.isfinite(value) else None for value in values]


def band(
    name: str,
    steps: Sequence[int],
    low: Sequence[float],
    high: Sequence[float],
    opacity: float,
    axis: str,
) -> dict[str, Any]:
    """Return the area between two curves."""
    edge = [*finite(low), *reversed(finite(high))]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [*steps, *reversed(steps)],
        "y": [None if value is None else float(f"{value:.4g}") for value in edge],
        "fill": "toself",
        "fillcolor": f"--{name}",
        "opacity": opacity,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
    }


def gradients(comparison: Comparison, batch_size: int) -> list[Figure]:
    """Return for some layers how large each row's gradient was, medians over seeds."""
    rows = comparison.shown(batch_size)
    layers = few(list(first(rows[0]).run.gradients))
    norms = [norm for row in rows for layer in layers for norm in gradient(row, layer)[1] if norm]
    # One scale for all layers, so that they can be compared.
    scale = [math.log10(min(norms, default=0.1)) - 0.1, math.log10(max(norms, default=1.0)) + 0.1]
    return [
        Figure(
            layer,
            f"Gradient norm of layer {layer} by step, one curve for each normalizer.",
            260,
            [line(row.normalizer, *gradient(row, layer)) for row in rows],
            {
                "xaxis": {"title": {"text": "step"}, "nticks": 5},
                "yaxis": {"type": "log", "dtick": 1, "tickformat": "~g", "range": scale},
            },
        )
        for layer in layers
    ]


def gradient(row: Row, layer: str) -> tuple[list[int], list[float | None]]:
    """Return a layer's gradient norm at each probed step; a logarithmic axis has no place for zero."""
    runs = [outcome.run for outcome in row.outcomes.values()]
    norms = [median(column) for column in zip(*(run.gradients[layer] for run in runs), strict=False)]
    drawn = [norm if 0 < norm < math.inf else None for norm in norms]
    return [step + 1 for step in runs[0].probed[: len(drawn)]], drawn
