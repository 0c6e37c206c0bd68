"""The README's figures, made from one run and put between two markers."""

from __future__ import annotations

from pathlib import Path

from evenorm.bench.machine import line
from evenorm.bench.row import Run
from evenorm.bench.summary import PASSES, summarize
from evenorm.bench.terminal import times

__all__ = ["BEGIN", "END", "figures", "insert"]

BEGIN, END = "<!-- figures: evenorm bench -->", "<!-- end of figures -->"


def insert(run: Run, file: Path) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: the file lacks a marker.
    """
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{file}: expected the lines {BEGIN} and {END}, between which the figures go")
    file.write_text(f"{before}{BEGIN}\n{figures(run)}{END}{after}", encoding="utf-8")


def figures(run: Run) -> str:
    """The geometric means as a table, with the machine and the command that measured them."""
    summary = summarize(run)
    names = list(dict.fromkeys(name for means in summary.means.values() for name in means))
    lines = [f"| time over evenorm's | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for (suite, dtype, direction, memory), means in summary.means.items():
        cells = [times(means[name].value) if name in means else "–" for name in names]
        lines.append(f"| {suite}, {dtype}, {PASSES[direction]}, {memory} memory | {' | '.join(cells)} |")
    lines += [""]
    for share in summary.shares:
        lines.append(
            f"- Reused memory beyond the last-level cache, {PASSES[share.direction]}: {share.mean:.0%} of the speed "
            f"of a {share.roof} of the same bytes."
        )
    lines += [f"- {len(summary.slower)} of {len(run.rows)} rows are slower than torch eager.", ""]
    lines += [f"`{run.command}`, {run.date}, on {line(run.machine)}.", ""]
    return "\n".join(lines)
