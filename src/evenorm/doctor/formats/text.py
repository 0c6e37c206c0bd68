"""An examination for people, in a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from evenorm.doctor.examination import Examination
from evenorm.doctor.finding import Finding

__all__ = ["Indented", "is_torch", "lines", "shown", "terminal"]

UNBROKEN = 10_000

STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def lines(examination: Examination) -> Iterator[RenderableType]:
    """Findings, notes, and a summary."""
    for finding in examination:
        yield from _finding(finding)
    for note in examination.notes:
        yield Indented(Text(f"note: {note}", style="red" if note == examination.failure else "dim"))
    yield Text(examination.summary(), style="bold")


def _finding(finding: Finding) -> Iterator[RenderableType]:
    path, code = (finding.path or "(model)", "bold"), (f"{finding.severity} {finding.code}", STYLES[finding.severity])
    yield Indented(Text.assemble(path, "  ", code, f"  {finding.message}"))
    if finding.file is not None and not is_torch(finding.file):
        yield _line("at", f"{finding.file}:{finding.line}", "dim")
    figures = [f"{name} {shown(value)}" for name, value in finding.evidence.items() if value is not None]
    if figures:
        yield _line("measured", ", ".join(figures), "dim")
    yield _line("do", finding.advice)
    if finding.fix is not None:
        yield _line("fix", finding.fix.call, "green")


def _line(word: str, text: str, style: str = "") -> RenderableType:
    return Indented(Text(f"{word}: {text}", style=style), first=4, rest=8)


@dataclass(frozen=True)
class Indented:
    """A text whose lines begin further in: the first, and the rest of them."""

    text: Text
    first: int = 0
    rest: int = 4

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Wrap at words."""
        width = max(options.max_width - max(self.first, self.rest), 1)
        for number, line in enumerate(self.text.wrap(console, width)):
            yield Text(" " * (self.rest if number else self.first)) + line


def terminal() -> Console:
    """Standard output; where that is no terminal, lines are not broken."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=UNBROKEN)


def is_torch(file: str) -> bool:
    """Whether a class is torch's own: its source says nothing."""
    return Path(torch.__file__).parent in Path(file).parents


def shown(value: object) -> str:
    """A figure with four digits at most."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
