"""A run in a terminal of 80 columns: rows as they are measured, then the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from evenorm.bench.peers import OURS, OURS_COMPILED
from evenorm.bench.peers.threads import one
from evenorm.bench.roof import COPY, STREAM
from evenorm.bench.row import LARGE, Row
from evenorm.bench.run import Run
from evenorm.bench.statements import statements
from evenorm.bench.summary import COMPILED, Mean, Summary
from evenorm.bench.table import Table as Stated
from evenorm.bench.table import times
from evenorm.bench.watched import BARE

__all__ = ["WIDTH", "closing", "heading", "line", "mean", "watch"]

WIDTH = 80

_MARKS = {"forward": "fwd", "backward": "bwd", "both": "f+b", "training": "trn", "inference": "inf"}
_SHORT = {"compile": "comp.", "onnxruntime": "onnx", "norm alone": "alone", "separate": "apart", COMPILED: "both comp."}
_SHORT |= {one(OURS): "ours1", one("torch"): "tor.1"}
_PEERS_SHOWN = 4
# Below this the kernel's count of resident pages is too coarse.
_LEAST_PEAK = 1 << 20


def watch(rows: Iterable[Row], total: int, keep: Callable[[Row], None], console: Console) -> bool:
    """Print and keep rows as they come, above a bar; return whether Ctrl-C ended them."""
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=total)
        try:
            for row in _printed(rows, progress.console):
                keep(row)
                progress.advance(bar)
        except KeyboardInterrupt:
            return True
    return False


def _printed(rows: Iterable[Row], console: Console) -> Iterator[Row]:
    above: tuple[str, ...] = ()
    for row in rows:
        group = (row.suite, row.title, row.memory)
        if group != above:
            console.print(heading(row))
            above = group
        console.print(line(row))
        yield row


def shown(row: Row) -> list[str]:
    """The peers that have a column."""
    return [name for name in row.peers() if name != OURS_COMPILED][:_PEERS_SHOWN]


def heading(row: Row) -> Text:
    """What the rows below share, and their columns."""
    columns = [f"{'shape':17}", "   ", f"{'time':>7}", f"{'GB/s':>5}", "copy", "strm", f"{'mem':>4}", f"{'error':>5}"]
    columns += [f"{_SHORT.get(name, name):>5}" for name in shown(row)]
    where = "" if row.suite == "models" else f" · {row.memory} memory"
    return Text.assemble((f"\n{row.title}{where}\n", "bold"), (" ".join(columns), "dim"))


def line(row: Row) -> Text:
    """One row: time, GB/s, percent of both roofs, peak memory in inputs, error, and each peer's time over ours."""
    start = f"{row.size:17} {_MARKS[row.direction]}"
    if row.ours.absent is not None:
        fault = Text(f"{start} {row.ours.absent}", style="red")
        fault.truncate(WIDTH, overflow="ellipsis")
        return fault
    peak = row.ours.peak
    cells = [
        f"{_time(row.seconds()):>7}",
        _number(row.rate, "5.1f"),
        _number(row.share_of(COPY), "4.0%"),
        _number(row.share_of(STREAM), "4.0%"),
        _number(peak / row.bytes if peak is not None and row.bytes >= _LEAST_PEAK else None, "4.1f"),
        f"{row.ours.error:>5.0e}".replace("e-0", "e-") if row.ours.error is not None else " " * 5,
    ]
    text = Text(" ".join([start, *cells]))
    for name in shown(row):
        text.append(f" {times(row.ratio(name)):>5}", style="red" if name == "torch" and row.slower else "")
    if row.descent is not None:
        text.append(f"\n    with torch's losses: {row.descent} steps", style="dim")
    return text


def closing(run: Run, summary: Summary) -> RenderableType:
    """The summary."""
    parts: list[RenderableType] = [*_means(summary)]
    if summary.shares:
        parts.append(
            Text("\nMapped memory beyond the cache: share of a roof, geometric mean (worst row)", style="bold")
        )
    parts += [
        Text(
            f"  {_MARKS[share.direction]}, {share.sweeps} sweep{'s' * (share.sweeps > 1)}: {share.mean:.0%} of "
            f"{share.roof} ({share.worst:.0%}, {share.worst_row})"
        )
        for share in summary.shares
    ]
    if summary.compared:
        judged = f"{len(summary.slower)} of {len(summary.compared)} rows are slower than torch eager"
        parts.append(Text(f"\n{judged} by more than 10 % or 3 µs, whichever is larger.", style="bold"))
        parts.append(Text("Nearest to torch eager, its time over ours with 95 % interval:"))
    for row in summary.worst:
        found = row.timings["torch"].ratio
        assert found is not None
        name = f"{_MARKS[row.direction]} {row.memory} {row.title} {row.size}"
        near = Text(f"  {times(found.value)} [{found.low:.2f}, {found.high:.2f}]  {name}")
        near.truncate(WIDTH, overflow="ellipsis")
        parts.append(near)
    for row in summary.watched:
        found = row.timings[BARE].ratio
        assert found is not None
        value, low, high = (1 / part - 1 for part in (found.value, found.high, found.low))
        share = f"{value:+.1%} [{low:+.1%}, {high:+.1%}]"
        parts.append(Text(f"\nWatching {row.network} costs {share} of a training step.", style="bold"))
    if summary.wrong:
        parts.append(Text(f"\n{len(summary.wrong)} rows have no speed:", style="bold red"))
        parts += [Text(f"  {row.title} {row.size} {_MARKS[row.direction]}: {row.ours.absent}") for row in summary.wrong]
    parts += [part for stated in statements(run, summary) for part in _drawn(stated)]
    return Group(*parts)


def _drawn(stated: Stated) -> Iterator[RenderableType]:
    """A table that a run states, in the terminal's width."""
    yield Text(f"\n{stated.title}", style="bold")
    yield Text(stated.note, style="dim")
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for position, head in enumerate(stated.heads):
        table.add_column(head, justify="right" if position else "left", no_wrap=True)
    for cells in stated.lines:
        table.add_row(*cells)
    yield table


def _means(summary: Summary) -> Iterator[RenderableType]:
    """One table for each suite, whose peers are its columns."""
    for suite, names, groups in summary.tables():
        yield Text(f"\n{suite}: peer's time over ours, geometric mean" + above(suite), style="bold")
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
        table.add_column("")
        table.add_column("rows", justify="right")
        for name in names:
            table.add_column(_SHORT.get(name, name), justify="right", no_wrap=True)
        for (kind, dtype, direction, memory), means in groups.items():
            rows = max(mean.rows for mean in means.values())
            words = [*kind.split()[1:], dtype, *([memory] if suite != "models" else []), _MARKS[direction]]
            table.add_row(" ".join(words), str(rows), *(mean(means.get(name), rows) for name in names))
        yield table


def above(suite: str) -> str:
    """Which rows a suite's means are of."""
    return "" if suite == "models" else f" above {LARGE:,} elements"


def mean(found: Mean | None, rows: int) -> str:
    """A mean, and of how many rows where they are not all."""
    if found is None:
        return "–"
    return times(found.value) if found.rows == rows else f"{times(found.value)} ({found.rows})"


def _number(value: float | None, form: str) -> str:
    width = int(form.split(".")[0])
    return f"{value:{form}}"[: width + 1] if value is not None else " " * width


def _time(seconds: float | None) -> str:
    assert seconds is not None
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 * scale else f"{seconds:.0f} s"
    return f"{seconds * 1e9:.0f} ns"
