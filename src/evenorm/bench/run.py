"""A run: the rows that were measured on one machine, the commands that measured them, and the file that holds both."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evenorm.bench.interval import Interval
from evenorm.bench.row import Row, Timing

__all__ = ["Command", "Run", "replace"]


@dataclass
class Command:
    """A command as it was called, its day, the machine's load before it, and what it left out."""

    text: str
    date: str
    load: str
    notes: list[str] = field(default_factory=list)


@dataclass
class Run:
    """Rows of one machine, and the commands that measured them, the last one last."""

    machine: dict[str, str]
    commands: list[Command] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def date(self) -> str:
        """The day of the last command."""
        return self.commands[-1].date

    def begin(self, command: Command) -> None:
        """Take a command's rows from now on; the same command, called again, stands once."""
        self.commands = [*(past for past in self.commands if past.text != command.text), command]

    def take(self, row: Row) -> None:
        """Add a row, in the place of what was measured before of the same."""
        keys = [past.key for past in self.rows]
        if row.key in keys:
            self.rows[keys.index(row.key)] = row
        else:
            self.rows.append(row)

    def write(self, file: Path) -> None:
        """Write as JSON, a row in a line."""
        content = asdict(self)
        parts = [f'"machine": {json.dumps(content["machine"], indent=1, ensure_ascii=False)}']
        for name in ("commands", "rows"):
            lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in content[name])
            parts.append(f'"{name}": [\n{lines}\n]')
        replace(file, "{\n" + ",\n".join(parts) + "\n}\n")

    @classmethod
    def read(cls, file: Path) -> Run:
        """Read what was written.

        Raises:
            ValueError: the file is no run.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(content["machine"], [Command(**c) for c in content["commands"]], [*map(_row, content["rows"])])
        except (KeyError, TypeError, ValueError) as fault:
            raise ValueError(f"{file}: expected what evenorm bench --json writes, found {fault!r}") from None


def replace(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = file.with_name(file.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def _row(content: dict[str, Any]) -> Row:
    return Row(**{**content, "timings": {name: _timing(timing) for name, timing in content["timings"].items()}})


def _timing(content: dict[str, Any]) -> Timing:
    intervals = {name: content[name] for name in ("seconds", "ratio", "excess")}
    return Timing(**{**content, **{name: i and Interval(*i) for name, i in intervals.items()}})
