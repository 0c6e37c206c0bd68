"""The page of the command line: every verb's own help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from typer.testing import CliRunner

from evenorm.cli import app

__all__ = ["page"]

_HEAD = """# The command

`evenorm` has verbs named like the functions that they call. What a verb needs is imported when it runs, and what is
missing is named. `--json` prints the same for programs; `evenorm bench` keeps its figures in the file behind it.
"""


def page() -> str:
    """One section for each verb."""
    sections = (f"## {' '.join(words)}\n\n```{{ .text .drawn }}\n{_help(words[1:])}\n```\n" for words in _verbs())
    return "\n".join([_HEAD, *sections])


def _verbs() -> Iterator[list[str]]:
    groups: list[tuple[list[str], Any]] = [(["evenorm"], typer.main.get_command(app))]
    while groups:
        words, group = groups.pop()
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                groups.append(([*words, name], command))
            else:
                yield [*words, name]


def _help(words: list[str]) -> str:
    said = (
        CliRunner()
        .invoke(app, [*words, "--help"], prog_name="evenorm", env={"COLUMNS": "84", "NO_COLOR": "1", "TERM": "dumb"})
        .output
    )
    return "\n".join(line.rstrip() for line in said.strip().splitlines())
