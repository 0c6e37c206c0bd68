"""The page of figures, from the newest dated file of each kind that `evenorm bench` has left in benchmarks/."""

from __future__ import annotations

from pathlib import Path

from evenorm.bench.readme import COLUMNS, figures
from evenorm.bench.row import PASSES, Row, Timing
from evenorm.bench.run import Run
from evenorm.bench.statements import statements
from evenorm.bench.summary import summarize

__all__ = ["newest", "page"]

_NONE = """No run has been recorded yet, so there are no figures here. `make bench` makes them: it times every layer,
layers with their activation and residual, and whole steps against torch, torch.compile, JAX and onnxruntime, and
writes `benchmarks/<date>.json`, from which this page is made.
"""

_HOW = """A result that disagrees with the float64 reference gets no time. Variants take turns within a row; a ratio is
that of medians, above 1 where evenorm is faster, with a paired 95 % interval. *Fresh* memory is handed out by the
operating system at each call, *reused* memory is the allocator's. What was aimed at
stands beside what was measured, missed or not.

What limits a pass is memory: *What can be gained over torch* says how far torch is from a copy of the same bytes. Fresh
memory costs page faults on top, whoever asks for it. SiLU and GELU are bound by e^x. A small call with a gradient is
bound by its recording: an empty `torch.autograd.Function` takes more than half as long as torch's whole layer norm of
one row, forward and backward.
"""

_NO_GPU = """Nothing was run or measured on a GPU yet: `evenorm bench --device cuda` would do it.
"""


def newest(folder: Path) -> list[Path]:
    """The newest file of each kind: its name is a date, and what it is of where that is not the CPU."""
    kinds = {file.stem[len("2026-01-01") :]: file for file in sorted(folder.glob("*.json"))}
    return [kinds[kind] for kind in sorted(kinds)]


def page(folder: Path) -> str:
    """The page, from the newest files of a folder or from none."""
    files = newest(folder)
    if not files:
        return f"# Performance\n\n{_NONE}"
    gpu = [] if any(file.stem.endswith("-gpu") for file in files) else [_NO_GPU]
    return "\n".join(["---\nhide: [navigation, toc]\n---\n\n# Performance\n", _HOW, *gpu, *map(_section, files)])


def _section(file: Path) -> str:
    run = Run.read(file)
    found = {name for row in run.rows for name, timing in row.timings.items() if timing.ratio}
    peers = [name for name in COLUMNS if name in found]
    heads = ["what", "dtype", "pass", "memory", "evenorm, ms", *(f"{COLUMNS[name]} ÷ evenorm" for name in peers)]
    return "\n".join(
        [
            f"## {file.stem}\n",
            figures(run, Path("benchmarks", file.name)),
            *(f"### {table.title}\n\n{table.markdown}" for table in statements(run, summarize(run))),
            f"### Every row of {file.stem}\n",
            f"| {' | '.join(heads)} | error, of its bound |",
            "|---|---|---|---|---|---|" + "---|" * len(peers),
            *(_row(row, peers) for row in run.rows),
            "",
        ]
    )


def _row(row: Row, peers: list[str]) -> str:
    name = f"{row.title} {row.size}"
    if row.suite == "models":
        name = row.network if row.descent is None else f"{row.network}, {row.descent} steps"
    seconds = row.ours.seconds
    time = f"{1e3 * seconds.value:.3g}" if seconds else f"none: {row.ours.absent or 'wrong'}"
    error = f"{row.ours.share:.2g}" if row.ours.share is not None else "–"
    ratios = " | ".join(_ratio(row.timings.get(peer)) for peer in peers)
    return f"| {name} | {row.dtype} | {PASSES[row.direction]} | {row.memory} | {time} | {ratios} | {error} |"


def _ratio(timing: Timing | None) -> str:
    if timing is None or timing.ratio is None:
        return "–"
    return f"{timing.ratio.value:.2f} [{timing.ratio.low:.2f}, {timing.ratio.high:.2f}]"
