"""A run: the rows that were measured on one machine, the commands that measured them, and the file that holds both."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from evenorm.bench.interval import Interval
from evenorm.bench.row import Descent, Row, Timing
from evenorm.bench.saved import Bytes, Saved

__all__ = ["Command", "Run", "replace"]

Entry = TypeVar("Entry", Row, Saved)


@dataclass
class Command:
    """A command as it was called, its day, the machine's load before it, and what it left out."""

    text: str
    date: str
    load: str
    notes: list[str] = field(default_factory=list)

    @property
    def quick(self) -> bool:
        """Whether it tried the benchmark, on tiny tensors, and measured nothing."""
        return "--quick" in self.text.split()


@dataclass
class Run:
    """Rows of one machine, and the commands that measured them, the last one last."""

    machine: dict[str, str]
    commands: list[Command] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)
    """What autograd keeps for backward, counted."""

    @property
    def date(self) -> str:
        """The day of the last command."""
        return self.commands[-1].date

    def begin(self, command: Command) -> None:
        """Take a command's rows from now on; the same command, called again, stands once."""
        self.commands = [*(past for past in self.commands if past.text != command.text), command]

    def take(self, row: Row) -> None:
        """Add a row, in the place of what was measured before of the same."""
        _put(self.rows, row)

    def count(self, saved: Saved) -> None:
        """Add what was counted, in the place of what was before of the same."""
        _put(self.saved, saved)

    def write(self, file: Path) -> None:
        """Write as JSON, a row in a line."""
        content = asdict(self)
        parts = [f'"machine": {json.dumps(content["machine"], indent=1, ensure_ascii=False)}']
        for name in ("commands", "rows", "saved"):
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
            return cls(
                content["machine"],
                [Command(**c) for c in content["commands"]],
                [*map(_row, content["rows"])],
                # Files of before have none.
                [*map(_saved, content.get("saved", []))],
            )
        except (KeyError, TypeError, ValueError) as fault:
            raise ValueError(f"{file}: expected what evenorm bench --json writes, found {fault!r}") from None


def replace(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = file.with_name(file.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def _put(entries: list[Entry], entry: Entry) -> None:
    keys = [past.key for past in entries]
    if entry.key in keys:
        entries[keys.index(entry.key)] = entry
    else:
        entries.append(entry)


def _saved(content: dict[str, Any]) -> Saved:
    return Saved(**{**content, **{name: Bytes(**content[name]) for name in ("ours", "separate")}})


def _row(content: dict[str, Any]) -> Row:
    timings = {name: _timing(timing) for name, timing in content["timings"].items()}
    descent = content.get("descent")
    return Row(**{**content, "timings": timings, "descent": descent and Descent(**descent)})


def _timing(content: dict[str, Any]) -> Timing:
    intervals = {name: content[name] for name in ("seconds", "ratio", "excess")}
    return Timing(**{**content, **{name: i and Interval(*i) for name, i in intervals.items()}})
