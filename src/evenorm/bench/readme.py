"""The README's figures, made from one run and put between two markers."""

from __future__ import annotations

from pathlib import Path

from evenorm.bench.machine import line
from evenorm.bench.row import Run
from evenorm.bench.summary import PASSES, summarize
from evenorm.bench.terminal import above, times

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
    """The geometric means as tables, with the machine and the command that measured them."""
    summary = summarize(run)
    lines = ["Geometric means of the time of what heads a column over evenorm's: above 1 evenorm is faster.", ""]
    for suite, names, groups in summary.tables():
        lines += [f"| {suite}{above(suite)} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for (kind, dtype, direction, memory), means in groups.items():
            words = [*kind.split()[1:], dtype, PASSES[direction], *([f"{memory} memory"] if suite != "models" else [])]
            cells = [times(means[name].value) if name in means else "–" for name in names]
            lines.append(f"| {', '.join(words)} | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        f"- Reused memory beyond the last-level cache, {PASSES[share.direction]}, {share.sweeps} "
        f"sweep{'s' * (share.sweeps > 1)}: {share.mean:.0%} of the speed of a {share.roof} of the same bytes."
        for share in summary.shares
    ]
    compared = [row for row in run.rows if row.ratio("torch") is not None]
    lines.append(
        f"- {len(summary.slower)} of {len(compared)} rows are slower than torch eager by more than 10 % or 3 µs, "
        f"{len(summary.wrong)} were wrong and have no speed."
    )
    lines += ["", f"`{run.command}`, {run.date}, on {line(run.machine)}.", ""]
    return "\n".join(lines)
