"""The command `evenorm bench`: from its arguments to a table, files and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from evenorm.bench import machine, readme, terminal, watched
from evenorm.bench.program import program
from evenorm.bench.row import Row
from evenorm.bench.run import Command, Run
from evenorm.bench.saved import Saved
from evenorm.bench.settings import ArgumentError, Settings
from evenorm.bench.summary import summarize

__all__ = ["Files", "run"]

WRONG_ARGUMENTS, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Files:
    """Where a run is written to, apart from the terminal."""

    json: Path | None = None
    html: Path | None = None
    readme: Path | None = None

    def check(self) -> None:
        """Refuse what could not be written, before anything is measured."""
        if self.html is not None and find_spec("plotly") is None:
            raise ArgumentError("--html: plotly is not installed: pip install 'evenorm[bench]'")
        if self.html is not None and not self.html.absolute().parent.is_dir():
            raise ArgumentError(f"--html {self.html}: expected a file in a folder that exists")
        if self.readme is not None and readme.BEGIN not in self.readme.read_text(encoding="utf-8"):
            raise ArgumentError(f"--readme {self.readme}: the file has no line {readme.BEGIN}")

    def begin(self, facts: dict[str, str]) -> Run:
        """The run that the figures' file holds, or an empty one."""
        if self.json is None or not self.json.exists():
            return Run(facts)
        found = _read("--json", self.json)
        for name in facts.keys() | found.machine.keys():
            here, there = (known.get(name, "none") for known in (facts, found.machine))
            if here != there:
                raise ArgumentError(
                    f"--json {self.json}: its rows are of another machine ({name}: there {there}, here {here}); "
                    "name another file"
                )
        return found

    def keep(self, run: Run) -> None:
        """Write the figures; after each row, so that whatever ends the run leaves what is finished."""
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            run.write(self.json)

    def show(self, run: Run, figures: Path | None) -> None:
        """Write what is made from the figures, and from which file they are."""
        if self.html is not None:
            from evenorm.bench import plot

            plot.write(run, self.html)
        if self.readme is not None:
            readme.insert(run, figures, self.readme)


def run(settings: Settings, files: Files, watch: watched.Watch, source: Path | None = None) -> int:
    """Measure, or read what was measured; then show and write it.

    Args:
        settings: what is measured.
        files: where it is written to.
        watch: what the suite ``monitor`` measures.
        source: an earlier run's JSON, shown instead.
    """
    console = Console(width=terminal.WIDTH, highlight=False)
    interrupted = False
    try:
        files.check()
        if source is not None:
            found = _read("--from", source)
            files.keep(found)
        else:
            found, interrupted = _measure(settings, files, watch, console)
    except (ArgumentError, OSError) as fault:
        sys.stderr.write(f"{fault}\n")
        return WRONG_ARGUMENTS
    if found.rows or found.saved:
        console.print(terminal.closing(found, summarize(found)))
        files.show(found, files.json or source)
    return INTERRUPTED if interrupted else 0


def _measure(settings: Settings, files: Files, watch: watched.Watch, console: Console) -> tuple[Run, bool]:
    """The run, and whether Ctrl-C ended it."""
    rows, total, counted, notes = program(settings, watch)
    found = files.begin(machine.machine())
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    found.begin(Command(str(settings), today, machine.load(), notes))
    console.print(machine.line(found.machine))
    early = list(notes)
    for note in early:
        console.print(note, style="dim")

    taken = 0

    def keep(row: Row) -> None:
        nonlocal taken
        found.take(row)
        files.keep(found)
        taken += 1

    interrupted = terminal.watch(rows, total, keep, console) or _count(counted, found)
    if interrupted:
        notes.append(f"Ctrl-C ended it after {taken} of {total} rows")
    files.keep(found)
    for note in notes[len(early) :]:
        console.print(note)
    return found, interrupted


def _count(counted: Iterator[Saved], found: Run) -> bool:
    """Take what is counted in; return whether Ctrl-C ended it."""
    try:
        for saved in counted:
            found.count(saved)
    except KeyboardInterrupt:
        return True
    return False


def _read(option: str, file: Path) -> Run:
    try:
        return Run.read(file)
    except ValueError as fault:
        raise ArgumentError(f"{option} {fault}") from None
