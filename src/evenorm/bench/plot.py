"""A run as one HTML page that loads nothing: the only file of the benchmark that knows HTML."""

from __future__ import annotations

from html import escape
from pathlib import Path

import plotly.graph_objects as go

from evenorm.bench.machine import line
from evenorm.bench.peers import OURS
from evenorm.bench.roof import COPY, STREAM
from evenorm.bench.row import PASSES, Row
from evenorm.bench.run import Run, replace
from evenorm.bench.scaling import SUITE as SCALING
from evenorm.bench.statements import statements
from evenorm.bench.summary import summarize
from evenorm.bench.table import times
from evenorm.bench.terminal import above

__all__ = ["page", "write"]

_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
tr.slower td, tr.wrong td { color: #b00020 }
.wide { overflow-x: auto }
"""


def write(run: Run, file: Path) -> None:
    """Write the page."""
    replace(file, page(run))


def page(run: Run) -> str:
    """The page: the machine, the means, how far from the roof, how far from the peers, every row."""
    figures = [_ratios(run, direction) for direction in PASSES if _timed(run, direction)]
    figures += [_roofs(run)] if any(row.share_of(COPY) for row in run.rows) else []
    plots = "".join(
        figure.to_html(full_html=False, include_plotlyjs=position == 0) for position, figure in enumerate(figures)
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>evenorm bench, {escape(run.date)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>evenorm bench</h1><p>{escape(line(run.machine))}</p>{_commands(run)}{_means(run)}{_stated(run)}"
        f"{plots}{_rows(run)}</body></html>"
    )


def _timed(run: Run, direction: str) -> list[Row]:
    return [
        row for row in run.rows if row.direction == direction and row.suite != SCALING and row.seconds() is not None
    ]


def _ratios(run: Run, direction: str) -> go.Figure:
    """Every peer's time over ours against the size of the tensor, with the paired interval."""
    rows = _timed(run, direction)
    figure = go.Figure()
    names = dict.fromkeys(name for row in rows for name in row.peers())
    for color, name in zip(_COLORS * len(names), names, strict=False):
        found = [(row, ratio) for row in rows if (ratio := row.timings[name].ratio if name in row.timings else None)]
        if not found:
            continue
        figure.add_scatter(
            x=[row.elements for row, _ in found],
            y=[ratio.value for _, ratio in found],
            error_y={
                "array": [ratio.high - ratio.value for _, ratio in found],
                "arrayminus": [ratio.value - ratio.low for _, ratio in found],
                "thickness": 1,
            },
            text=[f"{row.title} {row.size}, {row.memory}, {row.network}" for row, _ in found],
            hovertemplate="%{text}<br>%{y:.2f}×",
            mode="markers",
            marker={"color": color},
            name=name,
        )
    figure.add_hline(y=1, line_dash="dot")
    figure.update_layout(title=f"Peer's time over ours, {PASSES[direction]}", template="plotly_white", height=460)
    figure.update_xaxes(title="elements", type="log")
    figure.update_yaxes(title="×, above 1 ours is faster", type="log")
    return figure


def _roofs(run: Run) -> go.Figure:
    """Our share of what a copy of the same bytes costs."""
    figure = go.Figure()
    kinds = [(memory, roof) for memory in ("fresh", "reused") for roof in (COPY, STREAM)]
    for color, (memory, roof) in zip(_COLORS, kinds, strict=False):
        rows = [row for row in run.rows if row.memory == memory and row.share_of(roof)]
        figure.add_scatter(
            x=[row.bytes for row in rows],
            y=[100 * (row.share_of(roof) or 0) for row in rows],
            text=[f"{row.title} {row.size}, {PASSES[row.direction]}" for row in rows],
            hovertemplate="%{text}<br>%{y:.0f} %",
            mode="markers",
            marker={"color": color},
            name=f"{memory} memory, {roof}",
        )
    figure.add_hline(y=100, line_dash="dot")
    figure.update_layout(title="Share of the roof: reads and writes that cannot be avoided", template="plotly_white")
    figure.update_xaxes(title="bytes of the input", type="log")
    figure.update_yaxes(title="% of a copy's speed")
    return figure


def _means(run: Run) -> str:
    text = "<h2>Peer's time over ours: geometric mean (rows)</h2>"
    for suite, names, groups in summarize(run).tables():
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = ""
        for (kind, dtype, direction, memory), found in groups.items():
            label = ", ".join([*kind.split()[1:], dtype, PASSES[direction], f"{memory} memory"])
            cells = "".join(
                f"<td>{times(found[name].value)} ({found[name].rows})</td>" if name in found else "<td>–</td>"
                for name in names
            )
            body += f"<tr><td>{escape(label)}</td>{cells}</tr>"
        text += f"<div class='wide'><table><tr><th>{suite}{above(suite)}</th>{head}</tr>{body}</table></div>"
    return text


def _stated(run: Run) -> str:
    """The tables that a run states."""
    text = ""
    for table in statements(run, summarize(run)):
        rows = "".join(
            f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
            for tag, cells in (("th", table.heads), *(("td", line) for line in table.lines))
        )
        text += (
            f"<h2>{escape(table.title)}</h2><p>{escape(table.note)}</p><div class='wide'><table>{rows}</table></div>"
        )
    return text


def _rows(run: Run) -> str:
    names = list(dict.fromkeys(name for row in run.rows for name in row.peers()))
    columns = ["row", "pass", "µs", "GB/s", "% copy", "% stream", "peak MiB", "error", *names]
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    return (
        "<h2>Every row</h2><p>Peers' time over ours with its 95 % interval; errors in units of the output's "
        f"largest value.</p><div class='wide'><table><tr>{head}</tr>{''.join(_row(row, names) for row in run.rows)}"
        "</table></div>"
    )


def _row(row: Row, names: list[str]) -> str:
    label = f"{row.title} {row.size}, {row.memory} memory, {row.network}"
    start = f"<td>{escape(label)}</td><td>{PASSES[row.direction]}</td>"
    seconds, ours = row.seconds(), row.timings[OURS]
    if seconds is None:
        return f"<tr class='wrong'>{start}<td colspan='{len(names) + 6}'>{escape(ours.absent or '')}</td></tr>"
    values = [
        f"{seconds * 1e6:,.1f}",
        "" if row.rate is None else f"{row.rate:.1f}",
        *("" if share is None else f"{share:.0%}" for share in (row.share_of(COPY), row.share_of(STREAM))),
        "" if ours.peak is None else f"{ours.peak / 2**20:,.1f}",
        "" if ours.error is None else f"{ours.error:.1e}",
    ]
    for name in names:
        ratio = row.timings[name].ratio if name in row.timings else None
        values.append("" if ratio is None else f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
    cells = "".join(f"<td>{value}</td>" for value in values)
    return f"<tr class='{'slower' if row.slower else ''}'>{start}{cells}</tr>"


def _commands(run: Run) -> str:
    return "".join(
        f"<p><code>{escape(command.text)}</code>, {escape(command.date)}, load {escape(command.load)} at the start. "
        f"{escape('; '.join(command.notes))}</p>"
        for command in run.commands
    )
