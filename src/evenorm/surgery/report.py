"""What an operation did to a model, what it refused and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from evenorm.surgery.proof import Proof

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

__all__ = ["Row", "SurgeryReport"]


@dataclass(frozen=True)
class Row:
    """One layer: its path in the model, what was done with it, or why nothing was."""

    path: str
    before: str
    after: str = ""
    work: str = ""
    refusal: str = ""
    proof: Proof | None = None


@dataclass
class SurgeryReport:
    """The rows of one operation, and the proof of the whole model where inputs were given.

    >>> report = SurgeryReport("fold", [Row("1", "BatchNorm2d", "Identity", "folded")])
    >>> report.count("folded"), len(report.refused)
    (1, 0)
    """

    operation: str
    rows: list[Row] = field(default_factory=list)
    proof: Proof | None = None

    def did(self, path: str, before: str, after: str, work: str, proof: Proof | None = None) -> None:
        """Add a row of something done."""
        self.rows.append(Row(path, before, after, work, proof=proof))

    def refuse(self, path: str, before: str, refusal: str, proof: Proof | None = None) -> None:
        """Add a row of something refused."""
        self.rows.append(Row(path, before, before, refusal=refusal, proof=proof))

    @property
    def changed(self) -> list[Row]:
        """What was done."""
        return [row for row in self.rows if not row.refusal]

    @property
    def refused(self) -> list[Row]:
        """What was left as it was, with the reason."""
        return [row for row in self.rows if row.refusal]

    def count(self, work: str) -> int:
        """How often something was done."""
        return Counter(row.work for row in self.changed)[work]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        # Not at the top: importing evenorm should not cost what a terminal costs.
        parts: list[Any] = [Text(self._title(), "bold")]
        indent = max((len(_leaf(row.path)) for row in self.rows), default=0)
        for parent, rows in groupby(self.rows_by_path(), lambda row: row.path.rpartition(".")[0]):
            if parent:
                parts.append(Text(parent, "dim"))
            parts.append(_lines(parent, list(rows), indent))
        if self.proof:
            parts.append(Text(self._whole()))
        if any(row.proof for row in self.rows):
            parts.append(Text("on the right: changes of outputs, of what rounding explains, in eps·max|y|", "dim"))
        return Group(*parts)

    def rows_by_path(self) -> list[Row]:
        """The rows, all of one layer together, layers of one module together."""
        order: dict[str, list[Row]] = {}
        for row in self.rows:
            order.setdefault(row.path.rpartition(".")[0], []).append(row)
        first = {path: index for index, path in reversed(list(enumerate(row.path for row in self.rows)))}
        return [row for rows in order.values() for row in sorted(rows, key=lambda row: first[row.path])]

    def _title(self) -> str:
        return f"{self.operation}: {', '.join(self._counts()) or 'nothing to do'}"

    def _counts(self) -> list[str]:
        counts = Counter(row.work for row in self.changed)
        left = len(self.refused)
        return [f"{number} {work}" for work, number in counts.items()] + ([f"{left} left"] if left else [])

    def __str__(self) -> str:
        paths: dict[str, list[str]] = {}
        for row in (*self.changed, *self.refused):
            what = f"{row.before} left: {row.refusal}" if row.refusal else f"{row.before} → {row.after}"
            paths.setdefault(what, []).append(row.path or "(root)")
        lines = [f"{_first(alike)}: {what}" for what, alike in paths.items()]
        return "\n".join([self._title(), *lines, *([self._whole()] if self.proof else [])])

    def _whole(self) -> str:
        return f"whole model: outputs changed by {self.proof}"


def _first(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _leaf(path: str) -> str:
    return path.rpartition(".")[2] or "(model)"


def _lines(parent: str, rows: list[Row], indent: int) -> Table:
    """What was done inside one module: names, what became of them, errors."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(width=indent + 2, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_column(justify="right", no_wrap=True, style="dim")
    above = ""
    for row in rows:
        name = "" if row.path == above else _leaf(row.path)
        # Beside a module's own name the names of its children are enough.
        after = row.after.replace(f"{parent}.", "") if parent else row.after
        if row.refusal:
            what = Text(f"{row.before} left: {row.refusal}", "yellow")
        else:
            what = Text(after if after.startswith(row.before) else f"{row.before} → {after}")
        table.add_row(f"  {name}", what, row.proof.figures if row.proof else "")
        above = row.path
    return table
