"""The commands `evenorm lab list`, `run` and `report`: from their arguments to tables, files and exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from evenorm.lab import evidence
from evenorm.lab.catalog import UnknownExperimentError, catalog, choose
from evenorm.lab.data import DataError
from evenorm.lab.experiment import Result
from evenorm.lab.report.claims import write
from evenorm.lab.run import FOLDER, Task, advance, missing, recall
from evenorm.lab.setting import SCALES, SEEDS, Scale, Setting
from evenorm.lab.store import Store
from evenorm.lab.workers import available, processes

INTERRUPTED = 130
COLORS = {"holds": "green", "does not hold": "yellow", "reversed": "red"}


@dataclass(frozen=True)
class Order:
    """What was asked for on the command line.

    Attributes:
        names: of the experiments; none means all of them.
        seeds: how many; as many as the scale asks for unless given.
        folder: where finished seeds are kept.
    """

    names: tuple[str, ...] = ()
    scale: str = "quick"
    data: tuple[Path, ...] = ()
    seeds: int | None = None
    folder: Path = FOLDER

    def setting(self) -> Setting:
        """Check scale, seeds and data.

        Raises:
            ValueError: one of them cannot be meant.
        """
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"--seeds {self.seeds}: expected 1 or more.")
        scale: list[Scale] = [scale for scale in SCALES if scale == self.scale]
        if not scale:
            raise ValueError(f"--scale {self.scale!r}: expected one of {', '.join(SCALES)}.")
        for path in self.data:
            if not path.exists():
                raise DataError(f"--data {path}: nothing there. Pass a folder of images or a text file.")
        return Setting(scale[0], self.data)


def show(as_json: bool) -> int:
    """List the experiments."""
    found = catalog()
    if as_json:
        rows = [
            {"experiment": slug, "question": one.question, "claims": [claim.text for claim in one.claims]}
            for slug, one in found.items()
        ]
        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        return 0
    table = Table.grid(padding=(0, 2))
    for slug, one in found.items():
        table.add_row(f"[bold]{slug}[/bold]", one.question)
    Console().print(table)
    return 0


def run(order: Order, workers: int | None, as_json: bool) -> int:
    """Measure what is missing, print the table, and return the exit code.

    0: done. 1: seeds failed, or the extra is not installed. 2: an argument is wrong. 130: stopped by Ctrl-C; what had
    finished is kept.
    """
    talk = Console(stderr=True, highlight=False)
    with _complaints() as complaint:
        if workers is not None and workers < 1:
            raise ValueError(f"--workers {workers}: expected 1 or more.")
        setting, store = order.setting(), Store(order.folder)
        results = recall(choose(order.names), setting, store, order.seeds)
        tasks = missing(results, order.seeds)
    if complaint:
        return complaint[0]
    count = min(workers or available(), max(1, len(tasks)))
    seeds = order.seeds or SEEDS[setting.scale]
    talk.print(
        f"{len(results)} experiments, {seeds} seeds each; {len(tasks)} of {seeds * len(results)} runs to do, "
        f"{count} at a time."
    )
    interrupted = bool(tasks) and _watch(results, tasks, store, count, talk)
    if as_json:
        sys.stdout.write(evidence.records(results) + "\n")
    else:
        Console(highlight=False).print(table(results))
        if setting.scale == "quick":
            talk.print("Provisional: quick runs, three seeds. --scale full decides.", style="dim")
    failed = [(r.experiment.slug, seed, reason) for r in results for seed, reason in r.failures.items()]
    for slug, seed, reason in failed:
        talk.print(f"failed: {slug}, seed {seed}: {reason}", style="red", soft_wrap=True)
    if interrupted:
        talk.print("Stopped. What had finished is kept: the same command goes on from there.")
        return INTERRUPTED
    return 1 if failed else 0


def report(order: Order, page: Path, markdown: Path | None, as_json: bool) -> int:
    """Write what is known of the experiments as a page, and as Markdown and JSON where asked."""
    with _complaints() as complaint:
        results = recall(choose(order.names), order.setting(), Store(order.folder), order.seeds)
        found = [result for result in results if result.observations]
        if not found:
            raise ValueError(
                f"nothing in {order.folder} at scale {order.scale}: evenorm lab run --all --scale {order.scale}"
            )
    if complaint:
        return complaint[0]
    write(found, page)
    if markdown:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        # With a row for what has not been measured too.
        markdown.write_text(evidence.markdown(results), encoding="utf-8")
    if as_json:
        sys.stdout.write(evidence.records(found) + "\n")
    written = ", ".join(str(path) for path in (page, markdown) if path)
    Console(stderr=True, highlight=False).print(f"{len(found)} of {len(results)} experiments: {written}")
    return 0


def table(results: Sequence[Result]) -> Table:
    """Return a row for every claim with a seed behind it, the deciding one of each experiment with its name."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for heading in ("experiment", "claim", "effect [95 % interval]", "seeds", "verdict"):
        drawn.add_column(heading, overflow="fold")
    for result in results:
        for place, finding in enumerate(result.findings):
            name = result.experiment.slug if not place else ""
            color = COLORS.get(finding.verdict, "dim")
            seeds = f"{len(result.seeds)}"
            drawn.add_row(
                name, finding.claim.text, finding.text.replace("[", r"\["), seeds, finding.verdict, style=color
            )
    return drawn


def _watch(results: Sequence[Result], tasks: Sequence[Task], store: Store, workers: int, console: Console) -> bool:
    """Measure under a progress bar; return whether it was interrupted by Ctrl-C."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("passed,"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress, processes(workers) as executor:
        bar = progress.add_task("starting", total=len(tasks))
        try:
            for task in advance(results, tasks, store, executor):
                progress.update(bar, advance=1, description=task.experiment.slug)
        except KeyboardInterrupt:
            return True
    return False


@contextmanager
def _complaints() -> Iterator[list[int]]:
    """Turn what cannot be meant into a line and an exit code."""
    code: list[int] = []
    missing = [name for name in ("plotly", "sklearn", "PIL") if not find_spec(name)]
    try:
        if missing:
            sys.stderr.write(f"evenorm lab: {', '.join(missing)} missing: pip install 'evenorm[lab]'\n")
            code.append(1)
        yield code
    except (UnknownExperimentError, ValueError) as fault:
        sys.stderr.write(f"evenorm lab: {fault}\n")
        code.append(2)
