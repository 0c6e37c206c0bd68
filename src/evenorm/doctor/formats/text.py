"""An examination for people, in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from evenorm.doctor.examination import Examination
from evenorm.doctor.finding import Finding

__all__ = ["lines"]

STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def lines(examination: Examination) -> Iterator[RenderableType]:
    """Findings, notes, and a summary."""
    for finding in examination:
        yield from _finding(finding)
    for note in examination.notes:
        yield Text(f"note: {note}", style="dim")
    yield Text(examination.summary(), style="bold")


def _finding(finding: Finding) -> Iterator[RenderableType]:
    head = Text.assemble(
        (finding.path or "(model)", "bold"), "  ", (finding.code, STYLES[finding.severity]), f"  {finding.message}"
    )
    yield head
    if finding.file is not None:
        yield Text(f"    at {finding.file}:{finding.line}", style="dim")
    if finding.evidence:
        figures = ", ".join(f"{name} {shown(value)}" for name, value in finding.evidence.items())
        yield Text(f"    measured: {figures}", style="dim")
    yield Text(f"    do: {finding.advice}")
    if finding.fix is not None:
        yield Text(f"    fix: {finding.fix.call}", style="green")


def shown(value: object) -> str:
    """A figure with four digits at most."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
