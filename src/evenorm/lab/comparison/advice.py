"""What a comparison recommends, by rules that were fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

import numpy as np

from evenorm.lab.comparison.compare import Comparison, Row
from evenorm.lab.comparison.noise import Noise, counting_error, pool

Rule = Literal["nothing", "one seed", "split", "accuracy", "steps", "memory"]


@dataclass(frozen=True)
class Choice:
    """What to use.

    Attributes:
        rule: which rule decided.
        chosen: the recommended normalizer by batch size; empty where nothing was learned.
        tied: those as accurate, up to noise, at every batch size, the chosen one included.
    """

    rule: Rule
    chosen: dict[int, str]
    tied: tuple[str, ...] = ()


def choose(comparison: Comparison) -> Choice:
    """Decide what to use.

    1. Where no row learned more than the most frequent class: nothing.
    2. A row of which a run learned no more than that is no candidate where others always learn.
    3. At each batch size the most accurate row and those within noise of it are candidates.
    4. Where no row is a candidate at every batch size: the most accurate one for each.
    5. Of the candidates, those that reach 90 % in the fewest steps, up to noise.
    6. Of these, the one that keeps the least memory per step: of equals the simplest.
    """
    sizes = [size for size in comparison.protocol.batch_sizes if reliable(comparison, size)]
    if not sizes:
        return Choice("nothing", {})
    tops = {size: best(reliable(comparison, size)).normalizer for size in sizes}
    if not any(accuracy_noise(comparison, size).freedom for size in sizes):
        return Choice("one seed", tops)
    ties = [tied(comparison, size) for size in sizes]
    candidates = tuple(name for name in ties[0] if all(name in others for others in ties))
    if not candidates:
        return Choice("split", tops)
    rows = {name: [find(comparison, name, size) for size in sizes] for name in candidates}
    quick = fastest(rows)
    lightest = min(quick, key=lambda name: sum(row.saved_bytes for row in rows[name]))
    rule: Rule = "accuracy" if len(candidates) == 1 else "steps" if len(quick) == 1 else "memory"
    return Choice(rule, dict.fromkeys(sizes, lightest), candidates)


def reliable(comparison: Comparison, batch_size: int) -> list[Row]:
    """Return the rows at a batch size whose runs all learned; where there is none, those that did once."""
    rows = comparison.shown(batch_size)
    always = [row for row in rows if all(learned(comparison, value) for value in row.accuracies)]
    return always or [row for row in rows if learned(comparison, row.accuracy)]


def learned(comparison: Comparison, accuracy: float) -> bool:
    """Whether an accuracy beats naming the most frequent class, by more than the error of counting."""
    labels = comparison.images.test_labels
    guessing = float(np.bincount(labels).max()) / len(labels)
    return accuracy - guessing > counting_error(guessing, len(labels))


def best(rows: Sequence[Row]) -> Row:
    """Return the row with the highest mean accuracy."""
    return max(rows, key=lambda row: row.accuracy)


def find(comparison: Comparison, name: str, batch_size: int) -> Row:
    """Return one normalizer's row at a batch size."""
    return next(row for row in comparison.at(batch_size) if row.normalizer == name)


def accuracy_noise(comparison: Comparison, batch_size: int) -> Noise:
    """Return what chance does to the accuracies at a batch size: seeds, and counting on few images."""
    rows = reliable(comparison, batch_size)
    if not rows:
        return Noise(0.0, 0)
    resolution = counting_error(best(rows).accuracy, len(comparison.images.test_labels))
    return pool((row.accuracies for row in rows), resolution)


def tied(comparison: Comparison, batch_size: int) -> tuple[str, ...]:
    """Return the most accurate row at a batch size and those within noise of it."""
    rows = reliable(comparison, batch_size)
    noise = accuracy_noise(comparison, batch_size)
    return tuple(row.normalizer for row in rows if noise.hides(row.accuracies, best(rows).accuracies))


def fastest(rows: dict[str, list[Row]]) -> list[str]:
    """Return the normalizers that reach 90 % in the fewest steps, over their batch sizes, up to noise."""
    scores = {name: log_steps(by_size) for name, by_size in rows.items()}
    first = min(scores, key=lambda name: mean(scores[name]))
    # The accuracy was looked at only so often.
    resolution = mean(math.log1p(row.interval / capped_steps(row)[0]) for row in rows[first])
    noise = pool(scores.values(), resolution)
    return [name for name in scores if noise.hides(scores[name], scores[first])]


def capped_steps(row: Row) -> list[float]:
    """Return steps to 90 % by seed, where never counts as twice the length of the run."""
    return [min(steps, 2.0 * row.steps) for steps in row.steps_to_target]


def log_steps(rows: Sequence[Row]) -> list[float]:
    """Return the mean logarithm of the steps to 90 % over batch sizes, by seed."""
    by_size = [list(map(math.log, capped_steps(row))) for row in rows]
    return [mean(values) for values in zip(*by_size, strict=False)]
