"""The page of figures, from the newest dated file that `make bench` has left in benchmarks/."""

from __future__ import annotations

from pathlib import Path

from evenorm.bench.interval import Interval
from evenorm.bench.machine import line
from evenorm.bench.readme import figures
from evenorm.bench.row import Row, Run
from evenorm.bench.summary import PASSES

__all__ = ["newest", "page"]

_NONE = """No run has been recorded yet, so there are no figures here. `make bench` makes them: it times every layer,
layers with their activation and residual, and whole steps against torch, torch.compile, JAX and onnxruntime, and
writes `benchmarks/<date>.json`, from which this page is made.
"""

_HOW = """A result that disagrees with the float64 reference gets no time. Variants take turns within a row; a ratio is
that of medians, above 1 where evenorm is faster, with a paired 95 % interval. *Fresh* memory is handed out by the
operating system at each call, *reused* memory is the allocator's.
"""


def newest(folder: Path) -> Path | None:
    """The newest file: names are dates."""
    return max(folder.glob("*.json"), default=None)


def page(folder: Path) -> str:
    """The page, from the newest file of a folder or from none."""
    file = newest(folder)
    if file is None:
        return f"# Performance\n\n{_NONE}"
    run = Run.read(file)
    return "\n".join(
        [
            f"---\nhide: [navigation, toc]\n---\n\n# Performance\n\n{_HOW}\n## Geometric means\n",
            figures(run),
            f"## Every row\n\nAll of `benchmarks/{file.name}`, measured on {line(run.machine)}.\n",
            "| what | dtype | pass | memory | evenorm, ms | torch ÷ evenorm [95 %] | error, of its bound |",
            "|---|---|---|---|---|---|---|",
            *map(_row, run.rows),
            "",
        ]
    )


def _row(row: Row) -> str:
    name = f"{row.network or row.layer} {row.size}" if row.suite == "models" else f"{row.title} {row.size}"
    seconds, torch = row.ours.seconds, row.timings.get("torch")
    time = f"{1e3 * seconds.value:.3g}" if seconds else f"none: {row.ours.absent or 'wrong'}"
    ratio = _interval(torch.ratio) if torch and torch.ratio else "–"
    error = f"{row.ours.share:.2g}" if row.ours.share is not None else "–"
    return f"| {name} | {row.dtype} | {PASSES[row.direction]} | {row.memory} | {time} | {ratio} | {error} |"


def _interval(ratio: Interval) -> str:
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
