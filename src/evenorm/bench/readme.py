"""The README's figures, made from one file and put between two markers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from evenorm.bench.machine import line
from evenorm.bench.roof import COPY, STREAM
from evenorm.bench.row import LARGE, PASSES, Row
from evenorm.bench.run import Command, Run
from evenorm.bench.summary import COMPILED, Share, Summary, mean_ratios, summarize
from evenorm.bench.terminal import mean

__all__ = ["BEGIN", "COLUMNS", "END", "figures", "insert"]

BEGIN, END = "<!-- figures: evenorm bench -->", "<!-- end of figures -->"

COLUMNS = {
    "torch": "torch",
    "compile": "torch.compile",
    "jax": "JAX",
    "onnxruntime": "onnxruntime",
    "separate": "evenorm, not fused",
    COMPILED: "both by torch.compile",
}
"""What has a column where a file has it, and its heading."""

# In the table's order.
_SUITES = {"layers": "layers", "fused": "fused with activation or residual", "models": ""}
_ROOFS = {"by `copy_`": COPY, "by a streaming copy": STREAM}
_WIDTH = 108


def insert(run: Run, source: Path | None, file: Path) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: the file lacks a marker.
    """
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{file}: expected the lines {BEGIN} and {END}, between which the figures go")
    file.write_text(f"{before}{BEGIN}\n{figures(run, source)}{END}{after}", encoding="utf-8")


def figures(run: Run, source: Path | None) -> str:
    """One table of means and whole steps, what it leaves unsaid, and the file and the commands it is from."""
    found = {label: (mean_ratios(rows), len(rows)) for label, rows in _groups(run).items()}
    columns = [name for name in COLUMNS if any(name in cells for cells, _ in found.values())]
    lines = [
        _filled(
            f"How many times as fast evenorm is: geometric means of the rows above {LARGE:,} elements, in parentheses "
            "of how many where the other has no such layer or a wrong result, which gets no time."
        ),
        "",
        f"| | rows | {' | '.join(COLUMNS[name] for name in columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for label, (cells, count) in found.items():
        ratios = " | ".join(mean(cells.get(name), count) for name in columns)
        lines.append(f"| {label} | {count} | {ratios} |")
    for paragraph in (" ".join(_said(run)), _origin(run, source)):
        lines += ["", _filled(paragraph)]
    return "\n".join([*lines, ""])


def _groups(run: Run) -> dict[str, list[Row]]:
    """What stands in a line of the table: rows of one suite, dtype, pass and memory, or a model's steps."""
    groups: dict[str, list[Row]] = {}
    for suite, what in _SUITES.items():
        for row in run.rows:
            if row.suite.split()[0] != suite or row.seconds() is None:
                continue
            if suite == "models":
                groups.setdefault(f"{row.network}, {PASSES[row.direction]}", []).append(row)
            elif row.large:
                memory = ", reused memory" if row.memory == "reused" else ""
                groups.setdefault(f"{what}, {row.dtype}, {PASSES[row.direction]}{memory}", []).append(row)
    return groups


def _origin(run: Run, source: Path | None) -> str:
    file = "" if source is None else f" `{source}`,"
    commands = "; ".join(f"`{c.text}` ({c.date}, load {c.load} at the start{_left(c)})" for c in run.commands)
    return f"From{file} by {commands}, on {line(run.machine)}."


def _left(command: Command) -> str:
    """What a command did not measure."""
    return "".join(f"; {note}" for note in command.notes)


def _said(run: Run) -> Iterator[str]:
    summary = summarize(run)
    yield (
        f"Slower than torch by more than a tenth or 3 µs: {len(summary.slower)} of all {len(summary.compared)} rows; "
        f"wrong, so that they have no speed: {len(summary.wrong)}."
    )
    roofs = "; ".join(f"{name} {shares}" for name, roof in _ROOFS.items() if (shares := _shares(summary, roof)))
    if roofs:
        yield f"Share of the speed at which the same bytes are copied, in reused memory beyond the last cache: {roofs}."
    trained = "; ".join(f"{row.network} {row.descent}" for row in run.rows if row.descent is not None)
    if trained:
        yield (
            f"A training step is timed where its losses are torch's to 1e-4, step by step: {trained} steps. "
            "At larger rates a fresh network with batch normalization multiplies the roundings of any two "
            "implementations (`docs/log.md`)."
        )


def _shares(summary: Summary, roof: str) -> str:
    return ", ".join(_share(share) for share in summary.shares if share.roof == roof)


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _share(share: Share) -> str:
    sweeps = "" if share.sweeps == 1 else f" in {share.sweeps} sweeps"
    return f"{share.mean:.0%} {PASSES[share.direction]}{sweeps}"
