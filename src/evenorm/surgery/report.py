"""What an operation did to a model, what it refused and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from evenorm.surgery.proof import Proof

if TYPE_CHECKING:
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

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        # Not at the top: importing evenorm should not cost what a terminal costs.

        title = f"{self.operation}: {', '.join(self._counts()) or 'nothing to do'}"
        caption = f"whole model: {self.proof}" if self.proof else None
        table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
        for name in ("layer", "before", "after", "error"):
            table.add_column(name, overflow="fold")
        for row in self.rows:
            after = Text(f"left: {row.refusal}", style="yellow") if row.refusal else Text(row.after)
            table.add_row(row.path or "(root)", row.before, after, str(row.proof or ""))
        return table

    def _counts(self) -> list[str]:
        counts = Counter(row.work for row in self.changed)
        left = len(self.refused)
        return [f"{number} {work}" for work, number in counts.items()] + ([f"{left} left"] if left else [])

    def __str__(self) -> str:
        lines = [f"{self.operation}: {', '.join(self._counts()) or 'nothing to do'}"]
        lines += [f"{row.path or '(root)'}: {row.before} → {row.after}" for row in self.changed]
        lines += [f"{row.path or '(root)'}: {row.before} left: {row.refusal}" for row in self.refused]
        return "\n".join([*lines, f"whole model: {self.proof}"] if self.proof else lines)
