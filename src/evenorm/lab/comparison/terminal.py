"""A comparison in a terminal: progress while it runs, then tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from evenorm.lab.comparison.advice import tied
from evenorm.lab.comparison.compare import RATES, Comparison, Row, compare
from evenorm.lab.comparison.sentences import Conclusion

WIDTH = 80


def watch(comparison: Comparison, workers: int, console: Console) -> bool:
    """Run a comparison under progress bars; return whether it was interrupted by Ctrl-C."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    tasks = comparison.protocol.tasks()
    with Progress(*columns, console=console) as progress:
        bars = {
            size: progress.add_task(f"batch size {size}", total=sum(task.batch_size == size for task in tasks))
            for size in comparison.protocol.batch_sizes
        }
        try:
            for task in compare(comparison, workers):
                progress.advance(bars[task.batch_size])
        except KeyboardInterrupt:
            return True
    return False


def introduction(comparison: Comparison, workers: int) -> str:
    """Return what is about to be done, in a few lines."""
    protocol, images = comparison.protocol, comparison.images
    side = " × ".join(map(str, images.shape[1:]))
    rate = f"at rate {protocol.rate:g}" if protocol.rate else "at the best rate of its trials"
    return (
        f"One {protocol.model} with each normalizer, {protocol.seeds} "
        f"seed{'s' * (protocol.seeds > 1)} each, {rate}, {workers} at a time.\n"
        f"Data: {images.origin}; {len(images.classes)} classes, {side} pixels."
    )


def summary(comparison: Comparison, conclusion: Conclusion) -> RenderableType:
    """Return the tables, their legend and the three sentences, for 80 columns."""
    parts: list[RenderableType] = []
    for size in comparison.protocol.batch_sizes:
        parts += [table(comparison, size), notes(comparison, size)]
    parts += [Padding(Text(legend(comparison), style="dim"), (0, 0, 1, 0))]
    parts += [
        Text(f"1. {conclusion.recommendation}", style="bold"),
        Text(f"2. {conclusion.evidence}"),
        Text(f"3. {conclusion.next}:"),
        # Not wrapped, so that it can be copied.
        Text(f"   {conclusion.command}", style="bold", no_wrap=True, overflow="ignore"),
    ]
    return Group(*parts)


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("accuracy %\n", lambda row: f"{100 * row.accuracy:.1f} ± {100 * row.accuracy_spread:.1f}"),
    ("steps to\n90 %", lambda row: steps(row)),
    ("largest\nrate", lambda row: largest(row)),
    ("rate\nused", lambda row: f"{row.rate:g}"),
    ("train/eval\ngap %", lambda row: f"{100 * row.changed:.1f}"),
    ("ms per\nstep", lambda row: f"{1000 * row.step_seconds:.1f}"),
    ("KiB per\nstep", lambda row: f"{row.saved_bytes / 1024:,.0f}"),
)


def steps(row: Row) -> str:
    """Return the steps to 90 %, or that they were more than the run had."""
    return f"{row.median_steps:.0f}" if math.isfinite(row.median_steps) else f"> {row.steps}"


def largest(row: Row) -> str:
    """Return the largest rate that trains; at the grid's end it may be larger still."""
    if row.largest_rate is None:
        return "none"
    return f"{'≥ ' if row.largest_rate == RATES[-1] else ''}{row.largest_rate:g}"


def table(comparison: Comparison, batch_size: int) -> Table:
    """Return the table of one batch size; a star marks what is within noise of the best."""
    shown = comparison.at(batch_size)
    stars = tied(comparison, batch_size) if comparison.shown(batch_size) else []
    drawn = Table(
        title=f"Batch size {batch_size}, {shown[0].steps} steps",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    drawn.add_column("normalizer\n")
    for heading, _ in COLUMNS:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in shown:
        cells = [value(row) for _, value in COLUMNS] if row.outcomes else ["–"] * len(COLUMNS)
        cells[0] += " *" if row.normalizer in stars else "  "
        drawn.add_row(row.normalizer, *cells, style="" if row.outcomes else "dim")
    return drawn


def notes(comparison: Comparison, batch_size: int) -> Text:
    """Return why rows are empty or not whole."""
    lines = []
    for row in comparison.at(batch_size):
        if row.reason:
            lines.append(f"{row.normalizer} does not apply: {row.reason}.")
        elif len(row.outcomes) < comparison.protocol.seeds:
            lines.append(f"{row.normalizer}: {len(row.outcomes)} of {comparison.protocol.seeds} seeds.")
    lines += [f"failed: {failure}" for failure in comparison.failures if f"batch size {batch_size}," in failure]
    return Text("\n".join([*lines, ""]), style="dim")


def legend(comparison: Comparison) -> str:
    """Return what the columns mean."""
    seeds = comparison.protocol.seeds
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    return (
        f"accuracy: held-out images classified right, mean ± standard deviation of {seeds} seeds; "
        "* within noise of the best\n"
        f"largest rate: of {rates}, the last whose trial (a quarter of the steps) ends with a "
        "training loss 5 % below guessing\n"
        "train/eval gap: images whose class changes when the trained network is put back in "
        "training mode\n"
        "ms: processor time of forward, backward and update, median, one thread\n"
        "KiB: what autograd keeps between forward and backward, without parameters"
    )
